"""What measuring costs: the same requests with and without load generator and telemetry, in one process.

Each prompt is served twice in a row, once measured as a cell measures and once bare (no stage marks, no
books, the sampler stopped), in alternating order, so that warmth and drift fall on both alike. On a GPU the
cost is the ratio of the medians; on a CPU that difference drowns in noise, and the cost is the processor
time that the sampler and the load generator used, over the time of the measured requests.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import compare, record, stats
from bench.config import TELEMETRY
from bench.runner import row, tasks
from bench.runner.clock import synchronise
from bench.runner.diary import Diary
from bench.runner.job import Job
from bench.runner.load import OneLane, closed_loop
from bench.runner.outputs import Output
from bench.runner.server import Server
from bench.runner.window import Facts
from bench.runner.worker import Worker


class Overhead(record.Strict):
    """Shares are fractions of the requests' time."""

    row: str
    host_id: str
    git_commit: str | None
    began_at: str
    pairs: int
    bare_seconds: list[float]
    measured_seconds: list[float]
    """Pair by pair, so that every figure below can be had again."""
    bare_p50_seconds: float
    measured_p50_seconds: float
    latency_share: float
    """measured over bare, minus 1"""
    latency_share_ci95: tuple[float, float] | None
    sampler_cpu_share: float
    load_generator_cpu_share: float
    limit_share: float
    judged_by: str
    holds: bool


@dataclass
class Paired:
    """Seconds, in pairs; processor time beyond the requests themselves."""

    bare: list[float]
    measured: list[float]
    bookkeeping_cpu: float = 0.0


def measure(job: Job, pairs: int) -> Overhead:
    """``job`` says which row; its cells, budget and folder play no part."""
    with tempfile.TemporaryDirectory(prefix="fluxbench-overhead-") as folder:
        job = replace(job, attempt_dir=Path(folder))
        diary = Diary(job.attempt_dir, row.opening(job))
        with row.serving(job, diary) as server:
            if not isinstance(server.engine, Worker):
                raise ValueError(f"{job.row.label}: overhead is measured on rows of one process")
            server.warm_up(images=1)
            sampler_before = server.sampling.cpu_seconds
            paired = _pairs(server, server.engine, pairs)
            sampler_cpu = server.sampling.cpu_seconds - sampler_before
    return _judged(job, diary.result, paired, sampler_cpu)


def _pairs(server: Server, worker: Worker, pairs: int) -> Paired:
    paired = Paired([], [])
    for index in range(pairs):
        order = (_measured, _bare) if index % 2 else (_bare, _measured)
        for serve in order:
            serve(server, worker, index, paired)
    return paired


def _bare(server: Server, worker: Worker, index: int, paired: Paired) -> None:
    server.sampling.pause()
    request = worker.manifest.request(index, images=1)
    synchronise(worker.device)
    begun = time.perf_counter()
    tasks.generate(worker.pipe, worker.row, request)
    synchronise(worker.device)
    paired.bare.append(time.perf_counter() - begun)
    server.sampling.resume()


def _measured(server: Server, worker: Worker, index: int, paired: Paired) -> None:
    """One request through the closed loop, with everything that a cell does for it, all of it in this thread:
    torch's others spin for a while after a request."""
    cpu_of_request = 0.0

    def serve(_position: int) -> tuple[Output, Facts]:
        nonlocal cpu_of_request
        begun = time.thread_time()
        answer = worker.serve(1, index)
        cpu_of_request = time.thread_time() - begun
        return answer

    begun = time.thread_time()
    request = next(closed_loop(OneLane(serve, partial(worker.facts, 1)), users=1))
    server.keep_books(request, users=1, images=1, counted=True)
    paired.bookkeeping_cpu += time.thread_time() - begun - cpu_of_request
    paired.measured.append(request.latency_seconds)


def _judged(job: Job, opened: record.Result, paired: Paired, sampler_cpu: float) -> Overhead:
    environment = opened.environment
    if environment is None:
        raise RuntimeError("a row that serves has an environment")
    ratio = compare.paired_speedup(paired.bare, paired.measured, spread=0.0)
    interval = ratio.interval()
    window = sum(paired.measured)
    shares = sampler_cpu / window, paired.bookkeeping_cpu / window
    by_latency = job.row.gpu is not None
    cost = 1 / ratio.value - 1 if by_latency else sum(shares)
    return Overhead(
        row=job.row.label,
        host_id=environment.host_id,
        git_commit=environment.git_commit,
        began_at=opened.started_at,
        pairs=len(paired.bare),
        bare_seconds=[round(seconds, 6) for seconds in paired.bare],
        measured_seconds=[round(seconds, 6) for seconds in paired.measured],
        bare_p50_seconds=stats.median(paired.bare),
        measured_p50_seconds=stats.median(paired.measured),
        latency_share=1 / ratio.value - 1,
        latency_share_ci95=None if interval is None else (1 / interval[1] - 1, 1 / interval[0] - 1),
        sampler_cpu_share=shares[0],
        load_generator_cpu_share=shares[1],
        limit_share=TELEMETRY.overhead_share,
        judged_by="latency" if by_latency else "processor time",
        holds=cost <= TELEMETRY.overhead_share,
    )
