"""The course of a campaign: refusals are written down, screening rows run one per GPU, the rest alone.

refusals -> [reference alone] -> a lane per GPU, all at once -> rows of several GPUs, finalists, cpu rows
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from bench import layout, record
from bench.host import attempt, packing
from bench.host.campaign import Board, Campaign, broken_off_by, environments
from bench.host.fanout import Plan, Wanting
from bench.host.gpus import candidates, misfit
from bench.host.leases import Lease
from bench.host.local import Executor
from bench.host.outcome import Summary
from bench.host.plan import Action
from bench.host.progress import Display
from bench.host.supervise import Stop
from bench.record import Code, Status


def run(
    plan: Plan, wanting: Wanting, executor: Executor, lease: Lease, display: Display, stop: Stop
) -> Summary:
    """Everything that the plan has to run."""

    def lane_on(uuid: str, shared: Board) -> Campaign:
        lane, part = f"GPU {wanting.index_of(uuid)}", lease.part(uuid)
        return Campaign(plan, wanting.on(uuid), executor, part, display, stop, shared, lane)

    board = Board()
    try:
        write_refusals(plan, wanting)
    except OSError as error:
        board.summary.broke_off = broken_off_by(error)
        return board.summary
    alone = plan.to_run
    for packed in packing.packed(plan.to_run, wanting.settings):
        fitting = [gpu.uuid for gpu in candidates(packed[0].row, wanting.gpus)]
        uuids = [uuid for uuid in lease.names if uuid in fitting][: len(packed)]
        if len(uuids) > 1:
            alone = [decision for decision in alone if decision not in packed]
            shared = replace(board, queue=deque())
            shared.fill(packed, again=wanting.settings.again)
            run_lanes([lane_on(uuid, shared) for uuid in uuids], wanting, display)
    board.fill(alone, again=wanting.settings.again)
    return Campaign(plan, wanting, executor, lease, display, stop, board).run()


def run_lanes(lanes: Sequence[Campaign], wanting: Wanting, display: Display) -> None:
    """Each lane runs the reference on its GPU first. What they cost each other is measured on the first one,
    once for these GPUs: its reference alone, then while all others run theirs."""
    first = lanes[0]
    uuids = [lane.lease.names[0] for lane in lanes]
    path = layout.packing_path(wanting.settings.results, uuids)
    known = packing.read(path)
    why = "the reference, to know what packing costs"
    reference = None if known else first.references.again(first.queue[0].row.hardware, why)
    if reference is not None:
        first.run_one(reference)

    def work(lane: Campaign) -> None:
        if lane is first and reference is not None:
            lane.run_one(reference)  # now beside those of the other lanes
        lane.run()

    with ThreadPoolExecutor(len(lanes)) as threads:
        done = list(threads.map(work, lanes))
    if reference is not None:
        known = packing.cost_of(first.summary.outcomes, reference.row, uuids[0], len(done))
        if known is not None:
            packing.write(path, known)
    display.note(packing.words(known))


def write_refusals(plan: Plan, wanting: Wanting) -> None:
    """Once for each: the rule that says no is part of the row's results, like a number would be. Of hardware
    that is not here nothing is written: this machine's name has no place among that hardware's results."""
    here = environments(wanting.gpus)
    for decision in plan.having(Action.UNSUPPORTED):
        row = decision.row
        if misfit(row, wanting.gpus):
            continue
        status = Status(code=Code.UNSUPPORTED, reason=decision.reason)
        fingerprint = wanting.fingerprint(row)
        past = wanting.past(row).results
        if any(result.status == status and result.fingerprint == fingerprint for _, result in past):
            continue
        job = wanting.job(decision)
        started = attempt.first_result(job, wanting.ingredients(row), here(()))
        record.save(started.model_copy(update={"status": status}), job.attempt_dir)
