"""What a campaign is asked for and what it will do: settings, the plan, and the hardware it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bench import layout
from bench.config import CELLS, Budget, Shape, cells_of
from bench.flux import weights_of
from bench.host import history, leases
from bench.host.estimate import Estimates
from bench.host.gpus import Gpu, candidates, misfit
from bench.host.leases import Lease
from bench.host.local import Executor, Job, LocalExecutor
from bench.host.plan import Action, Decision, Wanted, by_value, decide, may_run
from bench.host.supervise import GRACE_SECONDS
from bench.identity import cpu_host_id, fingerprint_of, ingredients
from bench.matrix import Row, references_of
from bench.record import Ingredients


@dataclass(frozen=True)
class Settings:
    results: Path
    weights: str
    """Source for flux.1-dev rows: ``hub`` or ``synthetic``. Rows of the tiny model have their own."""
    budget: Budget
    cells: tuple[Shape, ...] | None
    """None: of each row those that are usual on its hardware."""
    timeout_seconds: float | None = None
    """For one attempt; None derives it from the estimate."""
    grace_seconds: float = GRACE_SECONDS
    max_hours: float | None = None
    """Wall time after which no row starts that would not end in time."""
    price_per_gpu_hour: float | None = None
    """In the user's currency."""
    retry: bool = False
    again: bool = False
    pack: bool = True
    """Screening rows of one GPU run side by side, one per GPU of this machine."""
    elsewhere: bool = False
    """What another machine with the same GPUs has done is done."""

    def cells_of(self, row: Row) -> tuple[Shape, ...]:
        return self.cells or cells_of(row.gpu_count)

    def weights_of(self, row: Row) -> str:
        return weights_of(row, self.weights)


@dataclass
class Plan:
    decisions: list[Decision]
    """In the order in which rows will run."""
    estimates: Estimates
    added: frozenset[str] = frozenset()
    """Ids of references that nobody chose, and that the chosen rows are held against."""

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
        self._named: set[str] = set()
        self._reference_hosts: frozenset[str] = frozenset()
        self.wanted = Wanted(
            budget=settings.budget,
            cells=settings.cells or CELLS,
            host_ids=frozenset([cpu_host_id(), *(gpu.uuid for gpu in gpus)]),
            retry=settings.retry,
            again=settings.again,
            gpu_names=frozenset(gpu.name for gpu in gpus) if settings.elsewhere else frozenset(),
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
        return Job(
            row=row,
            weights=weights,
            budget=self.settings.budget.name,
            cells=decision.cells,
            attempt_dir=layout.attempt_dir(self.settings.results, row, weights, self._new_attempt()),
            gpu_uuids=self.gpus_of(row, leased),
            lease_descriptors=descriptors,
        )

    def _new_attempt(self) -> str:
        """No name twice: every GPU may start the reference in the same second."""
        while (name := layout.new_attempt()) in self._named:
            pass
        self._named.add(name)
        return name

    def gpus_of(self, row: Row, leased: Collection[str]) -> tuple[str, ...]:
        """UUIDs of the leased GPUs that the row runs on."""
        fitting = [gpu.uuid for gpu in candidates(row, self.gpus) if gpu.uuid in leased]
        return tuple(fitting[: row.gpu_count])

    def index_of(self, uuid: str) -> int:
        return next(gpu.index for gpu in self.gpus if gpu.uuid == uuid)

    def misfit(self, row: Row) -> str | None:
        """What the machine lacks for the row: hardware, or the place to run it in."""
        return misfit(row, self.gpus) or self.executor.lacks(row)

    def on(self, *host_ids: str) -> Wanting:
        """The same question for a part of this machine: a reference is done there when one of these GPUs, or
        the CPU, has run it."""
        part = copy(self)
        part._reference_hosts = frozenset(host_ids)
        return part

    def decide(
        self, row: Row, past: history.Past, *, retry: bool | None = None, again: bool | None = None
    ) -> Decision:
        """``retry`` and ``again`` instead of what the settings say."""
        wanted = replace(
            self.wanted,
            cells=self.settings.cells_of(row),
            retry=self.wanted.retry if retry is None else retry,
            again=self.wanted.again if again is None else again,
        )
        if self._reference_hosts and row.is_reference:
            wanted = replace(wanted, host_ids=self._reference_hosts)
        weights = self.settings.weights_of(row)
        misfit = self.misfit(row)
        # Of thousands of rows most are of other hardware: what they would measure is not hashed.
        fingerprint = "" if misfit else self.fingerprint(row)
        return decide(row, past, fingerprint, wanted, misfit, weights)


def make_plan(rows: Sequence[Row], wanting: Wanting, matrix: Iterable[Row] = ()) -> Plan:
    """Reads what is on disk, decides about every row; runs and writes nothing. References that the rows lack
    are added from the ``matrix``."""
    pasts: dict[str, history.Past] = {}

    def decided(row: Row) -> Decision:
        pasts[row.row] = wanting.past(row)
        return wanting.decide(row, pasts[row.row])

    decisions = {row.row: decided(row) for row in rows}
    needed = references_of(watched(decisions.values()), matrix)
    added = {row.row: decided(row) for row in needed if row.row not in decisions}
    decisions |= added
    to_run = {item.row.group for item in decisions.values() if item.action is Action.RUN}
    for item in list(decisions.values()):
        if item.row.is_reference and item.row.group in to_run:
            cells = wanting.settings.cells_of(item.row)[:1]
            decisions[item.row.row] = with_pictures(item, pasts[item.row.row], cells)
    in_order = [decisions[row.row] for row in by_value(item.row for item in decisions.values())]
    return Plan(in_order, Estimates.from_pasts(pasts), frozenset(added))


def watched(decisions: Iterable[Decision]) -> Iterator[Row]:
    """The rows that must have a reference here: measured on a GPU of this machine, or about to be. On a CPU
    speed only says that the path works, and the reference may take many times as long as the rows."""
    for item in decisions:
        if item.row.gpu is not None and may_run(item) and not item.elsewhere:
            yield item.row


def with_pictures(reference: Decision, past: history.Past, cells: tuple[Shape, ...]) -> Decision:
    """Run once more for its pictures, where it is done and they are gone."""
    if reference.action not in (Action.DONE, Action.MARKED) or past.has_pictures():
        return reference
    reason = "measured, but its pictures are gone, and those of the other rows are compared with them"
    return replace(reference, action=Action.RUN, reason=reason, cells=cells, repeated=True)


def take_leases(plan: Plan, gpus: Sequence[Gpu], wait_seconds: float, packed: Collection[Row] = ()) -> Lease:
    """What the largest row of each kind needs, for as long as the campaign lasts, all or nothing; of what is
    free beyond that, a GPU for each of the ``packed`` rows. A campaign that gave GPUs back between rows could
    not be sure to get the same ones again."""
    rows = [decision.row for decision in plan.to_run]
    holder = f"fluxbench, {len(rows)} rows, since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    taken: list[Lease] = []
    try:
        if any(row.gpu is None for row in rows):
            taken.append(leases.take(["cpu"], 1, holder, wait_seconds))
        for kind in sorted({row.gpu for row in rows if row.gpu is not None}):
            largest = max((row for row in rows if row.gpu == kind), key=lambda row: row.gpu_count)
            uuids = [gpu.uuid for gpu in candidates(largest, gpus)]
            side_by_side = sum(row.gpu == kind for row in packed)
            most = max(largest.gpu_count, side_by_side)
            taken.append(leases.take(uuids, largest.gpu_count, holder, wait_seconds, most=most))
    except BaseException:
        for lease in taken:
            lease.release()
        raise
    return leases.joined(taken)
