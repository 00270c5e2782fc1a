"""Every stack that any machine of one hardware measured, in one table a use case, each by the machine that
speaks for it (``gains.weight``): among a dozen machines a reader finds a stack only if told where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.report.matrix_table import (
    GPU_HOURS,
    STACK,
    answer_entry,
    any_machine,
    count_entry,
    gain_entry,
    gpu_hours,
    memory_gb,
    quality_entry,
    stack_entry,
)
from bench.report.overall import MACHINE, MEASURED, World
from bench.report.stacks import Stack
from bench.report.table import Column, Line, Table, figure, words

COLUMNS = (
    STACK,
    Column(
        "p50 (s)",
        hint="One user, one image; of the machine on its line, so not to be compared with another's",
    ),
    Column("Speed-up", hint="Over the reference of the machine on its line; by it the lines are ordered"),
    GPU_HOURS,
    Column("Memory peak (GB)"),
    Column("Energy per image (J)"),
    Column("n"),
    Column("Quality", numeric=False),
    MACHINE,
    MEASURED,
)


def _place(stack: Stack) -> tuple[bool, float]:
    """The greatest stands first: what may be the answer before replays."""
    return not stack.measurement.row.skips_by_schedule, stack.log_gain


def tables(world: World) -> Iterator[Table]:
    """None of one machine, whose own matrix has all of them, and none where no speed is asked for."""
    if len(world.views) < 2 or world.only_pictures:
        return
    answers = {id(best.answer.winner) for best in world.bests}
    for case in world.cases:
        found = world.stacks(case)
        if len(found) > 1:
            ordered = sorted(found, key=_place, reverse=True)
            of = any_machine(world.views[0].section)
            scope = f"{of} · one user, one image · each by the machine that measured it best"
            lines = tuple(_line(each, id(each.measurement) in answers) for each in ordered)
            yield Table(f"Every stack: {case.title}", scope, COLUMNS, lines)


def _line(stack: Stack, best: bool) -> Line:
    measurement, cell, row = stack.measurement, stack.cell, stack.measurement.row
    proof = f"#{stack.section.anchor(stack.view.case, row)}"
    entries = (
        replace(stack_entry(measurement), href=proof),
        answer_entry(cell),
        gain_entry(stack.gain, is_reference=row.is_reference, refusal=stack.refusal),
        figure(gpu_hours(measurement, cell)),
        figure(memory_gb(cell)),
        figure(cell.power.energy_per_image_j),
        count_entry(cell),
        quality_entry(measurement),
        words(measurement.machine),
        words(measurement.measured),
    )
    return Line(entries, best=best)
