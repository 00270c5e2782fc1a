"""Every cell that has no numbers, or doubtful ones, with its reason and the end of its log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.matrix import Row
from bench.record import Code
from bench.report import names
from bench.report.load import Attempt
from bench.report.pool import Measurement, Shape, shown_code


@dataclass(frozen=True)
class Failure:
    row: Row
    weights: str
    attempt: str
    cell: str
    """``1x4``, or ``all`` where the attempt ended as a whole."""
    code: Code
    reason: str
    log: tuple[str, ...]
    measured_since: bool
    """Another attempt of the same row, weights and cell has numbers."""

    @property
    def stack(self) -> str:
        return names.stack(self.row)

    @property
    def use_case(self) -> str:
        return names.use_case(*self.row.use_case)


def failures(attempts: Iterable[Attempt], measurements: Iterable[Measurement]) -> list[Failure]:
    """Those still open first, then by row and time."""
    measured = {
        (*each.row.identity, each.weights): {
            shape for shape, cell in each.cells.items() if cell.code is Code.OK
        }
        for each in measurements
    }
    found = [
        failure
        for attempt in attempts
        for failure in _of(attempt, measured.get((*attempt.row.identity, attempt.weights), set()))
    ]
    return sorted(found, key=lambda each: (each.measured_since, each.row.row.zfill(12), each.attempt))


def _of(attempt: Attempt, measured: set[Shape]) -> list[Failure]:
    """One entry a cell; the attempt itself where no cell says what went wrong."""
    result = attempt.result
    bad = [(cell, code) for cell in result.cells if (code := shown_code(result, cell)) is not Code.OK]
    entries = [
        _failure(
            attempt,
            cell=f"{cell.users}x{cell.images}",
            code=code,
            reason=cell.status.reason or result.status.reason,
            log=cell.status.log_tail,
            measured_since=(cell.users, cell.images) in measured,
        )
        for cell, code in bad
    ]
    if not bad and result.status.code is not Code.OK:
        since = bool(measured) and not result.cells
        entries.append(
            _failure(
                attempt,
                cell="all",
                code=result.status.code,
                reason=result.status.reason,
                log=(),
                measured_since=since,
            )
        )
    return entries


def _failure(
    attempt: Attempt, *, cell: str, code: Code, reason: str, log: Sequence[str], measured_since: bool
) -> Failure:
    nothing_ran = code in {Code.UNSUPPORTED, Code.UNAVAILABLE}
    return Failure(
        row=attempt.row,
        weights=attempt.weights,
        attempt=attempt.result.attempt,
        cell=cell,
        code=code,
        reason=reason,
        log=tuple(log) or (() if nothing_ran else tuple(attempt.log_excerpt())),
        measured_since=measured_since,
    )
