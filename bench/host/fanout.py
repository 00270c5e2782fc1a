"""What a campaign is asked for and what it will do: settings, the plan, and the hardware it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bench import layout
from bench.config import Budget
from bench.host import history, leases
from bench.host.estimate import Estimates
from bench.host.gpus import Gpu, candidates, misfit
from bench.host.leases import Lease
from bench.host.local import Executor, Job, LocalExecutor
from bench.host.plan import Action, CellShape, Decision, Wanted, by_value, decide
from bench.host.supervise import GRACE_SECONDS
from bench.identity import cpu_host_id, fingerprint_of, ingredients
from bench.matrix import Row
from bench.record import Ingredients


@dataclass(frozen=True)
class Settings:
    results: Path
    weights: str
    """Source for flux.1-dev rows: ``hub`` or ``synthetic``. Rows of the tiny model have their own."""
    budget: Budget
    cells: tuple[CellShape, ...]
    timeout_seconds: float | None = None
    """For one attempt; None derives it from the estimate."""
    grace_seconds: float = GRACE_SECONDS
    max_hours: float | None = None
    """Wall time after which no row starts that would not end in time."""
    retry: bool = False
    again: bool = False

    def weights_of(self, row: Row) -> str:
        return "tiny" if row.model == "tiny" else self.weights


@dataclass
class Plan:
    decisions: list[Decision]
    """In the order in which rows will run."""
    estimates: Estimates

    @property
    def to_run(self) -> list[Decision]:
        return self.having(Action.RUN)

    def seconds(self, decision: Decision, budget: Budget) -> float:
        """Of all the attempts that the row still needs."""
        return decision.attempts * self.estimates.seconds(decision.row, budget.name, decision.cells)

    def having(self, action: Action) -> list[Decision]:
        return [decision for decision in self.decisions if decision.action is action]


class Wanting:
    """The question that is asked of every row: what is left to do about it here, now?"""

    def __init__(self, settings: Settings, gpus: Sequence[Gpu], executor: Executor | None = None) -> None:
        self.settings = settings
        self.gpus = gpus
        self.executor = executor or LocalExecutor()
        self.wanted = Wanted(
            budget=settings.budget,
            cells=settings.cells,
            host_ids=frozenset([cpu_host_id(), *(gpu.uuid for gpu in gpus)]),
            retry=settings.retry,
            again=settings.again,
        )

    def past(self, row: Row) -> history.Past:
        return history.read(self.settings.results, row, self.settings.weights_of(row))

    def ingredients(self, row: Row) -> Ingredients:
        return ingredients(row, self.settings.weights_of(row), self.executor.lock(row))

    def fingerprint(self, row: Row) -> str:
        return fingerprint_of(row, self.ingredients(row))

    def job(self, decision: Decision, leased: Collection[str] = (), descriptors: tuple[int, ...] = ()) -> Job:
        """A new attempt, on GPUs of the ``leased`` ones (UUIDs)."""
        row, weights = decision.row, self.settings.weights_of(decision.row)
        uuids = [gpu.uuid for gpu in candidates(row, self.gpus) if gpu.uuid in leased]
        return Job(
            row=row,
            weights=weights,
            budget=self.settings.budget.name,
            cells=decision.cells,
            attempt_dir=layout.attempt_dir(self.settings.results, row, weights, layout.new_attempt()),
            gpu_uuids=tuple(uuids[: row.gpu_count]),
            lease_descriptors=descriptors,
        )

    def misfit(self, row: Row) -> str | None:
        """What the machine lacks for the row: hardware, or the place to run it in."""
        return misfit(row, self.gpus) or self.executor.lacks(row)

    def decide(self, row: Row, past: history.Past, *, retry: bool | None = None) -> Decision:
        wanted = self.wanted if retry is None else replace(self.wanted, retry=retry)
        weights = self.settings.weights_of(row)
        return decide(row, past, self.fingerprint(row), wanted, self.misfit(row), weights)


def make_plan(rows: Iterable[Row], wanting: Wanting) -> Plan:
    """Reads what is on disk, decides about every row; runs and writes nothing."""
    pasts = {row.row: wanting.past(row) for row in rows}
    decisions = [wanting.decide(row, pasts[row.row]) for row in by_value(rows)]
    return Plan(decisions, Estimates.from_pasts(pasts))


def take_leases(plan: Plan, gpus: Sequence[Gpu], wait_seconds: float) -> Lease:
    """What the largest row of each kind needs, for as long as the campaign lasts, all or nothing. A
    campaign that gave GPUs back between rows could not be sure to get the same ones again."""
    rows = [decision.row for decision in plan.to_run]
    holder = f"fluxbench, {len(rows)} rows, since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    taken: list[Lease] = []
    try:
        if any(row.gpu is None for row in rows):
            taken.append(leases.take(["cpu"], 1, holder, wait_seconds))
        for kind in sorted({row.gpu for row in rows if row.gpu is not None}):
            largest = max((row for row in rows if row.gpu == kind), key=lambda row: row.gpu_count)
            uuids = [gpu.uuid for gpu in candidates(largest, gpus)]
            taken.append(leases.take(uuids, largest.gpu_count, holder, wait_seconds))
    except BaseException:
        for lease in taken:
            lease.release()
        raise
    return leases.joined(taken)
