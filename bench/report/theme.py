"""How charts look: colours, sizes, and the layout that all of them share.

One accent: it marks the best; everything else is ink and grey. Colours are the page's light ones; ``draw``
replaces them by the page's variables where a chart stands inline.
"""

from __future__ import annotations

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
PADDING = 3
"""Around the whole chart."""
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
    stacks share a line."""
    order = list(dict.fromkeys(row["row"] for row in data))
    return alt.Y("row:N", title=None, scale=alt.Scale(domain=order), axis=alt.Axis(labels=False, grid=True))


def words(data: Rows) -> tuple[alt.Chart, alt.Chart, alt.Chart]:
    """What stands above a stack's marks, as layers: room in which no grid runs through the words; the name,
    whole; at the end of its line what is printed of the stack."""
    stacks = {row["row"]: row for row in reversed(data)}
    told = [
        {
            **{name: row[name] for name in ("row", "label")},
            "value": row.get("value", ""),
            "colour": TONES[row.get("tone", "plain")],
        }
        for row in stacks.values()
    ]
    base = alt.Chart(alt.Data(values=told)).encode(y=lines(data))
    room = base.mark_bar(color=PAPER, height=LABEL_RISE, yOffset=-LABEL_RISE, y2Offset=-LABEL_RISE)
    name = base.mark_text(align="left", dy=-LABEL_RISE, fontSize=FONT_SIZE, color=INK)
    value = base.mark_text(align="right", dy=-LABEL_RISE, fontSize=FONT_SIZE, fontWeight=600)
    return (
        room.encode(x=alt.XValue(0), x2=alt.X2Value(WIDTH)),
        name.encode(x=alt.XValue(0), text=alt.Text("label:N")),
        value.encode(x=alt.XValue(WIDTH), text=alt.Text("value:N"), color=alt.Color("colour:N", scale=None)),
    )


def tone() -> alt.Color:
    return alt.Color("tone:N", scale=alt.Scale(domain=list(TONES), range=list(TONES.values())), legend=None)


def strips(data: Rows, *marks: alt.Chart, behind: Sequence[alt.Chart] = ()) -> alt.TopLevelMixin:
    """A chart with one line a stack. What is ``behind`` runs through all lines, but not through the words."""
    stacks = len({row["row"] for row in data})
    room, *told = words(data)
    chart = alt.layer(*behind, room, *marks, *told)
    return themed(chart.properties(width=WIDTH, height=ROW_HEIGHT * stacks))


def themed(chart: Any) -> alt.TopLevelMixin:
    symbols = {"symbolSize": 60, "symbolBaseFillColor": INK, "symbolBaseStrokeColor": INK}
    axis = {"domain": False, "ticks": False, "gridColor": GRID, "labelColor": MUTED, "titleColor": MUTED}
    text = {"labelFontSize": FONT_SIZE, "titleFontSize": FONT_SIZE, "labelLimit": 0}
    return (
        chart.configure(font=FONT, background=PAPER, aria=False, padding=PADDING)
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
