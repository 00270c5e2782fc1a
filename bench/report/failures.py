"""Every cell that has no numbers, or doubtful ones, with its reason and the end of its log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.config import Shape
from bench.matrix import Row
from bench.record import CLOSED, Code
from bench.report import names
from bench.report.groups import Section
from bench.report.load import Attempt
from bench.report.matrix_table import status_entry
from bench.report.pool import Measurement, shown_code
from bench.report.table import Column, Entry, Line, Table, words


@dataclass(frozen=True)
class Failure:
    row: Row
    weights: str
    host_id: str | None
    """None where the attempt ended before it looked at its machine."""
    machine: str
    attempt: str
    cell: str
    """``1x4``, or ``all`` where the attempt ended as a whole."""
    code: Code
    reason: str
    log: tuple[str, ...]
    measured_on: tuple[str, ...]
    """Machines on which another attempt of the same row, weights and cell has clean numbers."""

    @property
    def stack(self) -> str:
        return names.stack(self.row)

    @property
    def use_case(self) -> str:
        return names.use_case(*self.row.use_case)

    @property
    def answered(self) -> str:
        """``no``, ``here``, or the other machines that have the numbers."""
        if self.machine in self.measured_on:
            return "here"
        return f"on {'; '.join(self.measured_on)}" if self.measured_on else "no"


COLUMNS = (
    Column("Row"),
    Column("Stack", numeric=False),
    Column("Use case", numeric=False),
    Column("Weights", numeric=False),
    Column("Machine", numeric=False),
    Column("Cell", numeric=False, hint="Users × images; all: the attempt ended as a whole"),
    Column("Status", numeric=False),
    Column(
        "Measured otherwise", numeric=False, hint="Where another attempt has clean numbers of the same cell"
    ),
    Column("Reason", numeric=False),
)

Measured = Mapping[tuple[str, ...], Mapping[Shape, Sequence[str]]]
"""(row's identity, weights) -> cell -> machines with clean numbers of it."""


def failures(attempts: Iterable[Attempt], measurements: Iterable[Measurement]) -> list[Failure]:
    """Those still open first, then by row and time."""
    measured: dict[tuple[str, ...], dict[Shape, list[str]]] = {}
    for each in measurements:
        machines = measured.setdefault((*each.row.identity, each.weights), {})
        for shape, cell in each.cells.items():
            if cell.code is Code.OK:
                machines.setdefault(shape, []).append(each.machine)
    found = [failure for attempt in attempts for failure in _of(attempt, measured)]
    return sorted(found, key=lambda each: (bool(each.measured_on), each.row.row.zfill(12), each.attempt))


def concerning(failures: Iterable[Failure], section: Section) -> list[Failure]:
    """Those of the section's machine, and of attempts that ended before they looked at theirs."""
    world = section.hardware, section.weights, section.workload
    return [
        each
        for each in failures
        if each.host_id in {section.host_id, None}
        and (each.row.hardware, each.weights, names.workload(each.row)) == world
    ]


def table(of: Iterable[Failure]) -> Table:
    scope = "Every one, with its reason and the end of its log; those that no attempt has measured first."
    return Table("Cells without clean numbers", scope, COLUMNS, tuple(map(_line, of)))


def _line(of: Failure) -> Line:
    row = Entry(of.row.row, int(of.row.row) if of.row.row.isdecimal() else None)
    told = (of.stack, of.use_case, of.weights, of.machine, of.cell)
    return Line(
        (
            row,
            *map(words, told),
            status_entry(of.code),
            words(of.answered),
            words(of.reason, log=of.log),
        )
    )


def _of(attempt: Attempt, measured: Measured) -> list[Failure]:
    """One entry a cell; the attempt itself where no cell says what went wrong."""
    result = attempt.result
    closed = result.load == CLOSED
    machines = measured.get((*attempt.row.identity, attempt.weights), {}) if closed else {}
    bad = [(cell, code) for cell in result.cells if (code := shown_code(result, cell)) is not Code.OK]
    if bad:
        return [
            _failure(
                attempt,
                cell=str(cell.shape) + ("" if closed else f" {result.load}"),
                code=code,
                reason=cell.status.reason or result.status.reason,
                log=cell.status.log_tail,
                measured_on=machines.get(cell.shape, ()),
            )
            for cell, code in bad
        ]
    if result.status.code is Code.OK:
        return []
    anywhere = () if result.cells else dict.fromkeys(each for found in machines.values() for each in found)
    return [
        _failure(
            attempt,
            cell="all",
            code=result.status.code,
            reason=result.status.reason,
            log=(),
            measured_on=tuple(anywhere),
        )
    ]


def _failure(
    attempt: Attempt, *, cell: str, code: Code, reason: str, log: Sequence[str], measured_on: Sequence[str]
) -> Failure:
    nothing_ran = code in {Code.UNSUPPORTED, Code.UNAVAILABLE}
    return Failure(
        row=attempt.row,
        weights=attempt.weights,
        host_id=attempt.host_id,
        machine=attempt.machine,
        attempt=attempt.result.attempt,
        cell=cell,
        code=code,
        reason=reason,
        log=tuple(log) or (() if nothing_ran else tuple(attempt.log_excerpt())),
        measured_on=tuple(measured_on),
    )
