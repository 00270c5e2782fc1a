"""How numbers become text. A missing value is an en dash, never 0; a percentile of too few requests is
never printed bare (METHOD.md section 3)."""

from __future__ import annotations

from collections.abc import Iterable

from bench.record import Distribution, Quantile

MISSING = "–"
SMALLEST = 0.0001


def number(value: float | None) -> str:
    """Three significant digits, whole above 100: 5.26, 0.0413, 1234. A wait of two microseconds is
    ``<0.0001``."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if 0 < value < SMALLEST:
        return f"<{SMALLEST:g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0f}"


def ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}×"


def ratio_bounds(bounds: tuple[float, float]) -> str:
    """``0.995–1.023``: with two digits a bound beside 1 would not show on which side it lies."""
    return f"{bounds[0]:.3f}–{bounds[1]:.3f}"


def quantile(value: Quantile | None, latency: Distribution | None) -> str:
    """``7.02``, or ``n=20, max 7.31`` where n does not carry the percentile."""
    if value is None or latency is None:
        return MISSING
    if value.supported:
        return number(value.value)
    return f"n={len(latency.raw)}, max {number(latency.max)}"


def interval(ci95: tuple[float, float] | None) -> str:
    """``5.21–5.30``: the 95 % confidence interval."""
    return MISSING if ci95 is None else f"{number(ci95[0])}–{number(ci95[1])}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{number(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def days(moments: Iterable[str]) -> str:
    """``2026-11-22 to 2026-11-23`` of ISO 8601 moments."""
    ordered = sorted(moment[:10] for moment in moments)
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def sentence(text: str) -> str:
    """Its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]
