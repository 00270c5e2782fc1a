"""Everything a page shows, computed once; Markdown and HTML only lay it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.matrix import Row
from bench.record import Environment
from bench.report import machine_table, matrix_table, names, scaling, side_tables
from bench.report.answers import Answer, answer, headline
from bench.report.failures import Failure, failures
from bench.report.gains import Gains, gains, host_spread
from bench.report.groups import Section, UseCase, sections
from bench.report.load import Loaded, Problem
from bench.report.origin import Matrix, Origin, origin
from bench.report.pool import Measurement, measurements
from bench.report.scaling import Scaled
from bench.report.table import Table
from bench.report.text import days
from bench.tryout_report import Constructed


@dataclass(frozen=True)
class CaseView:
    case: UseCase
    gains: Gains
    answer: Answer | None
    comparison: Table
    scaled: tuple[Scaled, ...]
    """Empty where one GPU serves."""
    side: tuple[Table, ...]
    """Scaling, memory, life and gains; those that have lines."""
    origins: tuple[Origin, ...]
    """One a measurement."""


@dataclass(frozen=True)
class SectionView:
    section: Section
    spread: float | None
    headline: Table
    cases: tuple[CaseView, ...]

    @property
    def environment(self) -> Environment | None:
        newest = max(self.section.measurements, key=lambda each: each.latest.attempt)
        return newest.latest.environment

    @property
    def rows(self) -> int:
        """With at least one cell that has numbers."""
        return sum(bool(each.cells) for each in self.section.measurements)

    @property
    def days(self) -> str:
        return days(
            attempt.result.started_at for each in self.section.measurements for attempt in each.attempts
        )

    @property
    def spread_note(self) -> str:
        """How far equal processes differ here, and what follows for the speed-ups."""
        if self.spread is not None:
            apart = 100 * math.expm1(self.spread)
            return (
                f"Two processes that do the same may be {apart:.2f} % apart on this host (95 %,"
                " from its references' processes); that is added to every interval from one process a side."
            )
        if any(view.case.reference for view in self.cases):
            return (
                "The reference ran in one process only: its spread between processes is unknown, so"
                " speed-ups from one process a side have no interval."
            )
        on_one = {view.gains.reference.machine for view in self.cases if view.gains.reference}
        if on_one:
            return (
                f"Speed-ups are over the reference on one of these GPUs ({', '.join(sorted(on_one))}); from"
                " one process a side they have no interval."
            )
        return "The reference was not measured here, so there are no speed-ups."

    def anchor(self, case: UseCase, row: Row | None = None) -> str:
        """Of a use case in the page of its hardware; with ``row``, of that row's attempts and evidence."""
        of_case = f"{self.section.slug}-{case.slug}"
        return f"{of_case}-row-{row.row}" if row else of_case

    @property
    def weights_note(self) -> str:
        return names.WEIGHTS_NOTES[self.section.weights]


@dataclass(frozen=True)
class Page:
    """One hardware."""

    hardware: str
    sections: tuple[SectionView, ...]
    failures: tuple[Failure, ...]

    @property
    def title(self) -> str:
        return names.hardware(self.hardware)

    @property
    def measurements(self) -> list[Measurement]:
        return [each for view in self.sections for each in view.section.measurements]

    @property
    def measured(self) -> int:
        """Rows with at least one cell that has numbers, on however many machines."""
        return len({each.row.identity for each in self.measurements if each.cells})


@dataclass(frozen=True)
class Report:
    pages: tuple[Page, ...]
    problems: tuple[Problem, ...]
    attempts: int
    constructed: tuple[Constructed, ...] = ()
    rows: tuple[Row, ...] = ()
    """Of matrix.csv; none where it could not be read."""


def report(loaded: Loaded, on_section: Callable[[SectionView], None] = lambda _: None) -> Report:
    """``on_section`` is told of each section as soon as it is there: its charts can be drawn meanwhile."""
    measured = measurements(loaded.attempts)
    by_hardware: dict[str, list[SectionView]] = {}
    worlds, matrix = sections(measured), Matrix(loaded.rows)
    for section in worlds:
        view = section_view(section, worlds, matrix)
        on_section(view)
        by_hardware.setdefault(section.hardware, []).append(view)
    failed: dict[str, list[Failure]] = {}
    for failure in failures(loaded.attempts, measured):
        failed.setdefault(failure.row.hardware, []).append(failure)
    pages = tuple(
        Page(hardware, tuple(by_hardware.get(hardware, ())), tuple(failed.get(hardware, ())))
        for hardware in sorted({*by_hardware, *failed}, key=_gpus_first)
    )
    return Report(
        pages, tuple(loaded.problems), len(loaded.attempts), tuple(loaded.constructed), tuple(loaded.rows)
    )


def _gpus_first(hardware: str) -> tuple[bool, str]:
    return hardware == "cpu", hardware


def section_view(section: Section, worlds: Sequence[Section], matrix: Matrix) -> SectionView:
    """``worlds``: all sections, among which those on one of this one's GPUs."""
    spread = host_spread(section)
    cases = tuple(_case_view(section, case, spread, worlds, matrix) for case in section.use_cases)
    answers = {view.case.slug: view.answer for view in cases}
    return SectionView(section, spread, headline(section, answers), cases)


def _case_view(
    section: Section, case: UseCase, spread: float | None, worlds: Sequence[Section], matrix: Matrix
) -> CaseView:
    computed = gains(case, spread, scaling.reference_on_one(section, case, worlds))
    scaled = scaling.scaled(section, case, worlds)
    side = (
        scaling.table(section, case, scaled),
        side_tables.memory(section, case),
        machine_table.table(section, case),
        side_tables.life(section, case),
        side_tables.stages(section, case),
        side_tables.kernels(section, case),
        side_tables.closeness(section, case),
        side_tables.layers(section, case, computed),
    )
    return CaseView(
        case=case,
        gains=computed,
        answer=answer(case, computed),
        comparison=matrix_table.comparison(section, case, computed),
        scaled=scaled,
        side=tuple(table for table in side if table.lines),
        origins=tuple(origin(each, matrix) for each in case.measurements),
    )
