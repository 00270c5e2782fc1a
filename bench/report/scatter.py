"""Charts with one dot a stack. Each dot bears its row's id, and a key below says which stack that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from bench.config import QUALITY_TIERS
from bench.report.chart_data import Rows
from bench.report.dot_names import Dot, offsets
from bench.report.theme import FONT_SIZE, MARK, MUTED, WIDTH, themed, tone

AXIS_ROOM = 44
"""Pixels of the vertical axis, title included."""
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - AXIS_ROOM, 240
MARGIN = 0.08
"""Of the plot, left free around the dots."""
NAME_SIZE = FONT_SIZE - 1
DIGIT_WIDTH = 6.2
"""Of a letter of an id, at that size."""
KEY_LINE = 16


LINEAR_NEAR_0 = 0.005
"""Errors up to about here are drawn linearly, greater ones logarithmically: identical pictures are at 0."""
ERROR_TICKS = (0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
TIER_SHAPES = {"reference": "diamond", "lossless": "circle", "near": "square", "lossy": "triangle-down"}


def note(data: Rows) -> str:
    """What the places and tones of ``data`` mean."""
    tones = {
        "up and left is better": True,
        "blue: nothing else is better both ways": any(row["may_win"] for row in data),
        "grey: too few requests, marked, or speed only": not all(row["may_win"] for row in data),
    }
    return "; ".join(told for told, needed in tones.items() if needed)


Scale = Callable[[float], float]
"""From a value to its place between the axis' ends, 0 to 1."""


def memory(data: Rows) -> alt.TopLevelMixin:
    x_domain, y_domain = (_around([row[name] for row in data]) for name in ("x", "y"))
    shapes = alt.Legend(title="users × images", titleOrient="left")
    return _scatter(
        _dots(data, _linear(x_domain), _linear(y_domain), up_is_better=True),
        alt.X("x:Q", title="peak memory (GB)", scale=_scale(x_domain), axis=alt.Axis(tickCount=6)),
        alt.Y("y:Q", title="images per second", scale=_scale(y_domain), axis=alt.Axis(tickCount=6)),
        alt.Shape("cell:N", legend=shapes),
    )


def quality(data: Rows) -> alt.TopLevelMixin:
    bounds = [tier for tier in QUALITY_TIERS if math.isfinite(tier.max_latent_relative_error)]
    worst = max(row["y"] for row in data)
    x_domain = _around([row["x"] for row in data])
    y_domain = (0.0, 1.3 * max(worst, bounds[0].max_latent_relative_error))
    scale = alt.Scale(type="symlog", constant=LINEAR_NEAR_0, reverse=True, domain=y_domain, nice=False)
    tiers = [tier for tier in TIER_SHAPES if any(row["cell"] == tier for row in data)]
    shapes = alt.Scale(domain=tiers, range=[TIER_SHAPES[tier] for tier in tiers])
    limits = alt.Chart(
        alt.Data(
            values=[
                {
                    "y": tier.max_latent_relative_error,
                    "told": f"{tier.name}: at most {tier.max_latent_relative_error:g}",
                }
                for tier in bounds
                if tier.max_latent_relative_error < y_domain[1]
            ]
        )
    ).encode(y=alt.Y("y:Q"))
    return _scatter(
        _dots(data, _linear(x_domain), _symlog(y_domain[1]), up_is_better=False),
        alt.X(
            "x:Q", title="p50, one user, one image (s)", scale=_scale(x_domain), axis=alt.Axis(tickCount=6)
        ),
        alt.Y(
            "y:Q", title="relative latent error", scale=scale, axis=alt.Axis(values=ERROR_TICKS, format="~g")
        ),
        alt.Shape("cell:N", scale=shapes),
        limits.mark_rule(color=MARK, strokeDash=[4, 3]),
        limits.mark_text(align="right", dy=-7, color=MUTED, fontSize=NAME_SIZE).encode(
            x=alt.XValue(PLOT_WIDTH), text=alt.Text("told:N")
        ),
    )


