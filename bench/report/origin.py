"""From a number to its data: the attempts that a row's numbers are made of, what proves that its options ran,
and the command that measures it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import layout
from bench.config import BUDGETS, COMPARISON, FULL, Budget
from bench.matrix import Row, layers, references_of
from bench.record import CLOSED, HAS_NUMBERS, Cell, Result
from bench.report import names
from bench.report.evidence import Proof, counted, proofs
from bench.report.load import Attempt
from bench.report.pool import Measurement, measured, shown_code
from bench.typed import Asked

EXPLAINED = (
    "Folders stand under results/ and hold result.json (figures, raw seconds, the whole of the evidence, the"
    " environment), requests.jsonl (every request), telemetry and log. The command measures a row again, with"
    " its reference; what this machine has done already it skips."
)
NO_COMMAND = "No command: matrix.csv does not hold this row."


@dataclass(frozen=True)
class Source:
    """One attempt."""

    place: str
    """Its folder, relative to the results tree."""
    facts: str
    """When, by which commit and on which GPUs, how many requests of each cell, and how it ended."""


@dataclass(frozen=True)
class Origin:
    """Of one measured row."""

    row: Row
    sources: tuple[Source, ...]
    proofs: tuple[Proof, ...]
    """By the newest of the attempts that left any, and what options counted in the requests of all."""
    command: str | None
    """None where matrix.csv does not hold the row."""

    @property
    def title(self) -> str:
        role = names.role(self.row)
        return f"row {self.row.row}: {names.stack(self.row)}" + (f" ({role})" if role else "")

    @property
    def distinctive(self) -> tuple[Proof, ...]:
        """Of the options that are not the absence of one."""
        layered = layers(self.row.stack)
        return tuple(proof for proof in self.proofs if proof.axis in layered)


class Matrix:
    """Of matrix.csv what a command asks: a report asks it for every row that it shows."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.row: row for row in rows}
        self._references = [row for row in self._rows.values() if row.is_reference]

    def holds(self, row: Row) -> bool:
        """Under the same id: of another version of the file it may stand for another row."""
        here = self._rows.get(row.row)
        return here is not None and here.identity == row.identity

    def references_of(self, row: Row) -> list[Row]:
        return references_of([row], self._references)


def origin(measurement: Measurement, matrix: Matrix) -> Origin:
    attempts = (*measurement.attempts, *measurement.open_attempts)
    results = [attempt.result for attempt in attempts]
    effective = next((each.effective for each in reversed(results) if each.effective), {})
    counts = counted(cell.counts for each in results for cell in each.cells)
    return Origin(
        row=measurement.row,
        sources=tuple(map(_source, attempts)),
        proofs=proofs(measurement.row.stack, effective, counts),
        command=command(measurement, matrix),
    )


def _source(attempt: Attempt) -> Source:
    result = attempt.result
    place = layout.attempt_dir(Path(), attempt.row, attempt.weights, result.attempt)
    facts = ", ".join(
        (*_where(attempt), f"{result.budget}: {'; '.join(_cells(attempt)) or result.status.code}")
    )
    return Source(place.as_posix(), facts)


def _where(attempt: Attempt) -> Iterator[str]:
    environment = attempt.result.environment
    yield measured(attempt.result)
    if environment:
        yield from (gpu.uuid[:12] for gpu in environment.gpus)


def _cells(attempt: Attempt) -> Iterator[str]:
    for cell in attempt.result.cells:
        code = shown_code(attempt.result, cell)
        yield f"{_shape(cell)} " + (f"n={cell.n} {code}" if code in HAS_NUMBERS else code)


def _shape(cell: Cell) -> str:
    return str(cell.shape) + ("" if cell.load == CLOSED else f" {cell.load}")


def command(measurement: Measurement, matrix: Matrix) -> str | None:
    """What measures the same cells again beside the reference: with no fewer requests a process, and in as
    many processes as an interval needs where it was measured in several."""
    row = measurement.row
    if not matrix.holds(row):
        return None
    rows = dict.fromkeys([*(each.row for each in matrix.references_of(row)), row.row])
    shapes = sorted(measurement.cells or measurement.failed)
    runs = max((len(cell.runs) for cell in measurement.cells.values()), default=1)
    processes = min(runs, COMPARISON.processes_a_side)
    budget = _budget([attempt.result for attempt in measurement.attempts], processes)
    asked = Asked(
        weights=measurement.weights,
        budget=budget.name,
        processes=str(processes) if processes > budget.processes else Asked.processes,
        cells=",".join(map(str, shapes)) or Asked.cells,
    )
    return asked.fan_out(f"row={','.join(rows)}")


def _budget(results: Sequence[Result], processes: int) -> Budget:
    """The largest of theirs, or a larger one where that asks for fewer requests than a cell holds."""
    most = max((cell.n for result in results for cell in result.cells), default=0)
    least = max(BUDGETS[result.budget].n for result in results)
    return next((each for each in BUDGETS.values() if each.n >= max(least, most * processes)), FULL)
