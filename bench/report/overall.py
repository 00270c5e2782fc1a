"""The answer for one hardware, whichever machines measured it: per use case and quality floor, one stack.

``CHOICE`` says how one machine is chosen where several measured a use case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from bench import config
from bench.report import names
from bench.report.answers import COLUMNS, Answer, answer, entries
from bench.report.gains import one_of_each_stack
from bench.report.groups import UseCase, quality_tier
from bench.report.matrix_table import any_machine
from bench.report.page import CaseView, SectionView
from bench.report.pool import Measurement
from bench.report.stacks import Stack, stacks
from bench.report.table import Column, Entry, Line, Table, words
from bench.report.text import MISSING, plural
from bench.verdicts import Verdict

CHOICE = (
    "Seconds of two machines are never compared. Of those that measured a stack the one whose gain has an"
    " interval speaks for it, then the one with the most requests, then the newest. The answer is the fastest"
    " stack of a machine that speaks for it; of several, that with the largest certain gain over the"
    " reference beside it; without one, that of the machine that compared the most stacks."
)
ANY = "any"
FLOORS = (*(tier.name for tier in config.QUALITY_TIERS[:-1]), ANY)
"""The highest first; the lowest tier holds whatever there is."""
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
        return f"{self.answer.case.title}, {self.floor}" + (" quality" if self.floor == ANY else "")

    @property
    def section(self) -> str:
        return self.view.anchor(self.answer.case)


@dataclass(frozen=True)
class World:
    """What may be answered together: one hardware, weights and workload."""

    views: tuple[SectionView, ...]

    @property
    def title(self) -> str:
        section = self.views[0].section
        return f"{section.workload}: {section.weights} weights"

    @property
    def only_pictures(self) -> bool:
        return self.views[0].section.only_pictures

    @property
    def facts(self) -> tuple[str, ...]:
        section = self.views[0].section
        return *section.workload.split(", "), f"{section.weights} weights"

    @property
    def slug(self) -> str:
        """Of no section: those begin with their hardware."""
        row, weights = self.views[0].section.row, self.views[0].section.weights
        return f"all-{row.hardware}-{weights}-{row.size}px-{row.steps}steps"

    @cached_property
    def machines(self) -> tuple[SectionView, ...]:
        """Those with an answer first, in the order of the answers; then by the rows they measured."""

        def place(view: SectionView) -> tuple[int, int]:
            answers = (index for index, best in enumerate(self.bests) if best.view is view)
            return next(answers, len(self.bests)), -view.rows

        return tuple(sorted(self.views, key=place))

    def told_of(self, view: SectionView) -> str:
        """``4 rows, 2026-11-23; fastest for Text-to-Image``"""
        titles = dict.fromkeys(best.answer.case.title for best in self.bests if best.view is view)
        fastest = f"; fastest for {', '.join(titles)}" if titles else ""
        return f"{plural(view.rows, 'row')}, {view.days}{fastest}"

    @cached_property
    def cases(self) -> tuple[UseCase, ...]:
        cases = {view.case.slug: view.case for section in self.views for view in section.cases}
        return tuple(sorted(cases.values(), key=lambda case: names.use_case_order((case.task, case.control))))

    @cached_property
    def bests(self) -> tuple[Best, ...]:
        return tuple(best for case in self.cases for best in self._answers(case))

    def of(self, case: UseCase) -> list[Best]:
        return [best for best in self.bests if best.answer.case.slug == case.slug]

    def stacks(self, case: UseCase) -> list[Stack]:
        """Each once, on the machine that speaks for it."""
        found = (each for section in self.views for each in stacks(section))
        return one_of_each_stack(each for each in found if each.view.case.slug == case.slug)

    def _answers(self, case: UseCase) -> Iterator[Best]:
        """Of each floor that has an answer of its own: a lossless stack that is the fastest of all stands
        once."""
        before: Measurement | None = None
        spoken = {id(each.measurement) for each in self.stacks(case)}
        for floor in FLOORS:
            found = [
                Best(floor, section, answered)
                for section in self.views
                for view in section.cases
                if view.case.slug == case.slug and (answered := _answer(view, floor))
            ]
            if found:
                best = max(found, key=lambda each: (id(each.answer.winner) in spoken, *_rank(each)))
                if best.answer.winner is not before:
                    yield best
                before = best.answer.winner


def worlds(views: Sequence[SectionView]) -> list[World]:
    """Those with the most rows first, and last those that have pictures only. ``views``: of one hardware, as
    a page has them."""
    groups = groupby(views, key=lambda view: (view.section.weights, view.section.workload))
    found = [World(tuple(group)) for _, group in groups]
    return sorted(found, key=lambda world: (world.only_pictures, -sum(view.rows for view in world.views)))


def _answer(view: CaseView, floor: str) -> Answer | None:
    return answer(
        view.case, view.gains, among=[each for each in view.case.measurements if _above(floor, each)]
    )


def _above(floor: str, measurement: Measurement) -> bool:
    return floor == ANY or FLOORS.index(quality_tier(measurement) or ANY) <= FLOORS.index(floor)


def _rank(best: Best) -> tuple[float, int, int, str]:
    """Of machines that each speak for their fastest stack, the greatest first."""
    answer, gain = best.answer, best.answer.gain
    certain = gain.ratio.value if gain and gain.verdict is Verdict.FASTER else 0.0
    return certain, answer.stacks, answer.cell.n, answer.winner.latest.attempt


def table(world: World) -> Table:
    """A use case without an answer keeps a line and says so. No lines where no speed is asked for."""
    cases = () if world.only_pictures else world.cases
    answered = ((case, best) for case in cases for best in world.of(case) or (None,))
    lines = tuple(Line(tuple(_entries(case, best))) for case, best in answered)
    columns = (COLUMNS[0], FLOOR, COLUMNS[1], ROW, *COLUMNS[2:], MACHINE, MEASURED)
    return Table("Fastest stack of each use case", any_machine(world.views[0].section), columns, lines)


def _entries(case: UseCase, best: Best | None) -> Iterator[Entry]:
    use_case, stack, *rest = entries(case, best.answer if best else None)
    yield use_case
    if best is None:
        yield from (words(ANY), stack, Entry(MISSING), *rest, Entry(MISSING), Entry(MISSING))
        return
    promised = best.floor != ANY and best.answer.winner.quality is None and not best.answer.is_reference
    yield words(best.floor, note="promised by its options" if promised else "")
    yield words(best.answer.stack)
    row = best.answer.winner.row
    yield words(row.row, href=f"#{best.view.anchor(case, row)}")
    yield from rest
    yield words(best.view.section.devices)
    yield words(best.answer.winner.measured)
