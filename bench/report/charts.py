"""The charts of one use case, defined in Altair. Pure: ``draw`` turns the definitions into files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from bench.report import scatter, strips
from bench.report.chart_data import (
    Rows,
    drawn,
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
from bench.report.pool import measured
from bench.report.scaling import Scaled
from bench.report.text import plural

LATENCY_MARKS = {"p50": "dot: median", "low": "bar: its 95 % CI", "seconds": "ticks: requests"}
GAIN_MARKS = {"low": "bar: 95 % CI"}
"""Field of a row -> the mark that it is drawn as."""
KERNELS_OF_SEVERAL = (
    "a bar beyond its line: kernels that ran beside each other count each; a bar short of it: waiting for"
    " another GPU"
)


@dataclass(frozen=True)
class Figure:
    """A chart with the words that stand above it."""

    name: str
    """Its file name, without the ending."""
    title: str
    scope: str
    """Whose numbers these are."""
    measured: str
    """When, and by which code."""
    note: str
    """What a reader must know besides; may be empty."""
    definition: Callable[[Rows], alt.TopLevelMixin]
    data: Rows

    def vega_lite(self) -> dict[str, Any]:
        with debug_mode(False):  # Altair would check each part against its schema: ten times slower
            specification = self.definition(self.data).to_dict(validate=False)
        return specification | {"datasets": {"rows": self.data}}


def figures(section: Section, case: UseCase, gains: Gains, scaled: Sequence[Scaled] = ()) -> list[Figure]:
    """The charts that the use case has data for."""
    shown = drawn(case.measurements)
    hidden = {each.row.row for each in case.measurements if each.cell() and each not in shown}
    layers = [each for each in gains.layers if each.measurement.row.row not in hidden]
    several = [each for each in scaled if each.measurement.row.row not in hidden]
    spread, gained = latency_rows(shown, fastest(case.measurements)), gain_rows(layers)
    dots, near = memory_rows(shown), quality_rows(shown)
    shared = KERNELS_OF_SEVERAL if section.row.gpu_count > 1 else ""
    charts: list[tuple[str, str, Rows, Callable[[Rows], alt.TopLevelMixin], str]] = [
        ("latency", "Latency distribution", spread, strips.latency, _marks(spread, LATENCY_MARKS)),
        ("life", "Warm-up, first and steady requests", life_rows(shown), strips.life, ""),
        ("kernels", "Where the GPU's time goes", kernel_rows(shown), strips.kernels, shared),
        ("gains", "Gains by layer", gained, strips.layers, _marks(gained, GAIN_MARKS)),
        ("scaling", "Scaling efficiency", efficiency_rows(several), strips.efficiency, ""),
        ("throughput", "Throughput against replicas", throughput_rows(several), strips.throughput, ""),
        ("memory", "Throughput against memory", dots, scatter.memory, scatter.note(dots)),
        ("quality", "Speed against quality", near, scatter.quality, scatter.note(near)),
    ]
    table_only = f"{plural(len(hidden), 'slower stack')} in the tables only" if hidden else ""
    return [
        Figure(
            name=f"{section.slug}-{case.slug}-{name}",
            title=f"{title}: {case.title}",
            scope=scope(section),
            measured=_measured(case),
            note="; ".join(filter(None, (note, table_only))),
            definition=definition,
            data=data,
        )
        for name, title, data, definition, note in charts
        if data
    ]


def _marks(data: Rows, marks: dict[str, str]) -> str:
    """Those that are there."""
    return "; ".join(mark for field, mark in marks.items() if any(row.get(field) is not None for row in data))


def _measured(case: UseCase) -> str:
    """``measured 2026-11-22, commit 6dc3b64d; 2026-11-23, commit 20e1c234``"""
    attempts = (attempt for each in case.measurements if each.cells for attempt in each.attempts)
    return f"measured {'; '.join(sorted({measured(attempt.result) for attempt in attempts}))}"
