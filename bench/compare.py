"""How many times faster? Ratios of medians and their intervals (METHOD.md section 4); what is concluded
from them stands in ``verdicts``.

Everything is a contrast of log medians: a speed-up is ln(reference) - ln(candidate), an interaction
ln(a) + ln(b) - ln(base) - ln(both). Two sources of error stand beside each other and the wider counts:

* between requests of a process: the distances from each median to its distribution-free limits, combined
  in quadrature (MOVER: Zou and Donner, *Statistics in Medicine* 27 (2008) 1693; with correlation, Donner
  and Zou, *Statistical Methods in Medical Research* 21 (2012) 347). The limits are those that tables
  print; in simulation the interval holds at least what it promises, tied and bimodal values included;
* between processes: Student's t over the medians of processes, one variance for all sides, for the process
  is the unit that is repeated (Kalibera and Jones, *Rigorous Benchmarking in Reasonable Time*, 2013).

With fewer than two processes a side the second cannot be seen there, and how far equal processes of the
host's references may be apart is added to the interval instead. All values must come from one host; the
caller sees to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from bench import config, stats

TOO_FEW = "too few requests for an interval of the median"
ONE_RUN = "one run a side"
"""And no second one of the reference on this host: how far equal runs differ here is unknown."""


class Limits(NamedTuple):
    """Of a log median."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Side:
    """Latencies in seconds of one row's cell on one host: one tuple a process, in order of finishing."""

    runs: tuple[tuple[float, ...], ...]
    users: int = 1

    @cached_property
    def log_limits(self) -> Limits | None:
        """None where the median has no interval."""
        p50 = stats.quantile([value for run in self.runs for value in run], 50, self.users)
        if p50.ci95 is None:
            return None
        return Limits(math.log(p50.ci95[0]), math.log(p50.value), math.log(p50.ci95[1]))

    @property
    def log_median(self) -> float:
        return math.log(stats.median([value for run in self.runs for value in run]))

    @property
    def log_medians(self) -> list[float]:
        """One a process."""
        return [math.log(stats.median(run)) for run in self.runs]


@dataclass(frozen=True)
class Error:
    """How far a log ratio may be off to either side, as standard errors with these degrees of freedom
    (infinite: normal). Other levels than 95 % scale from it."""

    below: float
    above: float
    degrees: float = math.inf


@dataclass(frozen=True)
class Ratio:
    """A speed-up (above 1: faster), on the log scale. Without errors there is no interval, and ``missing``
    says what to measure."""

    log: float
    errors: tuple[Error, ...] = ()
    added: float = 0.0
    """Half-width added for what was not repeated."""
    missing: str = ""

    @property
    def value(self) -> float:
        return math.exp(self.log)

    def interval(self, confidence: float = config.CONFIDENCE) -> tuple[float, float] | None:
        if not self.errors:
            return None
        below, above = self.reach(confidence)
        return math.exp(self.log - below - self.added), math.exp(self.log + above + self.added)

    def reach(self, confidence: float) -> tuple[float, float]:
        """Distances to both limits on the log scale, without what was added."""
        scores = [_score(error.degrees, (1 + confidence) / 2) for error in self.errors]
        pairs = list(zip(scores, self.errors, strict=True))
        return max(s * error.below for s, error in pairs), max(s * error.above for s, error in pairs)


def _score(degrees: float, probability: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(probability) if math.isinf(degrees) else stdtrit(degrees, probability))


# --- Ratios ------------------------------------------------------------------------------------------


def speedup(reference: Side, candidate: Side, spread: float | None = None) -> Ratio:
    """How many times faster than ``reference``. ``spread``: the host's ``reference_spread``, needed where
    a side has one process."""
    return _contrast([reference], [candidate], spread)


def interaction(base: Side, one: Side, other: Side, both: Side, spread: float | None = None) -> Ratio:
    """Speed-up of both changes over the product of their speed-ups alone; 1 when they do not interact."""
    return _contrast([one, other], [base, both], spread)