def _scatter(dots: Rows, x: alt.X, y: alt.Y, shape: alt.Shape, *behind: alt.Chart) -> alt.TopLevelMixin:
    """``behind`` the dots; below them, the key."""
    base = alt.Chart(alt.Data(values=dots)).encode(x=x, y=y)
    cells = base.mark_line(color=MARK, strokeWidth=1).encode(detail=alt.Detail("row:N"))
    points = base.mark_point(filled=True, size=65, opacity=1).encode(shape=shape, color=tone())
    names = base.transform_filter("datum.named").mark_text(
        fontSize=NAME_SIZE, dx=alt.expr("datum.dx"), dy=alt.expr("datum.dy")
    )
    plot = alt.layer(*behind, cells, points, names.encode(text=alt.Text("row:N"), color=tone()))
    return themed(alt.vconcat(plot.properties(width=PLOT_WIDTH, height=PLOT_HEIGHT), _key(dots), spacing=6))


def _key(dots: Rows) -> Any:
    """Which stack an id is."""
    stacks = [dot for dot in dots if dot["named"]]
    indent = DIGIT_WIDTH * max(len(dot["row"]) for dot in stacks) + 8
    order = alt.Y("row:N", axis=None, scale=alt.Scale(domain=[dot["row"] for dot in stacks]))
    base = alt.Chart(alt.Data(values=stacks)).encode(y=order, color=tone())
    text = base.mark_text(align="left", fontSize=NAME_SIZE)
    return alt.layer(
        base.mark_text(align="left", fontSize=NAME_SIZE, fontWeight=600).encode(
            x=alt.XValue(0), text=alt.Text("row:N")
        ),
        text.encode(x=alt.XValue(indent), text=alt.Text("label:N")),
    ).properties(width=PLOT_WIDTH, height=KEY_LINE * len(stacks))


def _dots(data: Rows, x: Scale, y: Scale, *, up_is_better: bool) -> Rows:
    """The dots with their tone and the place of their names. The first of a stack is the named one."""
    named = {row["row"]: index for index, row in reversed(list(enumerate(data)))}
    sign = 1 if up_is_better else -1
    dots: Rows = [
        {
            **row,
            "named": named[row["row"]] == index,
            "tone": "best" if _is_best(row, data, sign) else "plain" if row["may_win"] else "weak",
        }
        for index, row in enumerate(data)
    ]
    dots.sort(key=lambda dot: dot["tone"] != "best")
    places = offsets(
        [
            Dot(
                PLOT_WIDTH * x(dot["x"]),
                PLOT_HEIGHT * (1 - y(dot["y"])),
                DIGIT_WIDTH * len(dot["row"]) if dot["named"] else 0.0,
            )
            for dot in dots
        ],
        PLOT_WIDTH,
        PLOT_HEIGHT,
    )
    return [dot | {"dx": dx, "dy": dy} for dot, (dx, dy) in zip(dots, places, strict=True)]


def _is_best(dot: dict[str, Any], among: Rows, sign: int) -> bool:
    """Whether no other is at least as good both ways and better one way: a smaller ``x``, a greater
    ``sign * y``."""
    if not dot["may_win"]:
        return False
    place = (-dot["x"], sign * dot["y"])
    others = ((-other["x"], sign * other["y"]) for other in among if other["may_win"])
    return not any(other != place and other[0] >= place[0] and other[1] >= place[1] for other in others)


def _around(values: Sequence[float]) -> tuple[float, float]:
    """A domain with some room on both sides, also where all values are one."""
    low, high = min(values), max(values)
    room = MARGIN * (high - low or abs(high) or 1.0)
    return low - room, high + room


def _scale(domain: tuple[float, float]) -> alt.Scale:
    return alt.Scale(domain=domain, zero=False, nice=False)


def _linear(domain: tuple[float, float]) -> Scale:
    low, high = domain
    return lambda value: (value - low) / (high - low)


def _symlog(worst: float) -> Scale:
    """Upwards is closer to 0."""
    whole = math.log1p(worst / LINEAR_NEAR_0)
    return lambda value: 1 - math.log1p(value / LINEAR_NEAR_0) / whole
