"""What became of a campaign: its attempts, and whether it has succeeded. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.config import Shape
from bench.host.fanout import Plan
from bench.host.plan import Action, broke_off, code_of
from bench.host.progress import clock
from bench.matrix import Row
from bench.record import Code, Result

FAILED = frozenset(Code) - {Code.OK, Code.UNSTABLE, Code.SUSPECT, Code.UNSUPPORTED, Code.PRUNED}
"""Statuses that make the campaign's exit code say so."""

BROKEN = frozenset({Code.CRASHED, Code.TIMEOUT})
"""Statuses that nobody understands without the log."""


@dataclass(frozen=True)
class Outcome:
    row: Row
    asked: tuple[Shape, ...]
    result: Result
    path: Path
    seconds: float

    def with_result(self, result: Result) -> Outcome:
        return replace(self, result=result)

    @property
    def host_id(self) -> str | None:
        return self.result.environment.host_id if self.result.environment else None

    def line(self) -> str:
        status = self.result.status
        reason = f", {status.reason}" if status.reason else ""
        cells = ", ".join(f"{cell.shape} {cell.status.code}" for cell in self.result.cells)
        took = f"[{cells or 'no cell'}] in {clock(self.seconds)}"
        return f"{self.row.label}: {status.code}{reason} {took}; {self.path}"

    def log(self) -> list[str]:
        """What a row that crashed or hung said last: its reason says that it stands below."""
        status = self.result.status
        return [f"    {line}" for line in status.log_tail] if status.code in BROKEN else []


@dataclass
class Summary:
    outcomes: list[Outcome] = field(default_factory=list)
    left_out: list[tuple[Row, str]] = field(default_factory=list)
    """Rows that were to run and did not, and why."""
    broke_off: str | None = None
    """Why the campaign ended before its rows did."""
    stopped_by: int | None = None
    """Number of the signal that ended it."""

    def failed_rows(self) -> list[Row]:
        """Rows with a cell, or an attempt, that ended badly and was not made good by a later attempt."""
        last: dict[tuple[str, Shape | None], Code] = {}
        for outcome in self.outcomes:
            result = outcome.result
            last[outcome.row.row, None] = result.status.code if broke_off(result) else Code.OK
            for shape in outcome.asked:
                last[outcome.row.row, shape] = code_of(shape, result) or Code.OK
        failed = {row for (row, _), code in last.items() if code in FAILED}
        return list({item.row.row: item.row for item in self.outcomes if item.row.row in failed}.values())

    def exit_code(self, plan: Plan) -> int:
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        damaged = bool(plan.having(Action.DAMAGED))
        hopeless = all(item.action in (Action.MISFIT, Action.UNSUPPORTED) for item in plan.decisions)
        return int(bool(self.failed_rows()) or damaged or hopeless or self.broke_off is not None)