def paired_speedup(
    reference: Sequence[float], candidate: Sequence[float], spread: float | None = None
) -> Ratio:
    """``speedup`` of two single processes that served the same requests in the same order, one user: what
    both share (a prompt that is slow for both) is taken out."""
    if len(reference) != len(candidate):
        raise ValueError(f"not paired: {len(reference)} and {len(candidate)} requests")
    sides = Side((tuple(reference),)), Side((tuple(candidate),))
    return _contrast(sides[:1], sides[1:], spread, _median_correlation(reference, candidate))


def reference_spread(cells: Iterable[Sequence[float]]) -> float | None:
    """How far two processes that do the same may be apart on one host, as a log ratio that 95 % of such pairs
    stay below; None where no cell of the reference ran in two processes. ``cells``: of each cell the
    processes' medians. The range of a few would promise too much."""
    squares, degrees = _scatter([[math.log(median) for median in medians] for medians in cells])
    if not degrees:
        return None
    return _score(degrees, (1 + config.CONFIDENCE) / 2) * math.sqrt(2 * squares / degrees)


def _contrast(
    over: Sequence[Side], under: Sequence[Side], spread: float | None, correlation: float = 0.0
) -> Ratio:
    """Product of the medians of ``over`` by that of ``under``."""
    sides = [*over, *under]
    log = sum(side.log_median for side in over) - sum(side.log_median for side in under)
    low_arms, high_arms = [], []
    for index, side in enumerate(sides):
        limit = side.log_limits
        if limit is None:
            return Ratio(log, missing=TOO_FEW)
        arms = limit.middle - limit.low, limit.high - limit.middle
        down, up = arms if index < len(over) else arms[::-1]
        low_arms.append(down)
        high_arms.append(up)
    score = _score(math.inf, (1 + config.CONFIDENCE) / 2)
    requests = Error(_combined(low_arms, correlation) / score, _combined(high_arms, correlation) / score)
    if all(len(side.runs) >= config.COMPARISON.processes_a_side for side in sides):
        return Ratio(log, (requests, _between_processes(sides)))
    if spread is None:
        return Ratio(log, missing=ONE_RUN)
    return Ratio(log, (requests,), added=spread * len(sides) / 2)


def _combined(arms: Sequence[float], correlation: float) -> float:
    """In quadrature; a correlation belongs to exactly two."""
    shared = 2 * correlation * math.prod(arms) if correlation else 0.0
    return math.sqrt(max(0.0, math.fsum(arm * arm for arm in arms) - shared))


def _between_processes(sides: Sequence[Side]) -> Error:
    """Of the sum of the sides' mean log medians, with one variance for all sides."""
    squares, degrees = _scatter([side.log_medians for side in sides])
    error = math.sqrt(squares / degrees * sum(1 / len(side.runs) for side in sides))
    return Error(error, error, degrees)


def _scatter(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Sum of squares around the groups' own means, and its degrees of freedom."""
    squares, degrees = 0.0, 0
    for values in groups:
        if values:
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            degrees += len(values) - 1
    return squares, degrees


def _median_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """4 P(both below their medians) - 1, shrunk as by Bonett and Price, *British J. Mathematical and
    Statistical Psychology* 73 (2020) 333; a negative estimate is taken as none."""
    n = len(first)
    middles = stats.median(first), stats.median(second)
    both = sum(a < middles[0] and b < middles[1] for a, b in zip(first, second, strict=True))
    return max(0.0, min(1.0, 4 * (both + 0.25) / (n if n % 2 else n + 1) - 1))


# --- Several ratios ----------------------------------------------------------------------------------


def geometric_mean(ratios: Sequence[Ratio]) -> Ratio:
    """Over use cases, which are a fixed list and no sample. Independent intervals combine in quadrature;
    what was added for the host's spread is shared by all and does not average out."""
    if not ratios:
        raise ValueError("no ratios to average")
    count = len(ratios)
    log = math.fsum(ratio.log for ratio in ratios) / count
    if missing := next((ratio.missing for ratio in ratios if not ratio.errors), ""):
        return Ratio(log, missing=missing)
    reaches = [ratio.reach(config.CONFIDENCE) for ratio in ratios]
    unit = count * _score(math.inf, (1 + config.CONFIDENCE) / 2)
    error = Error(
        math.hypot(*(low for low, _ in reaches)) / unit, math.hypot(*(up for _, up in reaches)) / unit
    )
    return Ratio(log, (error,), added=math.fsum(ratio.added for ratio in ratios) / count)
