"""Charts of one use case, defined in Altair. Pure: ``draw`` turns the definitions into files.

One accent: it marks the fastest stack, everything else is ink and grey. Colours are the page's light
ones; ``draw`` replaces them by the page's variables where a chart stands inline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from bench.report import names
from bench.report.gains import Gains
from bench.report.groups import Section, UseCase, fastest
from bench.report.matrix_table import memory_gb, scope
from bench.report.pool import Measurement

INK, MUTED, GRID, MARK, ACCENT, PAPER = "#1b1f24", "#59626d", "#d5dae1", "#8a94a0", "#0b62c4", "#ffffff"

WIDTH = 560
"""Pixels, labels included."""
ROW_HEIGHT = 24
CAPTIONS = 48
"""Pixels for the axis below, or the legend above."""
MOST_STACKS = 20
"""A chart shows the fastest; the table beside it shows all."""
MOST_DOTS = 40
"""Requests drawn a stack: evenly spaced order statistics, smallest and largest among them."""

LOG_FROM_RATIO = 3.0
"""A wider range of latencies than this is drawn on a logarithmic axis."""

Rows = list[dict[str, Any]]
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


def figures(section: Section, case: UseCase, gains: Gains) -> list[Figure]:
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
        *figure("quality", "Speed against quality", quality_rows(shown, best), quality, least=2),
        *figure("gains", "Gains by layer", gain_rows(gains), gain_bars),
    ]


# --- Data --------------------------------------------------------------------------------------------


def _label(measurement: Measurement) -> str:
    role = names.role(measurement.row)
    return names.stack(measurement.row) + (f" ({role})" if role else "")


def latency_rows(shown: Sequence[Measurement], best: Measurement | None) -> Rows:
    """One row a dot; the statistics stand in each first row of a stack."""
    rows: Rows = []
    for each in shown:
        cell = each.cell()
        if cell is None:
            continue
        latency = cell.latency
        common = {"stack": _label(each), "best": each is best}
        rows.extend({**common, "seconds": round(value, 6)} for value in thinned(latency.raw))
        if latency.p50.supported:
            low, high = latency.p50.ci95 or (None, None)
            rows.append({**common, "p50": latency.p50.value, "low": low, "high": high})
    return rows


def thinned(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    if len(ordered) <= MOST_DOTS:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (MOST_DOTS - 1))] for index in range(MOST_DOTS)]


def life_rows(shown: Sequence[Measurement]) -> Rows:
    rows: Rows = []
    for each in shown:
        result, cell = each.latest, each.cell()
        moments = {
            "warm-up, all requests": sum(result.warmup.seconds) if result.warmup else None,
            "first request": result.first_request_seconds,
            "steady request, p50": cell.latency.p50.value if cell and cell.latency.p50.supported else None,
        }
        rows.extend(
            {"stack": _label(each), "moment": moment, "seconds": seconds}
            for moment, seconds in moments.items()
            if seconds
        )
    return rows


def memory_rows(shown: Sequence[Measurement], best: Measurement | None) -> Rows:
    return [
        {
            "stack": _label(each),
            "best": each is best,
            "cell": f"{cell.users}×{cell.images}",
            "memory": peak,
            "images": cell.throughput_images_per_s,
        }
        for each in shown
        for cell in each.cells.values()
        if (peak := memory_gb(cell)) is not None and cell.throughput_images_per_s is not None
    ]


def quality_rows(shown: Sequence[Measurement], best: Measurement | None) -> Rows:
    rows: Rows = []
    for each in shown:
        cell = each.cell()
        error = 0.0 if each.row.is_reference else each.quality and each.quality.latent_relative_error
        if cell and cell.latency.p50.supported and error is not None:
            p50 = cell.latency.p50.value
            rows.append({"stack": _label(each), "best": each is best, "p50": p50, "error": error})
    return rows


def gain_rows(gains: Gains) -> Rows:
    rows: Rows = []
    for layer in gains.layers[:MOST_STACKS]:
        bounds = layer.gain.ratio.interval()
        rows.append(
            {
                "layer": names.layer(layer.measurement.row, layer.parent.row),
                "gain": layer.gain.ratio.value,
                "low": bounds[0] if bounds else None,
                "high": bounds[1] if bounds else None,
                "faster": layer.gain.verdict == "FASTER",
            }
        )
    return rows


# --- Drawing -----------------------------------------------------------------------------------------


def latency(data: Rows) -> alt.TopLevelMixin:
    order = list(dict.fromkeys(row["stack"] for row in data))
    y = alt.Y("stack:N", sort=order, title=None)
    seconds = [value for row in data if (value := row.get("seconds"))]
    wide = max(seconds) > LOG_FROM_RATIO * min(seconds)
    title = "seconds per request, one user, one image" + (" (logarithmic)" if wide else "")
    scale = alt.Scale(type="log" if wide else "linear", zero=False, padding=36)
    x = alt.X("seconds:Q", title=title, scale=scale)
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
        height=ROW_HEIGHT * len(order),
    )


def life(data: Rows) -> alt.TopLevelMixin:
    order = list(dict.fromkeys(row["stack"] for row in data))
    moments = ["warm-up, all requests", "first request", "steady request, p50"]
    chart = alt.Chart(DATA).mark_point(filled=True, size=70, opacity=1)
    moment = alt.Scale(domain=moments, range=[MARK, INK, ACCENT])
    shape = alt.Scale(domain=moments, range=["square", "diamond", "circle"])
    legend = alt.Legend(title=None, orient="top")
    return _themed(
        chart.encode(
            x=alt.X("seconds:Q", title="seconds (logarithmic)", scale=alt.Scale(type="log", nice=True)),
            y=alt.Y("stack:N", sort=order, title=None),
            color=alt.Color("moment:N", scale=moment, legend=legend),
            shape=alt.Shape("moment:N", scale=shape, legend=legend),
        ),
        height=ROW_HEIGHT * len(order),
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
        height=260,
    )


def quality(data: Rows) -> alt.TopLevelMixin:
    """Up and left is better. The scale is linear near 0, where identical pictures are."""
    error = alt.Scale(type="symlog", constant=0.005, reverse=True, domainMin=0)
    ticks = alt.Axis(values=[0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], format="~g")
    base = alt.Chart(DATA).encode(
        x=alt.X("p50:Q", title="p50, one user, one image (s)", scale=alt.Scale(zero=False, padding=40)),
        y=alt.Y("error:Q", title="relative latent error, upwards is closer", scale=error, axis=ticks),
        color=_accented("best"),
    )
    labels = base.mark_text(align="left", dx=8, fontSize=10).encode(text="stack:N")
    return _themed(alt.layer(base.mark_point(filled=True, size=75, opacity=1), labels), height=260)


def gain_bars(data: Rows) -> alt.TopLevelMixin:
    base = alt.Chart(DATA)
    y = alt.Y("layer:N", sort=None, title=None)
    one = base.mark_rule(color=MARK, strokeDash=[4, 3]).encode(x=alt.datum(1))
    colour = _accented("faster")
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
                    "gain:Q", title="times as fast as its parent", scale=alt.Scale(zero=False, padding=20)
                ),
                y=y,
                color=colour,
            ),
            text,
        ),
        height=ROW_HEIGHT * len(data),
    )


def _accented(field: str) -> alt.Color:
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=[True, False], range=[ACCENT, INK]), legend=None)


def _themed(chart: Any, height: int) -> alt.TopLevelMixin:
    base = {"symbolBaseFillColor": INK, "symbolBaseStrokeColor": INK}
    font = "Liberation Sans, Arial, Helvetica, sans-serif"
    axis = {"domain": False, "ticks": False, "gridColor": GRID, "labelColor": MUTED, "titleColor": MUTED}
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return (
        chart.properties(width=WIDTH, height=max(height, 60) + CAPTIONS, autosize=fit)
        .configure(font=font, background=PAPER, aria=False)
        .configure_view(stroke=None)
        .configure_axis(**axis, labelFontSize=11, titleFontSize=11, titleFontWeight=400, labelLimit=260)
        .configure_axisY(labelColor=INK, grid=True)
        .configure_legend(labelColor=INK, titleColor=MUTED, labelFontSize=11, symbolSize=60, **base)
    )
