"""What a ratio allows to be said: FASTER, SLOWER, SAME or AMBIGUOUS, alone or in a ranking of many
(METHOD.md section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from bench import config
from bench.compare import Ratio


class Verdict(StrEnum):
    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    AMBIGUOUS = "AMBIGUOUS"


def verdict(ratio: Ratio, confidence: float = config.CONFIDENCE) -> Verdict:
    """From the interval alone: clear of the smallest effect on either side, inside it, or neither."""
    interval = ratio.interval(confidence)
    if interval is None:
        return Verdict.AMBIGUOUS
    effect = 1 + config.COMPARISON.smallest_effect
    if interval[0] > effect:
        return Verdict.FASTER
    if interval[1] < 1 / effect:
        return Verdict.SLOWER
    return Verdict.SAME if interval[0] > 1 / effect and interval[1] < effect else Verdict.AMBIGUOUS


def p_value(ratio: Ratio) -> float:
    """The smallest level at which ``verdict`` would still be what it is: the interval of that level just
    touches the smallest effect. 1 without an interval."""
    edge = math.log1p(config.COMPARISON.smallest_effect)
    faster = _level_below(ratio, ratio.log - edge)
    slower = _level_above(ratio, -edge - ratio.log)
    same = max(_level_below(ratio, ratio.log + edge), _level_above(ratio, edge - ratio.log))
    return min(faster, slower, same)


def _level_below(ratio: Ratio, distance: float) -> float:
    """The level at which the lower limit lies ``distance`` below the ratio."""
    return max(
        (_level(error.below, error.degrees, distance - ratio.added) for error in ratio.errors), default=1.0
    )


def _level_above(ratio: Ratio, distance: float) -> float:
    return max(
        (_level(error.above, error.degrees, distance - ratio.added) for error in ratio.errors), default=1.0
    )


def _level(error: float, degrees: float, distance: float) -> float:
    from scipy.special import ndtr, stdtr

    if distance <= 0:
        return 1.0
    if error == 0:
        return 0.0
    score = -distance / error
    return 2 * float(ndtr(score) if math.isinf(degrees) else stdtr(degrees, score))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: one below alpha holds with at most alpha of any false one in the whole family
    (Holm, *Scandinavian J. Statistics* 6 (1979) 65)."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, p_values[index] * (len(p_values) - position)))
        adjusted[index] = worst
    return adjusted


def verdicts(ratios: Sequence[Ratio], confidence: float = config.CONFIDENCE) -> list[Verdict]:
    """Of a ranking: a verdict that does not survive Holm's correction is AMBIGUOUS."""
    adjusted = holm([p_value(ratio) for ratio in ratios])
    return [
        verdict(ratio, confidence) if p < 1 - confidence else Verdict.AMBIGUOUS
        for ratio, p in zip(ratios, adjusted, strict=True)
    ]


def interacts(ratio: Ratio) -> bool:
    """Whether A + B is shown not to be A x B, by more than the smallest effect."""
    return verdict(ratio) in {Verdict.FASTER, Verdict.SLOWER}
