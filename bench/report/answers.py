"""The headline: for each use case the fastest stack that was measured, beside the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.report import names
from bench.report.gains import Gain, Gains
from bench.report.groups import Section, UseCase, fastest
from bench.report.matrix_table import (
    answer_entry,
    gain_entry,
    memory_gb,
    quality_entry,
    quantile_entry,
    scope,
    stack_entry,
)
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, figure, words
from bench.report.text import MISSING

COLUMNS = (
    Column("Use case", numeric=False),
    Column("Fastest stack", numeric=False, hint="Lowest supported median, one user, one image"),
    Column("p50 (s)", hint="Median with its 95 % CI"),
    Column("n"),
    Column("Reference p50 (s)", hint="bf16, eager, SDPA, on the same host"),
    Column("Speed-up", hint="Over the reference; verdict and 95 % CI"),
    Column("Quality", numeric=False, hint="Against the reference: same prompts, same seeds"),
    Column("Memory peak (GB)"),
)


@dataclass(frozen=True)
class Answer:
    """None of the fields is missing: a use case without a clean, supported median has no answer."""

    case: UseCase
    winner: Measurement
    cell: PooledCell
    gain: Gain | None
    reference: PooledCell | None

    @property
    def stack(self) -> str:
        return names.stack(self.winner.row)

    @property
    def is_reference(self) -> bool:
        return self.winner.row.is_reference

    @property
    def quality(self) -> str:
        entry = quality_entry(self.winner)
        return ", ".join(part for part in (entry.text, entry.note, *entry.tags) if part)


def answer(case: UseCase, gains: Gains, among: Iterable[Measurement] | None = None) -> Answer | None:
    """``among``: the measurements that may win; None for all."""
    winner = fastest(case.measurements if among is None else among)
    cell = winner.cell() if winner else None
    if winner is None or cell is None:
        return None
    reference = case.reference.cell() if case.reference else None
    return Answer(case, winner, cell, gains.of(winner, cell), reference)


def headline(section: Section, answers: dict[str, Answer | None]) -> Table:
    """``answers`` by use case slug; a use case without one keeps its line and says so."""
    lines = tuple(Line(entries(case, answers[case.slug])) for case in section.use_cases)
    return Table("Fastest stack of each use case", scope(section), COLUMNS, lines)


def entries(case: UseCase, answer: Answer | None) -> tuple[Entry, ...]:
    if answer is None:
        nothing = words("no stack with a supported median yet")
        return words(case.title), nothing, *(Entry(MISSING) for _ in COLUMNS[2:])
    reference = answer.reference
    return (
        words(case.title),
        stack_entry(answer.winner),
        answer_entry(answer.cell),
        Entry(str(answer.cell.n), answer.cell.n),
        quantile_entry(reference.latency.p50, reference.latency) if reference else Entry(MISSING),
        gain_entry(answer.gain, is_reference=answer.is_reference),
        quality_entry(answer.winner),
        figure(memory_gb(answer.cell)),
    )
