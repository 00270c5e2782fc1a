"""Charts with one line a stack: its name and its number, and its marks below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from bench.kernel_kinds import HINTS
from bench.report.chart_data import BASES, MOMENTS, Rows
from bench.report.theme import (
    ACCENT,
    DATA,
    INK,
    KIND_COLOURS,
    MARK,
    PAPER,
    decades,
    lines,
    strips,
    tone,
)

LOG_FROM_RATIO = 3.0
"""A wider range of latencies than this is drawn on a logarithmic axis."""
LEAST_RANGE_SHOWN = 0.05
"""An axis of latencies spans at least this share, one of gains reaches as far to both sides of 1: noise shall
not look like a difference."""
FREE: dict[str, Any] = {"zero": False, "nice": False, "padding": 8}
"""Of an axis whose ends are told."""
FEW_TICKS = alt.Axis(tickCount=6)

BAR = "M-0.3,-1.6L0.3,-1.6L0.3,1.6L-0.3,1.6Z"
"""A shape whose ends are seen even where another mark lies upon it."""
STYLES = ((ACCENT, BAR), (INK, "circle"), (MARK, "square"))
"""(colour, shape) of the first series of a chart, the second, the third."""


def latency(data: Rows) -> alt.TopLevelMixin:
    seconds = [row["seconds"] for row in data if "seconds" in row]
    low, high = min(seconds), max(seconds)
    wide, missing = high > LOG_FROM_RATIO * low, max(0.0, LEAST_RANGE_SHOWN - (high / low - 1)) * low / 2
    title = "seconds per request, one user, one image"
    title += ", logarithmic" if wide else ""
    title += "; dashed: the reference" if any("reference" in row for row in data) else ""
    scale = alt.Scale(type="log" if wide else "linear", domain=[low - missing, high + missing], **FREE)
    x = alt.X("seconds:Q", title=title, scale=scale, axis=decades(seconds) if wide else FEW_TICKS)
    base, y = alt.Chart(DATA), lines(data)
    medians = base.transform_filter("isValid(datum.p50)")
    return strips(
        data,
        base.transform_filter("isValid(datum.seconds)")
        .mark_tick(color=MARK, opacity=0.6, thickness=1.2, size=10)
        .encode(x=x, y=y),
        medians.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"), y=y, color=tone()),
        medians.mark_point(filled=True, size=50, opacity=1).encode(x=alt.X("p50:Q"), y=y, color=tone()),
        behind=[
            base.transform_filter("isValid(datum.reference)")
            .mark_rule(color=MARK, strokeDash=[4, 3])
            .encode(x=alt.X("reference:Q"))
        ],
    )


def life(data: Rows) -> alt.TopLevelMixin:
    scale = alt.Scale(type="log", nice=False, padding=12)
    axis = decades([row["x"] for row in data])
    x = alt.X("x:Q", title="seconds, logarithmic", scale=scale, axis=axis)
    return strips(data, _series(data, MOMENTS, x))


def kernels(data: Rows) -> alt.TopLevelMixin:
    kinds = [*HINTS, "idle"]
    present = [kind for kind in kinds if any(row.get("kind") == kind for row in data)]
    colour = alt.Scale(domain=present, range=[KIND_COLOURS[kind] for kind in present])
    base, y = alt.Chart(DATA), lines(data)
    title = "seconds of one request, one image; line: how long it takes"
    return strips(
        data,
        base.transform_filter("isValid(datum.kind)")
        .transform_calculate(rank=f"indexof({kinds}, datum.kind)")
        .mark_bar(height=11, stroke=PAPER, strokeWidth=0.5)
        .encode(
            x=alt.X("seconds:Q", title=title, axis=FEW_TICKS),
            y=y,
            color=alt.Color("kind:N", scale=colour, legend=alt.Legend(columns=4, symbolType="square")),
            order=alt.Order("rank:Q"),
        ),
        base.transform_filter("isValid(datum.service)")
        .mark_tick(color=INK, opacity=1, thickness=2, size=17)
        .encode(x=alt.X("service:Q"), y=y),
    )


def layers(data: Rows) -> alt.TopLevelMixin:
    ends = [row[name] for row in data for name in ("gain", "low", "high") if row[name] is not None]
    domain = [min(*ends, 1 - LEAST_RANGE_SHOWN), max(*ends, 1 + LEAST_RANGE_SHOWN)]
    title = "times as fast as its parent; grey: not certain"
    x = alt.X("gain:Q", title=title, scale=alt.Scale(domain=domain, **FREE), axis=FEW_TICKS)
    base, y = alt.Chart(DATA), lines(data)
    return strips(
        data,
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=3)
        .encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"), y=y, color=tone()),
        base.mark_point(filled=True, size=50, opacity=1).encode(x=x, y=y, color=tone()),
        behind=[_rule(1)],
    )


def efficiency(data: Rows) -> alt.TopLevelMixin:
    """All GPUs at work all the time would be 100 %."""
    most = max(100.0, *(row["x"] for row in data if "x" in row))
    scale = alt.Scale(domain=[0, most], **FREE)
    x = alt.X("x:Q", title="T1 ÷ (N × TN), per cent", scale=scale, axis=FEW_TICKS)
    return strips(data, _series(data, BASES, x), behind=[_rule(100)])


def throughput(data: Rows) -> alt.TopLevelMixin:
    users = sorted({row["series"] for row in data if "series" in row}, key=lambda name: int(name.split()[0]))
    scale = alt.Scale(domainMin=0, padding=8)
    x = alt.X("x:Q", title="images per second, one image a request", scale=scale, axis=FEW_TICKS)
    return strips(data, _series(data, users, x))


def _series(data: Rows, names: Sequence[str], x: alt.X) -> alt.Chart:
    """``names`` are those of the styles; what has no point is not in the legend."""
    styles = {
        name: style
        for name, style in zip(names, STYLES, strict=False)
        if any(row.get("series") == name for row in data)
    }
    colours, shapes = zip(*styles.values(), strict=True)
    return (
        alt.Chart(DATA)
        .transform_filter("isValid(datum.x)")
        .mark_point(filled=True, size=60, opacity=1)
        .encode(
            x=x,
            y=lines(data),
            color=alt.Color("series:N", scale=alt.Scale(domain=list(styles), range=list(colours))),
            shape=alt.Shape("series:N", scale=alt.Scale(domain=list(styles), range=list(shapes))),
        )
    )


def _rule(x: float) -> alt.Chart:
    return alt.Chart(alt.Data(values=[{}])).mark_rule(color=MARK, strokeDash=[4, 3]).encode(x=alt.XDatum(x))
