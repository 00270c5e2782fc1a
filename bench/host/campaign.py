"""A campaign: rows one after another, each attempt in a fresh process, results on disk as they come.

    plan (what, in which order, how long) -> lease -> attempt, attempt, ... -> summary

Whatever ends it, everything on disk is whole, and the same command goes on from there.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial

from bench import layout, record
from bench.host import attempt, leases
from bench.host.estimate import gpu_hours, timeout_seconds
from bench.host.fanout import Plan, Wanting
from bench.host.gpus import Gpu
from bench.host.leases import Lease
from bench.host.local import Executor
from bench.host.outcome import Outcome, Summary
from bench.host.plan import Action, Decision
from bench.host.progress import AttemptWatch, Display, Look, clock
from bench.host.references import References
from bench.host.supervise import Stop, supervise
from bench.matrix import Row
from bench.record import Code, Environment, Status

FREE_DISK_BYTES = 50_000_000
"""Least free space under results/ with which an attempt starts: its images, latents and log."""

WHENEVER_ASKED = frozenset(code for code, limit in record.RETRIES.items() if limit is None)
"""What is tried again by the next command, not by this one."""

FREE_SPACE = "free space and run the same command again"


class Campaign:
    """Runs a plan on leased hardware, and remembers what became of it."""

    def __init__(
        self,
        plan: Plan,
        wanting: Wanting,
        executor: Executor,
        lease: Lease,
        display: Display,
        stop: Stop,
    ) -> None:
        self.plan = plan
        self.wanting = wanting
        self.settings = wanting.settings
        self.executor = executor
        self.lease = lease
        self.environments = environments(wanting.gpus)
        self.display = display
        self.stop = stop
        self.summary = Summary()
        self.begun = time.monotonic()
        self.references = References(decision.row for decision in plan.decisions if _may_run(decision))
        self.rescheduled: set[str] = set()
        again = self.settings.again
        self.queue = deque(item for item in plan.to_run for _ in range(item.attempts if again else 1))

    def run(self) -> Summary:
        try:
            for decision in self.plan.having(Action.UNSUPPORTED):
                self._write_unsupported(decision)
            self._run_queue()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = FREE_SPACE if full else "mend that and run the same command again"
            self.summary.broke_off = f"{error}; {advice}"
        self.summary.stopped_by = self.stop.signal_number
        return self.summary

    def _run_queue(self) -> None:
        while (decision := self._next()) is not None:
            free_bytes = shutil.disk_usage(self.settings.results).free
            if free_bytes < FREE_DISK_BYTES:
                self.summary.broke_off = (
                    f"{free_bytes / 1e6:.0f} MB free under {self.settings.results}, and an attempt needs "
                    f"{FREE_DISK_BYTES / 1e6:.0f}; {FREE_SPACE}"
                )
                return
            if late := self._too_late(decision):
                self._leave_out(decision.row, late)
            else:
                self._run_row(decision)

    def _next(self) -> Decision | None:
        """The next row, or the reference where it has to stand between; None at the end."""
        if self.stop.asked:
            return None
        if not self.settings.again:
            reference = self.references.due(self.queue[0].row if self.queue else None)
            if reference is not None:
                return reference
        return self.queue.popleft() if self.queue else None

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
        self.display.note(outcome.line())
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
            if suspect.row.row not in self.rescheduled:
                self.rescheduled.add(suspect.row.row)
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

    def _write_unsupported(self, decision: Decision) -> None:
        """Once: the rule that says no is part of the row's results, like a number would be."""
        row = decision.row
        status = Status(code=Code.UNSUPPORTED, reason=decision.reason)
        print_ = self.wanting.fingerprint(row)
        past = self.wanting.past(row).results
        if any(result.status == status and result.fingerprint == print_ for _, result in past):
            return
        job = self.wanting.job(decision)
        started = attempt.first_result(job, self.wanting.ingredients(row), self.environments(()))
        record.save(started.model_copy(update={"status": status}), job.attempt_dir)

    def _estimate(self, decision: Decision) -> float:
        return self.plan.estimates.seconds(decision.row, self.settings.budget.name, decision.cells)

    def _too_late(self, decision: Decision) -> str | None:
        """Why the row no longer fits into the campaign's time; a shorter one after it still may."""
        if self.settings.max_hours is None:
            return None
        left = self.settings.max_hours * 3600 - (time.monotonic() - self.begun)
        expected = self._estimate(decision)
        if expected <= left:
            return None
        return f"it takes about {clock(expected)} and --max-hours leaves {clock(max(left, 0))}"

    def _look(self, row: Row, watch: AttemptWatch, elapsed: float, expected: float) -> Look:
        waiting = sum(self._estimate(decision) for decision in self.queue)
        used = sum(gpu_hours(outcome.row, outcome.seconds) for outcome in self.summary.outcomes)
        number = len(self.summary.outcomes) + 1
        return Look(
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
        folder = layout.row_dir(self.settings.results, row) / self.settings.weights_of(row)
        return f"row-{layout.place_id(folder)}"


def _may_run(decision: Decision) -> bool:
    return decision.action in (Action.RUN, Action.DONE)


def environments(gpus: Sequence[Gpu]) -> Callable[[tuple[str, ...]], Environment]:
    """UUIDs of a row's GPUs -> what the host knows of the place; asked once for each set of GPUs, because
    drivers answer slowly. The runner's own account replaces it."""

    @cache
    def of(uuids: tuple[str, ...]) -> Environment:
        from bench.runner.environment import collect

        return collect([gpu for gpu in gpus if gpu.uuid in uuids])

    return of
