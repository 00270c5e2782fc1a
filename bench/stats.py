"""Quantiles of latencies and how far to trust them. Pure functions, no I/O.

Two properties are deliberate:

* a quantile is an order statistic of the values (nearest rank), never interpolated: every number
  printed was once measured;
* its interval is a pair of order statistics too. Requests that did not overlap get binomial ranks,
  which assume nothing about the distribution; requests that did overlap (several users) share work
  and are resampled by rounds.

METHOD.md section 3. What is decided from these numbers stands in ``steady`` and ``compare``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from bench import config, record

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 4000
"""Bootstrap resamples; the expanded tail levels below still leave several of them beyond each end."""

FEWEST_ROUNDS = 9
"""Simulated coverage of the median's interval is 88-92 % with 6 rounds and 93-97 % from 9 on."""


def nearest_rank(n: int, percentile: float) -> int:
    """1-based rank of the smallest value that at least ``percentile`` % of n values do not exceed."""
    if n < 1 or not 0 < percentile < 100:
        raise ValueError(f"no rank for percentile {percentile} of {n} values")
    return max(1, math.ceil(n * percentile / 100 - 1e-9))


def nearest(values: Sequence[float], percentile: float) -> float:
    return sorted(values)[nearest_rank(len(values), percentile) - 1]


def median(values: Sequence[float]) -> float:
    """The p50 as printed: the lower middle value when n is even."""
    return nearest(values, 50)


@lru_cache(maxsize=4096)
def interval_ranks(
    n: int, percentile: float, confidence: float = config.CONFIDENCE
) -> tuple[int, int] | None:
    """1-based ranks of the distribution-free interval of a quantile, each tail at most (1 - c) / 2.

    The number of values below the true quantile is binomial(n, p) whatever the distribution, so ranks
    l < u with P(B < l) and P(B >= u) both small enough enclose it (David and Nagaraja, *Order
    Statistics*, section 7.1). ``None`` when n is too small for both to exist within the data.
    """
    from scipy.special import bdtr

    p, tail = percentile / 100, (1 - confidence) / 2
    below = bdtr(range(n), n, p)  # below[k] = P(B <= k)
    lower = sum(1 for probability in below if probability <= tail)
    uppers = [k + 1 for k in range(n) if 1 - below[k] <= tail]
    return (lower, uppers[0]) if lower and uppers else None


@lru_cache(maxsize=64)
def smallest_n(percentile: float, confidence: float = config.CONFIDENCE) -> int:
    """The n from which on the interval exists; gives METHOD.md's 13, 6, 36 and 368."""
    return next(n for n in range(1, 100_000) if interval_ranks(n, percentile, confidence))


def supported(n: int, percentile: float) -> bool:
    """Whether a table may print this percentile of n values bare."""
    known = config.QUANTILE_SUPPORT.get(int(percentile)) if percentile == int(percentile) else None
    return n >= (known or smallest_n(percentile))


def quantile(values: Sequence[float], percentile: float, users: int = 1) -> record.Quantile:
    """``values`` in the order in which the requests finished; ``users`` of them overlapped."""
    ordered = sorted(values)
    n = len(ordered)
    if users > 1:
        ci95 = round_bootstrap(values, percentile, users)
    else:
        ranks = interval_ranks(n, percentile)
        ci95 = (ordered[ranks[0] - 1], ordered[ranks[1] - 1]) if ranks else None
    value = ordered[nearest_rank(n, percentile) - 1]
    return record.Quantile(value=value, supported=supported(n, percentile), ci95=ci95)


def summarise(values: Sequence[float], users: int = 1) -> record.Distribution:
    """Raises ``ValueError`` for no values, or for one that is not a finite number."""
    if not values:
        raise ValueError("no values to summarise")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"not finite: {[value for value in values if not math.isfinite(value)][:3]}")
    p25, p50, p90, p99 = (quantile(values, percentile, users) for percentile in (25, 50, 90, 99))
    return record.Distribution(
        raw=list(values),
        p25=p25,
        p50=p50,
        p90=p90,
        p99=p99,
        mean=math.fsum(values) / len(values),
        min=min(values),
        max=max(values),
    )


