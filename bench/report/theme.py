"""How charts look: colours, sizes, and the layout that all of them share.

One accent: it marks the best; everything else is ink and grey. Colours are the page's light ones; ``draw``
replaces them by the page's variables where a chart stands inline.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from bench.report.chart_data import Rows

INK, MUTED, GRID, MARK, ACCENT, PAPER = "#1b1f24", "#59626d", "#d5dae1", "#8a94a0", "#0b62c4", "#ffffff"
IDLE = "#c4cad2"
TONES = {"best": ACCENT, "plain": INK, "weak": MUTED}

KIND_COLOURS = {
    "gemm": "#0072b2",
    "attention": "#e69f00",
    "elementwise": "#009e73",
    "convolution": "#cc79a7",
    "copy": "#56b4e9",
    "communication": "#d55e00",
    "idle": IDLE,
}
"""Of kernels, and of none. The palette of Okabe and Ito (jfly.uni-koeln.de/color), made to be told apart by
colour-blind readers; all but the last are the same on light and dark paper."""

WIDTH = 460
"""Pixels. A phone shows it whole, at four fifths."""
ROW_HEIGHT = 33
"""Of one stack: its name, and its marks below."""
LABEL_RISE = 15
"""Pixels from the middle of a stack's marks up to the middle of its name."""
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
FONT_SIZE = 12
LETTER_WIDTH = 5.6
"""Of such text, on average."""

DATA = alt.NamedData("rows")
"""Definitions name their data; ``Figure.vega_lite`` puts it in."""


def lines(data: Rows) -> alt.Y:
    """The vertical axis of a chart with one line a stack. What places it is the row's id, so that no two
    stacks share a line; the name stands above, whole, over the full width."""
    labels = {row["row"]: row["label"] for row in data}
    axis = alt.Axis(
        labelExpr=f"({json.dumps(labels, ensure_ascii=False)})[datum.value]",
        labelAlign="left",
        labelPadding=0,
        labelOffset=-LABEL_RISE,
        labelColor=INK,
        tickSize=0,
        grid=True,
    )
    return alt.Y("row:N", title=None, scale=alt.Scale(domain=list(labels)), axis=axis)


def values(data: Rows, tone: alt.Color | None = None) -> alt.Chart:
    """What is printed of each stack, at the end of the line with its name."""
    mark = (
        alt.Chart(DATA)
        .transform_filter("isValid(datum.value)")
        .mark_text(align="right", dy=-LABEL_RISE, fontSize=FONT_SIZE, fontWeight=600)
    )
    return mark.encode(x=alt.value(WIDTH), y=lines(data), text="value:N", color=tone or alt.value(INK))


def tone() -> alt.Color:
    return alt.Color("tone:N", scale=alt.Scale(domain=list(TONES), range=list(TONES.values())), legend=None)


def strips(chart: Any, data: Rows) -> alt.TopLevelMixin:
    """The layout of a chart with one line a stack."""
    stacks = len({row["row"] for row in data})
    return themed(chart.properties(width=WIDTH, height=ROW_HEIGHT * stacks))


def themed(chart: Any) -> alt.TopLevelMixin:
    symbols = {"symbolSize": 60, "symbolBaseFillColor": INK, "symbolBaseStrokeColor": INK}
    axis = {"domain": False, "ticks": False, "gridColor": GRID, "labelColor": MUTED, "titleColor": MUTED}
    text = {"labelFontSize": FONT_SIZE, "titleFontSize": FONT_SIZE, "labelLimit": 0}
    return (
        chart.configure(font=FONT, background=PAPER, aria=False, padding=3)
        .configure_view(stroke=None)
        .configure_axis(**axis, **text, labelOverlap=False, titleFontWeight=400)
        .configure_legend(**text, labelColor=INK, titleColor=MUTED, orient="top", title=None, **symbols)
    )


def decades(values: Sequence[float]) -> alt.Axis:
    """Ticks of a logarithmic axis: at 1, 2 and 5 of each decade that the values touch, and at more where they
    touch little of one."""
    low, high = min(values), max(values)
    steps = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
    ticks = [step * 10.0**decade for decade in range(first, last + 1) for step in steps]
    return alt.Axis(values=ticks, format="~g")
