"""A campaign: rows one after another, each attempt in a fresh process, results on disk as they come.

    plan (what, in which order, how long) -> lease -> attempt, attempt, ... -> summary

Whatever ends it, everything on disk is whole, and the same command goes on from there. Where rows are packed
one per GPU (``packing.py``), several campaigns work on one board at once, each with its own GPU.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from threading import Lock

from bench import layout, record
from bench.host import attempt, leases, packing
from bench.host.estimate import gpu_hours, timeout_seconds
from bench.host.fanout import Plan, Wanting
from bench.host.gpus import Gpu
from bench.host.leases import Lease
from bench.host.local import Executor
from bench.host.outcome import Outcome, Summary
from bench.host.plan import Action, Decision, may_run
from bench.host.progress import AttemptWatch, Display, Look, clock
from bench.host.references import References
from bench.host.supervise import Stop, supervise
from bench.matrix import Group, Row, references_of
from bench.record import Environment

FREE_DISK_BYTES = 50_000_000
"""Least free space under results/ with which an attempt starts: its images, latents and log."""

WHENEVER_ASKED = frozenset(code for code, limit in record.RETRIES.items() if limit is None)
"""What is tried again by the next command, not by this one."""

FREE_SPACE = "free space and run the same command again"


@dataclass
class Board:
    """What is left to do and what became of the rest. Several lanes may share it."""

    queue: deque[Decision] = field(default_factory=deque)
    summary: Summary = field(default_factory=Summary)
    rescheduled: set[str] = field(default_factory=set)
    """Rows that ran once more because references disagreed."""
    begun: float = field(default_factory=time.monotonic)
    groups: set[Group] = field(default_factory=set)
    """Use cases that some lane has begun."""
    lock: Lock = field(default_factory=Lock)

    def fill(self, decisions: Iterable[Decision], *, again: bool) -> None:
        """``again``: every process that the budget asks for at once; else the later ones are decided on when
        the first has ended."""
        self.queue.extend(item for item in decisions for _ in range(item.attempts if again else 1))


class Campaign:
    """Runs what is on its board on leased hardware. Without a board: the whole plan. ``lane`` names the GPU
    where several work side by side."""

    def __init__(
        self,
        plan: Plan,
        wanting: Wanting,
        executor: Executor,
        lease: Lease,
        display: Display,
        stop: Stop,
        board: Board | None = None,
        lane: str | None = None,
    ) -> None:
        self.plan = plan
        self.wanting = wanting
        self.settings = wanting.settings
        self.executor = executor
        self.lease = lease
        self.environments = environments(wanting.gpus)
        self.display = display
        self.stop = stop
        self.references = References(decision.row for decision in plan.decisions if may_run(decision))
        if board is None:
            board = Board()
            board.fill(plan.to_run, again=self.settings.again)
        self.board, self.queue, self.summary = board, board.queue, board.summary
        self.lane = lane
        self.asked: set[tuple[Group, tuple[str, ...]]] = set()
        """Groups, and the GPUs of their rows that were asked for their reference. Once: it may fail."""

    def run(self) -> Summary:
        while not self.summary.broke_off and (decision := self._next()) is not None:
            self.run_one(decision)
        self.summary.stopped_by = self.stop.signal_number
        return self.summary

    def run_one(self, decision: Decision) -> None:
        """Nothing, where the campaign is being stopped. What ends it stands in the summary then."""
        try:
            if not self.stop.asked:
                self._run_if_it_fits(decision)
        except OSError as error:
            self.summary.broke_off = broken_off_by(error)

    def _run_if_it_fits(self, decision: Decision) -> None:
        free_bytes = shutil.disk_usage(self.settings.results).free
        if free_bytes < FREE_DISK_BYTES:
            self.summary.broke_off = (
                f"{free_bytes / 1e6:.0f} MB free under {self.settings.results}, and an attempt needs "
                f"{FREE_DISK_BYTES / 1e6:.0f}; {FREE_SPACE}"
            )
        elif late := self._too_late(decision):
            self._leave_out(decision.row, late)
        else:
            self._run_row(decision)

    def _next(self) -> Decision | None:
        """The next row, or the reference where it has to stand between; None at the end."""
        if self.stop.asked:
            return None
        with self.board.lock:
            if self.lane is None:
                upcoming = self.queue[0] if self.queue else None
            else:
                own = {group for group, _ in self.asked}
                upcoming = packing.pick(self.queue, own, self.board.groups)
            if not self.settings.again:
                reference = self.references.due(upcoming.row if upcoming else None)
                if reference is not None:
                    return reference
            if upcoming is None:
                return None
            if not self.settings.again and (first := self._own_reference(upcoming.row)) is not None:
                return first
            self.queue.remove(upcoming)
            return upcoming

    def _own_reference(self, upcoming: Row) -> Decision | None:
        """The reference of the row's group, where none of the row's GPUs has run it; the row itself waits."""
        gpus = self.wanting.gpus_of(upcoming, self.lease.names)
        if not gpus or (upcoming.group, gpus) in self.asked:
            return None
        self.asked.add((upcoming.group, gpus))
        self.board.groups.add(upcoming.group)
        planned = (decision.row for decision in self.plan.decisions)
        reference = next(iter(references_of([upcoming], planned)), None)
        if reference is None or reference.row == upcoming.row:
            return None
        if self.lane is None and any(item.row == reference for item in self.queue):
            return None  # in its turn; of a shared queue another GPU may take it
        there = self.wanting.on(*gpus)
        decision = there.decide(reference, there.past(reference))
        reason = "the reference of its use case on this GPU"
        return replace(decision, reason=reason, repeated=True) if decision.action is Action.RUN else None

    def _run_row(self, decision: Decision) -> None:
        row = decision.row
        try:
            claim = leases.take([self._claim_name(row)], 1, row.label)
        except leases.Busy as busy:
            self._leave_out(row, f"another fan-out is at it: {busy}")
            return
        with claim:
            # Once more, now that nobody else can be at it: another fan-out may have done it meanwhile.
            if not decision.repeated:
                decision = self.wanting.decide(row, self.wanting.past(row))
            if decision.action is not Action.RUN:
                self._leave_out(row, decision.reason)
                return
            outcome = self._attempt(decision, claim)
        self.summary.outcomes.append(outcome)
        self.display.note("\n".join([outcome.line(), *outcome.log()]))
        self._hold_against_reference(outcome)
        if not decision.repeated:
            self._maybe_again(row, outcome)

    def _hold_against_reference(self, outcome: Outcome) -> None:
        """Rows between two references that disagree are marked on disk, and run once more."""
        for suspect in self.references.judge(outcome):
            record.save(suspect.result, suspect.path.parent)
            self.display.note(suspect.line())
            place = next(i for i, each in enumerate(self.summary.outcomes) if each.path == suspect.path)
            self.summary.outcomes[place] = suspect
            if suspect.row.row not in self.board.rescheduled:
                self.board.rescheduled.add(suspect.row.row)
                self.queue.append(Decision(suspect.row, Action.RUN, "suspect", suspect.asked))

    def _leave_out(self, row: Row, reason: str) -> None:
        self.summary.left_out.append((row, reason))
        self.display.note(f"{row.label}: left out, {reason}")

    def _attempt(self, decision: Decision, claim: Lease) -> Outcome:
        row = decision.row
        descriptors = (*self.lease.descriptors, *claim.descriptors)
        job = self.wanting.job(decision, self.lease.names, descriptors)
        expected = self._estimate(decision)
        started = attempt.first_result(job, self.wanting.ingredients(row), self.environments(job.gpu_uuids))
        watch = AttemptWatch(job.attempt_dir)
        begun = time.monotonic()

        def look() -> None:
            watch.look()
            self.display.look(self._look(row, watch, time.monotonic() - begun, expected))

        look()
        limit = self.settings.timeout_seconds or timeout_seconds(expected)
        watching = partial(
            supervise,
            timeout_seconds=limit,
            stop=self.stop,
            look=look,
            grace_seconds=self.settings.grace_seconds,
        )
        result = attempt.execute(self.executor, job, started, watching)
        seconds = time.monotonic() - begun
        if result.status.code in record.HAS_NUMBERS:
            self.plan.estimates.learn(row, job.budget, job.cells, seconds)
        return Outcome(row, decision.cells, result, job.attempt_dir / layout.RESULT, seconds)

    def _maybe_again(self, row: Row, outcome: Outcome) -> None:
        """Back to the end of the queue: a budget of several processes, cells that a crash left unmeasured,
        a retry that METHOD.md grants."""
        if self.settings.again or outcome.result.status.code in WHENEVER_ASKED:
            return
        if outcome.result.fingerprint != self.wanting.fingerprint(row):
            self.display.note(
                f"{row.label}: code or packages changed while it ran; its result is stale already"
            )
            return
        decision = self.wanting.decide(row, self.wanting.past(row), retry=False)
        if decision.action is Action.RUN:
            self.queue.append(decision)

    def _estimate(self, decision: Decision) -> float:
        return self.plan.estimates.seconds(decision.row, self.settings.budget.name, decision.cells)

    def _too_late(self, decision: Decision) -> str | None:
        """Why the row no longer fits into the campaign's time; a shorter one after it still may."""
        if self.settings.max_hours is None:
            return None
        left = self.settings.max_hours * 3600 - (time.monotonic() - self.board.begun)
        expected = self._estimate(decision)
        if expected <= left:
            return None
        return f"it takes about {clock(expected)} and --max-hours leaves {clock(max(left, 0))}"

    def _look(self, row: Row, watch: AttemptWatch, elapsed: float, expected: float) -> Look:
        waiting = sum(self._estimate(decision) for decision in self.queue)
        used = sum(gpu_hours(outcome.row, outcome.seconds) for outcome in self.summary.outcomes)
        number = len(self.summary.outcomes) + 1
        return Look(
            lane=self.lane or "",
            label=row.label,
            number=number,
            total=number + len(self.queue),
            phase=watch.phase,
            requests=watch.requests,
            elapsed_seconds=elapsed,
            expected_seconds=expected,
            rest_seconds=waiting + max(expected - elapsed, 0.0),
            gpu_hours=used + gpu_hours(row, elapsed),
        )

    def _claim_name(self, row: Row) -> str:
        """One a row; of the reference one a GPU, for each GPU has its own."""
        folder = layout.row_dir(self.settings.results, row) / self.settings.weights_of(row)
        gpus = self.wanting.gpus_of(row, self.lease.names) if row.is_reference else ()
        return "-".join(["row", layout.place_id(folder), *gpus])


def broken_off_by(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{error}; {FREE_SPACE if full else 'mend that and run the same command again'}"


def environments(gpus: Sequence[Gpu]) -> Callable[[tuple[str, ...]], Environment]:
    """UUIDs of a row's GPUs -> what the host knows of the place; asked once for each set of GPUs, because
    drivers answer slowly. The runner's own account replaces it."""

    @cache
    def of(uuids: tuple[str, ...]) -> Environment:
        from bench.runner.environment import collect

        return collect([gpu for gpu in gpus if gpu.uuid in uuids])

    return of