# --- Requests that overlapped ------------------------------------------------------------------------
#
# With u closed-loop users served FIFO, a request waits for the u - 1 before it, so its latency shares
# service times with its neighbours: n latencies hold less information than n independent ones. The unit
# that is resampled is the round: u consecutive requests.


def rounds_of(values: Sequence[float], users: int) -> list[tuple[float, ...]]:
    """Consecutive groups of ``users``; a rest at the end that fills no round is left out."""
    return [tuple(values[start : start + users]) for start in range(0, len(values) - users + 1, users)]


def tail_level(rounds: int, confidence: float = config.CONFIDENCE) -> float:
    """Tail of the bootstrap distribution at which its percentile interval has the stated confidence.

    Two corrections widen it. Few rounds: Student's t over the plug-in variance ("expanded percentile
    interval", Hesterberg, *The American Statistician* 69 (2015) 371). Overlap across the edge of a
    round: for latencies that are sums of u neighbouring service times, resampling single rounds sees
    1 - (u^2 - 1) / (3 u^2), never less than 2/3, of the variance.
    """
    from scipy.special import ndtr, stdtrit

    t = stdtrit(rounds - 1, 1 - (1 - confidence) / 2)
    return float(ndtr(-t * math.sqrt(rounds / (rounds - 1)) * math.sqrt(3 / 2)))


@lru_cache(maxsize=32)  # cells of one budget have as many rounds
def _draws(rounds: int) -> np.ndarray:
    """How often each round stands in each bootstrap resample: (rounds, RESAMPLES). The seed is fixed: the
    same values always give the same interval, and ``fluxbench check`` recomputes it."""
    import numpy as np

    drawn = np.random.default_rng(rounds).integers(rounds, size=(RESAMPLES, rounds))
    often = np.zeros((rounds, RESAMPLES), np.int32)
    np.add.at(often, (drawn, np.arange(RESAMPLES)[:, None]), 1)
    return often


@lru_cache(maxsize=1)  # the percentiles of one cell are asked for one after another
def _resamples(values: tuple[float, ...], users: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of whole rounds, ascending, and how many of each resample stand up to each: (values,
    RESAMPLES). No resample is built or sorted: its quantiles follow from how often each value is in it."""
    import numpy as np

    rounds = np.array(rounds_of(values, users))
    order = np.argsort(rounds, axis=None)
    up_to = accumulate(_draws(len(rounds))[order // users])  # three times as fast as cumsum(axis=0)
    return rounds.ravel()[order], np.array(list(up_to))


def resampled(values: Sequence[float], percentile: float, users: int) -> np.ndarray:
    """The percentile of each bootstrap resample of rounds, ascending."""
    import numpy as np

    ascending, up_to = _resamples(tuple(values), users)
    rank = nearest_rank(len(ascending), percentile)
    return ascending[np.sort((up_to < rank).sum(axis=0))]


def round_bootstrap(values: Sequence[float], percentile: float, users: int) -> tuple[float, float] | None:
    """Block bootstrap over rounds. ``None`` with too few rounds for this percentile: a tail needs as many
    rounds as it would need independent values, for slow requests come in company."""
    return _round_bootstrap(tuple(values), percentile, users)


@lru_cache(maxsize=4096)  # a table and the speed-ups beside it ask for the same interval
def _round_bootstrap(values: tuple[float, ...], percentile: float, users: int) -> tuple[float, float] | None:
    rounds = len(rounds_of(values, users))
    if rounds < max(FEWEST_ROUNDS, smallest_n(percentile)):
        return None
    replicates = resampled(values, percentile, users)
    skipped = math.floor(tail_level(rounds) * RESAMPLES)
    return float(replicates[skipped]), float(replicates[-1 - skipped])
