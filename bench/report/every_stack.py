"""Every stack that any machine of one hardware measured, in one table a use case, each by the machine that
speaks for it (``gains.weight``): among a dozen machines a reader finds a stack only if told where it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.report.gains import Gain, Weight, one_of_each_stack, weight
from bench.report.groups import UseCase
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
from bench.report.page import CaseView, SectionView
from bench.report.pool import Measurement, PooledCell
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


@dataclass(frozen=True)
class Spoken:
    """A stack, one user and one image, on one machine."""

    section: SectionView
    view: CaseView
    measurement: Measurement
    cell: PooledCell

    @property
    def gain(self) -> Gain | None:
        return self.view.gains.of(self.measurement, self.cell)

    @property
    def weight(self) -> Weight:
        return weight(self.measurement, self.cell, self.gain)

    @property
    def place(self) -> tuple[bool, float]:
        """The greatest stands first: what may be the answer before replays, then by the log of the gain. The
        reference's is 0; without one a stack stands last."""
        row = self.measurement.row
        without = 0.0 if row.is_reference else -math.inf
        return not row.skips_by_schedule, self.gain.ratio.log if self.gain else without


def tables(world: World) -> Iterator[Table]:
    """None of one machine, whose own matrix has all of them, and none where no speed is asked for."""
    if len(world.views) < 2 or world.only_pictures:
        return
    for case in world.cases:
        found = one_of_each_stack(
            _of(world, case), lambda each: each.measurement.row, lambda each: each.weight
        )
        if len(found) > 1:
            ordered = sorted(found, key=lambda each: each.place, reverse=True)
            of = any_machine(world.views[0].section)
            scope = f"{of} · one user, one image · each by the machine that measured it best"
            answers = [best.answer.winner for best in world.bests]
            lines = tuple(_line(each, each.measurement in answers) for each in ordered)
            yield Table(f"Every stack: {case.title}", scope, COLUMNS, lines)


def _of(world: World, case: UseCase) -> Iterator[Spoken]:
    for section in world.views:
        for view in section.cases:
            for each in view.case.measurements if view.case.slug == case.slug else ():
                if cell := each.cell():
                    yield Spoken(section, view, each, cell)


def _line(spoken: Spoken, best: bool) -> Line:
    measurement, cell, row = spoken.measurement, spoken.cell, spoken.measurement.row
    proof = f"#{spoken.section.section.slug}-{spoken.view.case.slug}-row-{row.row}"
    refusal = spoken.view.gains.refusal(measurement, cell)
    entries = (
        replace(stack_entry(measurement), href=proof),
        answer_entry(cell),
        gain_entry(spoken.gain, is_reference=row.is_reference, refusal=refusal),
        figure(gpu_hours(measurement, cell)),
        figure(memory_gb(cell)),
        figure(cell.power.energy_per_image_j),
        count_entry(cell),
        quality_entry(measurement),
        words(measurement.machine),
        words(measurement.measured),
    )
    return Line(entries, best=best)
