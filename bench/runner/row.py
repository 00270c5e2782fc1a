"""The life of a row, to be read from top to bottom.

    idle -> imports -> load -> quantise -> apply -> warm-up -> cells -> profile -> quality -> result.json
                                             |      |
                                             alone  verify
                                             share

Each name is a phase with a time of its own; nothing is pooled. ``verify`` stands inside the first warm-up,
after the requests that every budget pays for: evidence such as compiled graphs exists only once a request
has run, the warm-up that follows wipes out what a profile disturbed, and an option that did not take part
ends the row before a paid minute of measuring. Several GPUs that share a request are held against one of
them: one paints ``alone``, ``share`` applies what makes them several, and ``verify`` paints again.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import psutil

from bench import identity, record
from bench.axes import AXES
from bench.axes.option import Unavailable
from bench.axes.parallel import ranks_of
from bench.host.attempt import cells_after
from bench.host.gpus import Gpu, candidates, inventory, misfit
from bench.matrix import Row
from bench.record import Code, Status
from bench.runner import environment, judge, links
from bench.runner.agreement import LATER
from bench.runner.diary import RUNNING, Diary
from bench.runner.job import Job
from bench.runner.ranks import Ranks
from bench.runner.server import Server
from bench.runner.telemetry import Telemetry
from bench.runner.window import add_batch_efficiency, stability
from bench.runner.worker import Engine, Worker

log = logging.getLogger(__name__)

QUANTISING = ("quantization", "text_encoder")
"""Axes whose ``apply`` changes weights; timed as a phase of their own."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(job: Job) -> record.Result:
    """Every way out of here, but for SIGKILL, leaves the final result.json; finished cells are in it."""
    job.attempt_dir.mkdir(parents=True, exist_ok=True)
    diary = Diary(job.attempt_dir, opening(job))
    with _interruptible() as ignore_signals:
        try:
            _live(job, diary)
            status = record.status_of_cells(diary.result.cells)
        except BaseException as error:
            log.error("%s ends here", job.row.label, exc_info=error)
            status = judge.status_of(error)
            if isinstance(error, judge.RankLost):
                # As when a process dies that is a row's only one: what was at work is to blame, and the next
                # attempt goes on behind it.
                diary.result.cells = cells_after(status, diary.result.cells, job.cells)
        ignore_signals()
        _complete(job, diary.result, status)
        diary.close(status)
    return diary.result


def _live(job: Job, diary: Diary) -> None:
    with serving(job, diary) as server:
        for users, images in job.cells:
            diary.finish(server.cell(users, images))
        plain = diary.result.cell()
        if server.engine.device == "cuda" and job.profiled and plain and plain.latency:
            with diary.phase("profile"):
                server.profile()
        server.account_for_communication()
        if job.quality and any(cell.latency for cell in diary.result.cells):
            with diary.phase("quality"):
                server.save_quality()


@contextmanager
def serving(job: Job, diary: Diary) -> Iterator[Server]:
    """From an idle machine to a pipeline with every option applied."""
    row, result = job.row, diary.result
    with diary.phase("idle"):
        gpus = _claim(row)
        devices = environment.devices(gpus)
        result.environment = environment.collect(gpus)
        result.anomalies = judge.machine_anomalies(result.environment) + judge.flagged(row)
        diary.save(RUNNING)
    with ExitStack() as stack:
        with diary.phase("imports"):
            engine, pids = _engine(job, "cuda" if gpus else "cpu", result.environment.image_digest, stack)
            sampling = stack.enter_context(Telemetry(job.attempt_dir, [gpu.uuid for gpu in gpus], pids))
            versions = engine.prepare()
            result.environment = result.environment.model_copy(update=versions)
        if isinstance(engine, Ranks) and len(gpus) > 1:
            with diary.phase("links"):
                _check_links(row, engine, gpus, result.environment)
        with diary.phase("load"):
            result.weights, result.manifest_sha256, _ = engine.load()
        with diary.phase("quantise"):
            engine.apply([axis for axis in AXES if axis in QUANTISING])
        shared = isinstance(engine, Ranks) and not engine.apart
        with diary.phase("apply"):
            engine.apply([axis for axis in AXES if axis not in QUANTISING and not (shared and axis in LATER)])
        if isinstance(engine, Ranks) and shared:
            with diary.phase("alone"):
                engine.paint_alone(job.cells[0][1])
            with diary.phase("share"):
                engine.apply(LATER)
        yield Server(job, diary, engine, sampling, devices)


def _engine(job: Job, device: str, image_digest: str | None, stack: ExitStack) -> tuple[Engine, list[int]]:
    """What serves the row, and the processes whose memory is its own: this one, or several that it starts."""
    ranks = ranks_of(job.row)
    if ranks == 1:
        return Worker(job.row, job.weights, device, image_digest), [os.getpid()]
    engine = stack.enter_context(Ranks(job, ranks, device, image_digest))
    return engine, engine.pids


def _check_links(row: Row, engine: Ranks, gpus: list[Gpu], machine: record.Environment) -> None:
    indices = [gpu.index for gpu in gpus]
    machine.links = links.links(engine.links(), indices, machine.topology)
    links.require_fast(row.label, machine.links, machine.variables)


def _claim(row: Row) -> list[Gpu]:
    """The row's GPUs, free and the only ones that CUDA will see, so that NVML and torch mean the same."""
    if row.gpu is None:
        return []
    present = inventory(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if missing := misfit(row, present):
        raise Unavailable(f"{row.label}: {missing}")
    gpus = candidates(row, present)[: row.gpu_count]
    environment.wait_until_idle(gpus)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in gpus)
    return gpus


def opening(job: Job) -> record.Result:
    """What is known before anything has happened."""
    ingredients = identity.ingredients(job.row, job.weights)
    return record.Result(
        status=RUNNING,
        row=job.row.model_dump(),
        attempt=job.attempt_dir.name,
        budget=job.budget.name,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=identity.fingerprint_of(job.row, ingredients),
        ingredients=ingredients,
    )


def _complete(job: Job, result: record.Result, status: Status) -> None:
    """Everything that follows from what happened: cells that were not reached, stability, cost."""
    reached = {(cell.users, cell.images) for cell in result.cells}
    if status.code is not Code.OK:
        result.cells += [
            record.Cell(users=users, images=images, status=status.model_copy(update={"log_tail": []}))
            for users, images in job.cells
            if (users, images) not in reached
        ]
    add_batch_efficiency(result.cells)
    result.stability = stability(result.cells)
    result.cost = _cost(result.phases, time.time() - psutil.Process().create_time(), job.row.gpu_count)


def _cost(phases: list[record.Phase], wall_seconds: float, gpus: int) -> record.Cost:
    measuring = sum(phase.seconds for phase in phases if phase.name.startswith("cell "))
    warmup = sum(phase.seconds for phase in phases if phase.name.startswith("warm-up "))
    return record.Cost(
        wall_seconds=wall_seconds,
        measuring_seconds=measuring,
        warmup_seconds=warmup,
        bookkeeping_seconds=wall_seconds - measuring - warmup,
        gpu_hours=wall_seconds * gpus / 3600 if gpus else None,
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """The first SIGTERM or Ctrl-C raises ``Interrupted`` in the row; the rest is ignored, for then its
    result is being written. Yields a function that ignores the first as well."""

    def ignore() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def stop(number: int, frame: FrameType | None) -> None:
        ignore()
        raise judge.Interrupted(f"stopped by {signal.Signals(number).name}")

    previous: dict[signal.Signals, Any] = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield ignore
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
