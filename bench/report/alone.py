"""Of each axis the best option alone, per use case: the plan's "optimal quantization for each use case", and
the same of every other axis. Only what was measured beside its plain stack on one machine can be best. That
stack is named, for it is not always the reference: precisions, and all options of a CPU, stand on fp32."""

from __future__ import annotations

from collections.abc import Sequence

from bench.matrix import AXIS_NAMES, Row
from bench.report import names
from bench.report.coverage import fitting, layer_of
from bench.report.gains import Layer, one_of_each_stack
from bench.report.matrix_table import any_machine, gain_entry, memory_gb, quality_entry
from bench.report.names import AXIS_TITLES
from bench.report.overall import World
from bench.report.pool import Measurement
from bench.report.table import Column, Entry, Line, Table, words
from bench.report.text import MISSING, number
from bench.verdicts import Verdict

TITLE = "Best option of each axis alone"
NOTHING_FASTER = "none faster"


def table(world: World, matrix: Sequence[Row]) -> Table:
    """A measured use case a line, an axis a column. No lines where nothing could be compared, without a
    matrix, and for several GPUs, whose plain stack runs on one (``scaling``)."""
    section = world.views[0].section
    could_run = fitting(section.hardware, section.weights, matrix)
    rows = [row for row in could_run if _is_option_alone(row, section.row)]
    axes = [axis for axis in AXIS_NAMES if any(_axis(row) == axis for row in rows)]
    titles = ("Use case", *(AXIS_TITLES[axis] for axis in axes))
    lines = []
    for case in world.cases:
        of_case = [row for row in rows if row.use_case == (case.task, case.control)]
        cells = [_entry(world, [row for row in of_case if _axis(row) == axis]) for axis in axes]
        lines.append(Line((words(case.title), *cells)))
    columns = tuple(Column(title, numeric=False) for title in titles)
    compared = any(entry.sort for line in lines for entry in line.entries[1:])
    return Table(TITLE, any_machine(section), columns, tuple(lines) if compared else ())


def _is_option_alone(row: Row, like: Row) -> bool:
    """``like``: of the workload that is asked for."""
    return (
        (row.model, row.size, row.steps) == (like.model, like.size, like.steps)
        and row.parent is not None
        and not row.skips_by_schedule
    )


def _axis(row: Row) -> str:
    return layer_of(row)[1]


def _entry(world: World, rows: Sequence[Row]) -> Entry:
    """The fastest of these rows over the plain stack; how many of them could be compared stands below."""
    if not rows:
        return Entry(MISSING)
    wanted = {row.identity for row in rows}
    found = [
        layer
        for view in world.views
        for case in view.cases
        for layer in case.gains.layers
        if layer.measurement.row.identity in wanted
    ]
    of_each = one_of_each_stack(found)
    of = f"{len(of_each)} of {len(rows)} compared"
    if not found:
        return Entry(MISSING, note=of)
    best = max(of_each, key=_rank)
    faster = best.gain.verdict in {Verdict.FASTER, Verdict.AMBIGUOUS} and best.gain.ratio.value > 1
    option = _option(best.measurement.row)
    told = [
        f"{gain_entry(best.gain).text} over {names.stack(best.parent.row)}",
        f"row {best.measurement.row.row}",
        *_costs(best.measurement, best.parent),
        of,
    ]
    if not faster:
        told.insert(0, option)
    certain = best.gain.verdict is Verdict.FASTER
    return Entry(option if faster else NOTHING_FASTER, option, "; ".join(told), strong=certain)


def _rank(layer: Layer) -> tuple[float, float]:
    """What is certain goes first, as among stacks of several machines (``overall.CHOICE``)."""
    ratio = layer.gain.ratio.value
    return ratio if layer.gain.verdict is Verdict.FASTER else 0.0, ratio


def _option(row: Row) -> str:
    return row.stack[_axis(row)]


def _costs(measurement: Measurement, parent: Measurement) -> list[str]:
    """Memory beside the plain stack's, and quality, where they are known."""
    peaks = [memory_gb(cell) if (cell := each.cell()) else None for each in (measurement, parent)]
    memory = [f"{number(peaks[0])} GB against {number(peaks[1])}"] if None not in peaks else []
    return memory + ([quality_entry(measurement).text] if measurement.quality else [])
