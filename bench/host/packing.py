"""Which rows run side by side, one per GPU, and what that costs each of them.

Screening rows (probe, quick) of one GPU share the machine: on eight GPUs a phase takes an eighth of the
time. They share its processor, memory and power too, and results compare on one GPU only. So each GPU runs,
under the same conditions, the reference of every use case that it takes rows of, and keeps to few use cases.
Finalists run alone. Deciding is pure here; ``course.py`` does it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bench.config import COMPARISON, PROBE, QUICK, SINGLE
from bench.host.fanout import Plan, Settings
from bench.host.gpus import Gpu, candidates
from bench.host.outcome import Outcome
from bench.host.plan import Action, Decision, may_run
from bench.host.references import References, median_seconds
from bench.matrix import Group, Row
from bench.record import Strict, write_atomically

SCREENING = frozenset({PROBE.name, QUICK.name})
"""Budgets that look for candidates; standard and full are for finalists."""


class PackingCost(Strict):
    """The reference on one GPU, alone and while the others work. Written once for a set of GPUs."""

    gpu: str
    """UUID of the one that was measured."""
    gpus: int
    """How many worked at once."""
    row: str
    fingerprint: str
    alone_seconds: float
    """p50 of 1x1."""
    packed_seconds: float
    alone_attempt: str
    packed_attempt: str
    measured_at: str
    """ISO 8601, UTC."""

    @property
    def share(self) -> float:
        """How much longer a request takes: 0.01 is 1 %."""
        return self.packed_seconds / self.alone_seconds - 1


def packed(to_run: Iterable[Decision], settings: Settings) -> list[list[Decision]]:
    """The rows of one GPU that may run side by side, for each GPU model."""
    kinds: dict[str, list[Decision]] = {}
    if settings.pack and settings.budget.name in SCREENING:
        for decision in to_run:
            if decision.row.gpu is not None and decision.row.gpu_count == 1:
                kinds.setdefault(decision.row.gpu, []).append(decision)
    return list(kinds.values())


def pick(queue: Iterable[Decision], own: Collection[Group], begun: Collection[Group]) -> Decision | None:
    """What a GPU takes next: a row whose reference it has (``own``); else one of a use case that no GPU has
    ``begun``; else, to help others out, the most valuable one."""
    waiting = list(queue)
    return (
        next((each for each in waiting if each.row.group in own), None)
        or next((each for each in waiting if each.row.group not in begun), None)
        or next(iter(waiting), None)
    )


def cost_of(outcomes: Sequence[Outcome], reference: Row, uuid: str, gpus: int) -> PackingCost | None:
    """From the first two runs of the reference on this GPU: the one alone and the one beside others. None
    where one of them has no number."""
    own = [each for each in outcomes if each.row.row == reference.row and each.host_id == uuid][:2]
    seconds = [median_seconds(outcome.result) for outcome in own]
    if len(own) < 2 or seconds[0] is None or seconds[1] is None:
        return None
    alone, beside = own
    return PackingCost(
        gpu=uuid,
        gpus=gpus,
        row=reference.row,
        fingerprint=alone.result.fingerprint,
        alone_seconds=seconds[0],
        packed_seconds=seconds[1],
        alone_attempt=alone.result.attempt,
        packed_attempt=beside.result.attempt,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read(path: Path) -> PackingCost | None:
    """None where it was not measured yet, or the file is none: it is measured again then."""
    try:
        return PackingCost.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write(path: Path, cost: PackingCost) -> None:
    """A full disk loses the measurement, not the campaign that it was made beside."""
    with contextlib.suppress(OSError):
        write_atomically(path, cost.model_dump_json(indent=1) + "\n")


def work(plan: Plan, settings: Settings, gpus: Sequence[Gpu]) -> list[Decision]:
    """All that will run: the rows, and the references between them."""
    return [*plan.to_run, *repeats(plan, settings, gpus)]


def repeats(plan: Plan, settings: Settings, gpus: Sequence[Gpu]) -> list[Decision]:
    """The reference between the rows and after them: one decision for each that will be asked for, with as
    many attempts. Each GPU of several that work side by side asks for its own."""
    if settings.again:
        return []
    references = References(item.row for item in plan.decisions if may_run(item))
    alone = plan.to_run
    times: Counter[Row] = Counter()
    for rows in packed(plan.to_run, settings):
        if (count := lanes(rows, gpus)) > 1:
            times += references.expected(rows, count)
            alone = [item for item in alone if item not in rows]
    times += references.expected(alone, 1)
    return [
        Decision(row, Action.RUN, "the reference again", (SINGLE,), attempts=count, repeated=True)
        for row, count in times.items()
    ]


def wall_seconds(plan: Plan, settings: Settings, gpus: Sequence[Gpu]) -> float:
    """How long the campaign will take: rows side by side share the time, others add theirs."""

    def seconds(decisions: Iterable[Decision]) -> float:
        return sum(plan.seconds(decision, settings.budget) for decision in decisions)

    everything = work(plan, settings, gpus)
    total = seconds(everything)
    for rows in packed(everything, settings):
        total -= seconds(rows) * (1 - 1 / lanes(rows, gpus))
    return total


def lanes(rows: Sequence[Decision], gpus: Sequence[Gpu]) -> int:
    """How many of them can run at once."""
    return max(1, min(len(rows), len(candidates(rows[0].row, gpus))))


def words(cost: PackingCost | None) -> str:
    if cost is None:
        return "what packing costs was not measured: no reference among the rows, or it has no number"
    text = (
        f"packing: on {cost.gpu} the reference (row {cost.row}) takes {cost.alone_seconds:.3f} s alone and "
        f"{cost.packed_seconds:.3f} s while {cost.gpus - 1} other GPUs work ({cost.share:+.1%})"
    )
    if cost.share > COMPARISON.reference_drift:
        text += f"; more than {COMPARISON.reference_drift:.0%}: --no-pack measures one row at a time"
    return text
