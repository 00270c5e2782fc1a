"""The answer for one hardware, whichever machines measured it: per use case and quality floor, one stack.

``CHOICE`` says how one machine is chosen where several measured a use case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from bench.report import names
from bench.report.answers import COLUMNS, Answer, answer, entries
from bench.report.groups import UseCase, is_lossless
from bench.report.matrix_table import any_machine
from bench.report.page import CaseView, SectionView
from bench.report.pool import Measurement
from bench.report.table import Column, Entry, Line, Table, words
from bench.verdicts import Verdict

CHOICE = (
    "Seconds of two machines are never compared: the largest certain gain over the reference of its own"
    " machine decides; without one, the machine that compared the most stacks, then the one with the most"
    " requests, then the newest."
)
FLOORS: dict[str, Callable[[Measurement], bool]] = {"lossless": is_lossless, "any": lambda _: True}
"""Quality floor -> whether a stack is above it."""
FLOOR = Column("Quality floor", numeric=False)
ROW = Column("Row", hint="Its id in matrix.csv, which never changes")
MACHINE = Column("Machine", numeric=False)
MEASURED = Column("Measured", numeric=False, hint="The code that measured; its page says what changed since")


@dataclass(frozen=True)
class Best:
    floor: str
    view: SectionView
    answer: Answer

    @property
    def title(self) -> str:
        return self.answer.case.title if self.floor == "any" else f"{self.answer.case.title}, {self.floor}"

    @property
    def section(self) -> str:
        return f"{self.view.section.slug}-{self.answer.case.slug}"


@dataclass(frozen=True)
class World:
    """What may be answered together: one hardware, weights and workload."""

    views: tuple[SectionView, ...]

    @cached_property
    def bests(self) -> tuple[Best, ...]:
        cases = {view.case.slug: view.case for section in self.views for view in section.cases}
        ordered = sorted(cases.values(), key=lambda case: names.use_case_order((case.task, case.control)))
        return tuple(best for case in ordered for best in self._of(case))

    def _of(self, case: UseCase) -> Iterator[Best]:
        """Of each floor; where the lossless one is the fastest of all it stands once."""
        before: Measurement | None = None
        for floor in FLOORS:
            found = [
                Best(floor, section, answered)
                for section in self.views
                for view in section.cases
                if view.case.slug == case.slug and (answered := _answer(view, floor))
            ]
            if found:
                best = max(found, key=_rank)
                if best.answer.winner is not before:
                    yield best
                before = best.answer.winner


def worlds(views: Sequence[SectionView]) -> list[World]:
    """In the order of the sections of a page."""
    groups = groupby(views, key=lambda view: (view.section.weights, view.section.workload))
    return [World(tuple(group)) for _, group in groups]


def _answer(view: CaseView, floor: str) -> Answer | None:
    return answer(
        view.case, view.gains, among=[each for each in view.case.measurements if FLOORS[floor](each)]
    )


def _rank(best: Best) -> tuple[float, int, int, str]:
    """``CHOICE``, the largest first."""
    answer, gain = best.answer, best.answer.gain
    certain = gain.ratio.value if gain and gain.verdict is Verdict.FASTER else 0.0
    return certain, answer.stacks, answer.cell.n, answer.winner.latest.attempt


def table(world: World) -> Table:
    lines = tuple(Line(tuple(_entries(best))) for best in world.bests)
    columns = (COLUMNS[0], FLOOR, COLUMNS[1], ROW, *COLUMNS[2:], MACHINE, MEASURED)
    return Table("Fastest stack of each use case", any_machine(world.views[0].section), columns, lines)


def _entries(best: Best) -> Iterator[Entry]:
    use_case, _, *rest = entries(best.answer.case, best.answer)
    yield use_case
    promised = best.floor != "any" and best.answer.winner.quality is None and not best.answer.is_reference
    yield words(best.floor, note="promised by its options" if promised else "")
    yield words(best.answer.stack)
    yield words(best.answer.winner.row.row)
    yield from rest
    yield words(best.view.section.devices)
    yield words(best.answer.winner.measured)
