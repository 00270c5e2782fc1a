"""What each machine measured of a stack at one user and one image: what tables of several machines are of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.report.gains import Gain, Weight, weight
from bench.report.page import CaseView, SectionView
from bench.report.pool import Measurement, PooledCell


@dataclass(frozen=True)
class Stack:
    """On one machine, beside the reference there."""

    section: SectionView
    view: CaseView
    measurement: Measurement
    cell: PooledCell

    @property
    def gain(self) -> Gain | None:
        return self.view.gains.of(self.measurement, self.cell)

    @property
    def log_gain(self) -> float:
        """Orders stacks of several machines, whose seconds do not compare: 0 of the reference, and least
        where nothing says what a stack gained."""
        if self.gain:
            return self.gain.ratio.log
        return 0.0 if self.measurement.row.is_reference else -math.inf

    @property
    def refusal(self) -> str:
        return self.view.gains.refusal(self.measurement, self.cell)

    @property
    def reference(self) -> PooledCell | None:
        return self.view.case.reference.cell() if self.view.case.reference else None

    @property
    def weight(self) -> Weight:
        return weight(self.measurement, self.cell, self.gain)


def stacks(section: SectionView) -> Iterator[Stack]:
    for view in section.cases:
        for each in view.case.measurements:
            if cell := each.cell():
                yield Stack(section, view, each, cell)
