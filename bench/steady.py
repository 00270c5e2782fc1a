"""Decisions about one cell while and after it runs: warm yet? enough yet? drifting? And what it delivered.

Pure functions over lists of seconds (METHOD.md sections 1, 2 and 4); the thresholds are config's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from bench import config, stats

FEWEST_FOR_DRIFT = 6
"""Two values a third; fewer say nothing about a trend."""


class Warm(Enum):
    MORE = "send another warm-up request"
    SETTLED = "settled"
    UNSETTLED = "the maximum is reached and the last requests still disagree or compile"


def warmth(
    seconds: Sequence[float],
    compiled: Sequence[bool],
    settle: bool = True,
    rule: config.WarmupRule = config.WARMUP,
) -> Warm:
    """``compiled[i]``: whether request i saw a compile event. ``settle=False`` (``probe``) asks only for
    the minimum of requests and reports honestly whether they happened to settle."""
    if len(seconds) != len(compiled):
        raise ValueError(f"{len(seconds)} warm-up times, {len(compiled)} compile flags")
    if _settled(seconds, compiled, rule):
        return Warm.SETTLED
    most = rule.maximum if settle else rule.minimum
    return Warm.MORE if len(seconds) < most else Warm.UNSETTLED


def _settled(seconds: Sequence[float], compiled: Sequence[bool], rule: config.WarmupRule) -> bool:
    if len(seconds) < max(rule.minimum, rule.agreeing) or any(compiled[-rule.quiet :]):
        return False
    last = seconds[-rule.agreeing :]
    return max(last) - min(last) <= rule.spread * min(last)


def whole_rounds(n: int, users: int) -> int:
    """The smallest multiple of ``users`` that is at least n."""
    return -(-n // users) * users


def median_uncertainty(values: Sequence[float], users: int = 1) -> float | None:
    """The wider side of the median's interval over the median, or None without an interval."""
    if not values:
        return None
    p50 = stats.quantile(values, 50, users)
    if p50.ci95 is None:
        return None
    return max(p50.ci95[1] - p50.value, p50.value - p50.ci95[0]) / p50.value


def enough(values: Sequence[float], n: int, cap: int, users: int = 1) -> bool:
    """Whether a cell may stop: at ``n`` (of this process, in whole rounds), or later while its median is
    uncertain, but not past ``cap``. Where n is too small for an interval, more would cost a budget that
    was chosen to be small: the cell stops at n."""
    done = len(values)
    if done < whole_rounds(n, users) or done % users:
        return False
    if done >= whole_rounds(cap, users):
        return True
    uncertainty = median_uncertainty(values, users)
    return uncertainty is None or uncertainty <= config.MEDIAN_CI_HALF_WIDTH


def drift(values: Sequence[float]) -> float | None:
    """Median of the window's last third over that of its first third, minus 1."""
    if len(values) < FEWEST_FOR_DRIFT:
        return None
    third = len(values) // 3
    return stats.median(values[-third:]) / stats.median(values[:third]) - 1


def throughput(finished: Iterable[float], start: float, images: int) -> float:
    """Images a second over the steady window, from ``start``, when a request ended, to the last of
    ``finished``: the times, on one clock, at which requests ended.

    Requests of the dropped first round that end inside the window were delivered in it and count: with
    4 users and n = 8 leaving them out would understate the server by a quarter.
    """
    inside = [moment for moment in finished if moment > start]
    if not inside:
        raise ValueError("no request finished in the window")
    return len(inside) * images / (max(inside) - start)


def batch_efficiency(one: Sequence[float], many: Sequence[float], images: int) -> float:
    """images * t(1 image) / t(this many images), medians at one user; 1 means batching gains nothing."""
    return images * stats.median(one) / stats.median(many)


def scaling_efficiency(one_gpu_seconds: float, seconds: float, gpus: int) -> float:
    """T1 / (N * TN). Which T1 is meant (fastest lossless stack, or this one's own) is the caller's to say."""
    return one_gpu_seconds / (gpus * seconds)


def references_disagree(before: float, after: float) -> bool:
    """Whether two neighbouring references, in median seconds, are so far apart that what was measured between
    them is ``suspect``."""
    return abs(before - after) > config.COMPARISON.reference_drift * min(before, after)


def summed(requests: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """axis -> each figure's sum over the requests."""
    totals: dict[str, dict[str, int]] = {}
    for request in requests:
        for axis, counts in request.items():
            total = totals.setdefault(axis, {})
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
    return totals
