"""The headline: for each use case the fastest stack that was measured, beside the reference."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report import names
from bench.report.gains import Gain, Gains
from bench.report.groups import Section, UseCase, fastest
from bench.report.matrix_table import (
    memory_gb,
    quality_entry,
    quantile_entry,
    scope,
    speedup_entry,
    stack_entry,
    verdict_entry,
)
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, figure, words
from bench.report.text import MISSING, interval

COLUMNS = (
    Column("Use case", numeric=False),
    Column("Fastest stack", numeric=False, hint="Lowest supported median, one user, one image"),
    Column("p50 (s)"),
    Column("95 % CI (s)"),
    Column("n"),
    Column("Reference p50 (s)", hint="bf16, eager, SDPA, on the same host"),
    Column("Speed-up", hint="Over the reference"),
    Column("Verdict", numeric=False),
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


def answer(case: UseCase, gains: Gains) -> Answer | None:
    winner = fastest(case.measurements)
    cell = winner.cell() if winner else None
    if winner is None or cell is None:
        return None
    reference = case.reference.cell() if case.reference else None
    return Answer(case, winner, cell, gains.of(winner, cell), reference)


def headline(section: Section, answers: dict[str, Answer | None]) -> Table:
    """``answers`` by use case slug; a use case without one keeps its line and says so."""
    lines = tuple(Line(_entries(case, answers[case.slug])) for case in section.use_cases)
    return Table("Fastest stack of each use case", scope(section), COLUMNS, lines)


def _entries(case: UseCase, answer: Answer | None) -> tuple[Entry, ...]:
    if answer is None:
        nothing = words("no stack with a supported median yet")
        return words(case.title), nothing, *(Entry(MISSING) for _ in COLUMNS[2:])
    latency, reference = answer.cell.latency, answer.reference
    return (
        words(case.title),
        stack_entry(answer.winner),
        quantile_entry(latency.p50, latency),
        Entry(interval(latency.p50.ci95)),
        Entry(str(answer.cell.n), answer.cell.n),
        quantile_entry(reference.latency.p50, reference.latency) if reference else Entry(MISSING),
        speedup_entry(
            answer.gain.ratio if answer.gain else None, is_reference=answer.winner.row.is_reference
        ),
        verdict_entry(answer.gain),
        quality_entry(answer.winner),
        figure(memory_gb(answer.cell)),
    )
