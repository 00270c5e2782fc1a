"""Charts of one use case, defined in Altair. Pure: ``draw`` turns the definitions into files.

One accent: it marks the fastest stack, everything else is ink and grey. Colours are the page's light
ones; ``draw`` replaces them by the page's variables where a chart stands inline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from bench.kernel_kinds import HINTS
from bench.report.chart_data import (
    BASES,
    MOST_STACKS,
    Rows,
    efficiency_rows,
    gain_rows,
    kernel_rows,
    latency_rows,
    life_rows,
    memory_rows,
    quality_rows,
    throughput_rows,
)
from bench.report.gains import Gains
from bench.report.groups import Section, UseCase, fastest
from bench.report.matrix_table import scope
from bench.report.scaling import Scaled

INK, MUTED, GRID, MARK, ACCENT, PAPER = "#1b1f24", "#59626d", "#d5dae1", "#8a94a0", "#0b62c4", "#ffffff"

WIDTH = 560
"""Pixels, labels of the stacks included."""
LETTER_WIDTH = 5.8
"""Of an axis label, on average. Vega could fit labels itself, but measures every text several times for it:
two thirds of the time that a chart takes."""
ROW_HEIGHT = 24
SCATTER_WIDTH, SCATTER_HEIGHT = 500, 230
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"

LOG_FROM_RATIO = 3.0
"""A wider range of latencies than this is drawn on a logarithmic axis."""

DATA = alt.NamedData("rows")
"""Definitions name their data; ``Figure.vega_lite`` puts it in."""


@dataclass(frozen=True)
class Figure:
    """A chart with the words that stand above it."""

    name: str
    """Its file name, without the ending."""
    title: str
    subtitle: str
    definition: Callable[[Rows], alt.TopLevelMixin]
    data: Rows

    def vega_lite(self) -> dict[str, Any]:
        with debug_mode(False):  # Altair would check each part against its schema: ten times slower
            specification = self.definition(self.data).to_dict(validate=False)
        return specification | {"datasets": {"rows": self.data}}


def figures(section: Section, case: UseCase, gains: Gains, scaled: Sequence[Scaled] = ()) -> list[Figure]:
    """The charts that the use case has data for."""
    stem = f"{section.slug}-{case.slug}"
    shown = [each for each in case.measurements if each.cell()][:MOST_STACKS]
    hidden = sum(1 for each in case.measurements if each.cell()) - len(shown)
    where = scope(section) + (f" · {hidden} slower stacks are in the table" if hidden else "")
    best = fastest(case.measurements)

    def figure(
        name: str, title: str, data: Rows, draw: Callable[[Rows], alt.TopLevelMixin], least: int = 1
    ) -> Iterable[Figure]:
        if len(data) >= least:
            yield Figure(f"{stem}-{name}", f"{title}: {case.title}", where, draw, data)

    return [
        *figure("latency", "Latency distribution", latency_rows(shown, best), latency),
        *figure("life", "Warm-up, first and steady requests", life_rows(shown), life),
        *figure("memory", "Throughput against memory", memory_rows(shown, best), memory, least=2),
        *figure("kernels", "Where the GPU's time goes", kernel_rows(shown), kernels),
        *figure("quality", "Speed against quality", quality_rows(shown, best), quality, least=2),
        *figure("gains", "Gains by layer", gain_rows(gains), layers),
        *figure("scaling", "Scaling efficiency", efficiency_rows(scaled), efficiency),
        *figure("throughput", "Throughput against replicas", throughput_rows(scaled), throughput),
    ]


def latency(data: Rows) -> alt.TopLevelMixin:
    order = list(dict.fromkeys(row["stack"] for row in data))
    y = alt.Y("stack:N", sort=order, title=None)
    seconds = [value for row in data if (value := row.get("seconds"))]
    wide = max(seconds) > LOG_FROM_RATIO * min(seconds)
    title = "seconds per request, one user, one image" + (" (logarithmic)" if wide else "")
    scale = alt.Scale(type="log" if wide else "linear", zero=False, nice=False, padding=36)
    axis = _decades(seconds) if wide else alt.Axis(tickCount=6)
    x = alt.X("seconds:Q", title=title, scale=scale, axis=axis)
    base = alt.Chart(DATA)
    dots = base.transform_filter("isValid(datum.seconds)").mark_tick(
        color=MARK, opacity=0.55, thickness=1.2, size=11
    )
    medians = base.transform_filter("isValid(datum.p50)")
    interval = medians.mark_rule(strokeWidth=5, opacity=0.85)
    point = medians.mark_point(filled=True, size=55, opacity=1)
    text = medians.mark_text(align="left", dx=9, dy=-8, fontSize=11, fontWeight=600)
    colour = _accented("best")
    return _themed(
        alt.layer(
            dots.encode(x=x, y=y),
            interval.encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
            point.encode(x="p50:Q", y=y, color=colour),
            text.encode(x="p50:Q", y=y, text=alt.Text("p50:Q", format=".3r"), color=colour),
        ),
        labels=order,
    )


def life(data: Rows) -> alt.TopLevelMixin:
    order = list(dict.fromkeys(row["stack"] for row in data))
    moments = ["warm-up, all requests", "first request", "steady request, p50"]
    chart = alt.Chart(DATA).mark_point(filled=True, size=70, opacity=1)
    moment = alt.Scale(domain=moments, range=[MARK, INK, ACCENT])
    shape = alt.Scale(domain=moments, range=["square", "diamond", "circle"])
    legend = alt.Legend(title=None, orient="top")
    scale = alt.Scale(type="log", nice=False, padding=12)
    axis = _decades([row["seconds"] for row in data])
    return _themed(
        chart.encode(
            x=alt.X("seconds:Q", title="seconds (logarithmic)", scale=scale, axis=axis),
            y=alt.Y("stack:N", sort=order, title=None),
            color=alt.Color("moment:N", scale=moment, legend=legend),
            shape=alt.Shape("moment:N", scale=shape, legend=legend),
        ),
        labels=order,
    )


def kernels(data: Rows) -> alt.TopLevelMixin:
    order = list(dict.fromkeys(row["stack"] for row in data))
    kinds = [*HINTS, "idle"]
    present = [kind for kind in kinds if any(row["kind"] == kind for row in data)]
    shades = dict(zip(kinds, (INK, ACCENT, MARK, "#7fb0e6", "#b9c2cd", "#c2571a", GRID), strict=True))
    colour = alt.Scale(domain=present, range=[shades[kind] for kind in present])
    legend = alt.Legend(title=None, orient="top")
    return _themed(
        alt.Chart(DATA)
        .mark_bar(height=13)
        .transform_calculate(rank=f"indexof({kinds}, datum.kind)")
        .encode(
            x=alt.X("seconds:Q", title="seconds of one request, one image", axis=alt.Axis(tickCount=6)),
            y=alt.Y("stack:N", sort=order, title=None),
            color=alt.Color("kind:N", scale=colour, legend=legend),
            order=alt.Order("rank:Q"),
        ),
        labels=order,
    )


def memory(data: Rows) -> alt.TopLevelMixin:
    points = alt.Chart(DATA).mark_point(filled=True, size=75, opacity=0.9)
    near, few = alt.Scale(zero=False, padding=12), alt.Axis(tickCount=6)
    return _themed(
        points.encode(
            x=alt.X("memory:Q", title="peak memory (GB)", scale=near, axis=few),
            y=alt.Y("images:Q", title="images per second", scale=near),
            color=_accented("best"),
            shape=alt.Shape("cell:N", legend=alt.Legend(title="users × images", orient="top")),
        ),
    )


def quality(data: Rows) -> alt.TopLevelMixin:
    """Up and left is better. The scale is linear near 0, where identical pictures are."""
    error = alt.Scale(type="symlog", constant=0.005, reverse=True, domainMin=0)
    ticks = alt.Axis(values=[0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], format="~g")
    near = alt.Scale(zero=False, nice=False, padding=40)
    base = alt.Chart(DATA).encode(
        x=alt.X("p50:Q", title="p50, one user, one image (s)", scale=near, axis=alt.Axis(tickCount=6)),
        y=alt.Y("error:Q", title="relative latent error, upwards is closer", scale=error, axis=ticks),
        color=_accented("best"),
    )
    labels = base.mark_text(align="left", dx=8, fontSize=10).encode(text="stack:N")
    return _themed(alt.layer(base.mark_point(filled=True, size=75, opacity=1), labels))


def layers(data: Rows) -> alt.TopLevelMixin:
    base = alt.Chart(DATA)
    y = alt.Y("layer:N", sort=None, title=None)
    one = alt.Chart(alt.Data(values=[{}])).mark_rule(color=MARK, strokeDash=[4, 3]).encode(x=alt.datum(1))
    colour = _accented("faster")
    near = alt.Scale(zero=False, nice=False, padding=36)
    text = base.mark_text(align="left", dx=9, dy=-8, fontSize=11, fontWeight=600).encode(
        x="gain:Q", y=y, text=alt.Text("gain:Q", format=".2f"), color=colour
    )
    return _themed(
        alt.layer(
            one,
            base.transform_filter("isValid(datum.low)")
            .mark_rule(strokeWidth=5, opacity=0.85)
            .encode(x="low:Q", x2="high:Q", y=y, color=colour),
            base.mark_point(filled=True, size=55, opacity=1).encode(
                x=alt.X(
                    "gain:Q", title="times as fast as its parent", scale=near, axis=alt.Axis(tickCount=6)
                ),
                y=y,
                color=colour,
            ),
            text,
        ),
        labels=[row["layer"] for row in data],
    )


def efficiency(data: Rows) -> alt.TopLevelMixin:
    """All GPUs at work all the time would be 100 %."""
    order = list(dict.fromkeys(row["stack"] for row in data))
    kinds = alt.Scale(domain=list(BASES), range=[ACCENT, INK])
    ideal = alt.Chart(alt.Data(values=[{}])).mark_rule(color=MARK, strokeDash=[4, 3]).encode(x=alt.datum(100))
    points = alt.Chart(DATA).mark_point(filled=True, size=70, opacity=1)
    return _themed(
        alt.layer(
            ideal,
            points.encode(
                x=alt.X("percent:Q", title="T1 ÷ (N × TN), per cent", axis=alt.Axis(tickCount=6)),
                y=alt.Y("stack:N", sort=order, title=None),
                color=alt.Color("basis:N", scale=kinds, legend=alt.Legend(title=None, orient="top")),
            ),
        ),
        labels=order,
    )


def throughput(data: Rows) -> alt.TopLevelMixin:
    order = list(dict.fromkeys(row["stack"] for row in data))
    users = sorted({row["users"] for row in data})
    shades = alt.Scale(domain=users, range=[MARK, ACCENT])
    return _themed(
        alt.Chart(DATA)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            x=alt.X("images:Q", title="images per second, one image a request", axis=alt.Axis(tickCount=6)),
            y=alt.Y("stack:N", sort=order, title=None),
            color=alt.Color("users:N", scale=shades, legend=alt.Legend(title="users", orient="top")),
        ),
        labels=order,
    )


def _accented(field: str) -> alt.Color:
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=[True, False], range=[ACCENT, INK]), legend=None)


def _decades(values: Sequence[float]) -> alt.Axis:
    """Ticks at 1, 2 and 5 of each decade that the values touch."""
    first, last = (math.floor(math.log10(value)) for value in (min(values), max(values)))
    ticks = [step * 10.0**decade for decade in range(first, last + 1) for step in (1, 2, 5)]
    return alt.Axis(values=ticks, format="~g")


def _themed(chart: Any, labels: Sequence[str] = ()) -> alt.TopLevelMixin:
    """``labels``: those of the vertical axis where it names stacks, one a line."""
    width = WIDTH - LETTER_WIDTH * max(map(len, labels)) if labels else SCATTER_WIDTH
    height = max(ROW_HEIGHT * len(labels), 60) if labels else SCATTER_HEIGHT
    symbols = {"symbolSize": 60, "symbolBaseFillColor": INK, "symbolBaseStrokeColor": INK}
    axis = {"domain": False, "ticks": False, "gridColor": GRID, "labelColor": MUTED, "titleColor": MUTED}
    text = {"labelFontSize": 11, "titleFontSize": 11, "labelLimit": 0, "labelOverlap": False}
    return (
        chart.properties(width=width, height=height)
        .configure(font=FONT, background=PAPER, aria=False)
        .configure_view(stroke=None)
        .configure_axis(**axis, **text, titleFontWeight=400)
        .configure_axisY(labelColor=INK, grid=True)
        .configure_legend(labelColor=INK, titleColor=MUTED, labelFontSize=11, labelLimit=0, **symbols)
    )
