"""Is the GPU still what it was? The reference is run again between the rows of a campaign and at its end.

One that drifted says that the rows since the run before were measured on a machine that changed: they
become ``suspect`` and run once more (METHOD.md section 4). CPU rows are not watched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench import steady
from bench.config import COMPARISON, SINGLE
from bench.hardware import gpus_of
from bench.host.outcome import Outcome
from bench.host.plan import Action, Decision
from bench.matrix import Row
from bench.record import Code, Result, Status


@dataclass
class Watch:
    """One hardware of one campaign."""

    reference: Row
    median_seconds: float | None = None
    """Of the reference's last run."""
    between: list[Outcome] = field(default_factory=list)
    """What was measured since then, and so is not confirmed yet."""
    rows_since_asked: int = 0
    asked: bool = False


class References:
    """``due`` says when; ``judge`` says what follows."""

    def __init__(self, rows: Iterable[Row], every: int = COMPARISON.reference_every) -> None:
        self.every = every
        self.watches: dict[str, Watch] = {}
        references = [row for row in rows if row.is_reference and row.gpu is not None]
        for row in sorted(references, key=lambda row: row.use_case != ("txt2img", "none")):
            self.watches.setdefault(row.hardware, Watch(row))

    def due(self, upcoming: Row | None) -> Decision | None:
        """The reference to run before ``upcoming``; at the end of the queue (None), one that confirms the
        last rows. A reference that cannot run is asked for once and holds nothing up."""
        watch = self._waiting(upcoming)
        if watch is None:
            return None
        watch.asked, watch.rows_since_asked = True, 0
        return self.again(watch.reference.hardware, "the reference again")

    def again(self, hardware: str, reason: str) -> Decision | None:
        """Its reference, whether due or not; None where it has none."""
        watch = self._watch_of(hardware)
        if watch is None:
            return None
        return Decision(watch.reference, Action.RUN, reason, (SINGLE,), repeated=True)

    def expected(self, to_run: Sequence[Decision], lanes: int) -> Counter[Row]:
        """How often ``due`` will ask for each reference, about, where so many GPUs share these rows."""
        attempts: Counter[Row] = Counter()
        for item in to_run:
            watch = self._watch_of(item.row.hardware)
            if watch is not None and watch.reference.row != item.row.row:
                attempts[watch.reference] += item.attempts
        opened = {item.row for item in to_run}  # in its turn, as every row
        return Counter(
            {
                row: lanes * (1 + math.ceil(count / lanes / self.every)) - (row in opened)
                for row, count in attempts.items()
            }
        )

    def _watch_of(self, hardware: str) -> Watch | None:
        """Rows of several GPUs have no reference among them: that of one such GPU stands in."""
        return self.watches.get(hardware) or self.watches.get(f"{gpus_of(hardware)[0]}x1")

    def _waiting(self, upcoming: Row | None) -> Watch | None:
        if upcoming is None:
            unconfirmed = (watch for watch in self.watches.values() if watch.rows_since_asked)
            # Without an earlier run there is nothing to be held against.
            return next((watch for watch in unconfirmed if watch.median_seconds is not None), None)
        watch = self._watch_of(upcoming.hardware)
        if watch is None or upcoming.row == watch.reference.row:
            return None
        opens = watch.median_seconds is None and not watch.asked
        return watch if opens or watch.rows_since_asked >= self.every else None

    def judge(self, outcome: Outcome) -> list[Outcome]:
        """Takes note of an attempt. Returns the earlier ones that it makes suspect, marked."""
        watch = self._watch_of(outcome.row.hardware)
        if watch is None:
            return []
        if outcome.row.row != watch.reference.row:
            watch.between.append(outcome)
            watch.rows_since_asked += 1
            return []
        median = median_seconds(outcome.result)
        if median is None:
            return []  # nothing to hold against anything; those between wait for the next one
        before, watch.median_seconds = watch.median_seconds, median
        between, watch.between, watch.rows_since_asked = watch.between, [], 0
        if before is None or not steady.references_disagree(before, median):
            return []
        reason = (
            f"the reference (row {watch.reference.row}) took {before:.3f} s before and {median:.3f} s after"
            f" ({median / before - 1:+.1%}): the machine changed in between"
        )
        return [_suspected(each, reason) for each in between if each.result.status.code is Code.OK]


def median_seconds(result: Result) -> float | None:
    """Of the plain cell; None where it has no number, or none to be trusted."""
    cell = result.cell(*SINGLE)
    return cell.latency.p50.value if cell and cell.latency and cell.status.code is Code.OK else None


def _suspected(outcome: Outcome, reason: str) -> Outcome:
    status = Status(code=Code.SUSPECT, reason=reason)
    cells = [
        cell.model_copy(update={"status": status}) if cell.status.code is Code.OK else cell
        for cell in outcome.result.cells
    ]
    return outcome.with_result(outcome.result.model_copy(update={"status": status, "cells": cells}))
