"""One row's life from its first warm-up request: what is asked of an engine, and decided from its answers.

Cells are warmed up, verified and measured in the order of the methods; the pipeline itself, in this process
or in several, is the engine's (``worker.Engine``).
"""

from __future__ import annotations

import logging
import time

from bench import config, layout, record, steady
from bench.runner import agreement, judge
from bench.runner.diary import Diary
from bench.runner.job import Job
from bench.runner.load import Served
from bench.runner.telemetry import Device, Telemetry
from bench.runner.traffic import communication
from bench.runner.window import Facts, Window, cell_of
from bench.runner.worker import Engine

log = logging.getLogger(__name__)


class Server:
    def __init__(
        self, job: Job, diary: Diary, engine: Engine, sampling: Telemetry, devices: list[Device]
    ) -> None:
        self.job, self.diary, self.engine = job, diary, engine
        self.sampling, self.devices = sampling, devices
        self.warmups: dict[int, record.Warmup] = {}
        """images of a request -> how that batch was warmed up"""
        self.profiles: list[record.Profile] = []
        """By rank."""

    def cell(self, users: int, images: int) -> record.Cell:
        """What goes wrong here costs this cell alone, unless it would go wrong in every other."""
        try:
            self.engine.free_memory()
            first_of_batch = images not in self.warmups
            if first_of_batch:
                self.warm_up(images)
            cell = self._measured(users, images)
            cell.warmup_seconds = self.warmups[images].seconds if first_of_batch else []
            return cell
        except Exception as error:
            if judge.ends_row(error):
                raise
            log.error("%s, cell %dx%d", self.job.row.label, users, images, exc_info=error)
            return record.Cell(users=users, images=images, status=judge.status_of(error))

    def warm_up(self, images: int) -> None:
        """At the exact shape, until it has settled or ``config.WARMUP`` gives up."""
        seconds: list[float] = []
        compiled: list[bool] = []

        def request() -> None:
            graphs = self.engine.compiled().graphs
            seconds.append(self.engine.warm(images, len(seconds)))
            compiled.append(self.engine.compiled().graphs > graphs)

        phase = f"warm-up x{images}"
        with self.diary.phase(phase):
            while len(seconds) < config.WARMUP.minimum:
                request()
        if not self.diary.result.effective:
            with self.diary.phase("verify"):
                self.diary.result.effective = self.engine.verify(images)
                self._agree(images)
        settle = self.job.budget.settle
        rule = config.WARMUP if self.engine.device == "cuda" else config.CPU_WARMUP
        with self.diary.phase(phase):
            while (warmth := steady.warmth(seconds, compiled, settle, rule)) is steady.Warm.MORE:
                request()
        total = self.engine.compiled()
        self.warmups[images] = record.Warmup(
            seconds=seconds,
            settled=warmth is steady.Warm.SETTLED,
            compile_seconds=total.seconds,
            compile_cache=total.cache,
        )
        if self.diary.result.warmup is None:
            self.diary.result.warmup = self.warmups[images]

    def _agree(self, images: int) -> None:
        """The figures are kept also of ranks that paint another picture."""
        found = self.engine.agreement(images)
        self.diary.result.agreement = found
        if found is not None:
            agreement.require(self.job.row, found)

    def _measured(self, users: int, images: int) -> record.Cell:
        """A window that heat or hardware slowed down is discarded once, after a pause."""
        settled = self.warmups[images].settled or not self.job.budget.settle
        cell = cell_of(self._measure(users, images), settled)
        if cell.power.slowdown_share:
            with self.diary.phase("cool-down"):
                time.sleep(config.TELEMETRY.cool_down_seconds)
            cell = cell_of(self._measure(users, images), settled)
        return cell

    def _measure(self, users: int, images: int) -> Window:
        graphs = self.engine.compiled().graphs
        self.engine.reset_peak_memory()
        with self.diary.phase(f"cell {users}x{images}"):
            served = self._serve_users(users, images)
        unix = time.time() - time.perf_counter()
        window = Window(
            users=users,
            images=images,
            load=str(self.job.load),
            served=served,
            devices=self.devices,
            recompiles=self.engine.compiled().graphs - graphs,
            torch_peak_bytes=self.engine.peak_memory(),
        )
        return window.seeing(self.sampling.window(unix + window.begin, unix + window.end))

    def _serve_users(self, users: int, images: int) -> list[Served[Facts]]:
        """In the order in which they were done; the first round is among them."""
        served: list[Served[Facts]] = []
        latencies: list[float] = []
        lanes = self.engine.lanes(images)
        try:
            for request in self.job.load.start(lanes, users):
                counted = len(served) >= users  # the first round's users did not queue yet
                self.keep_books(request, users, images, counted=counted)
                served.append(request)
                if counted:
                    latencies.append(request.latency_seconds)
                    if steady.enough(latencies, self.job.n, self.job.cap, users):
                        break
        finally:
            lanes.drain()
        return served

    def keep_books(self, request: Served[Facts], users: int, images: int, *, counted: bool) -> None:
        facts = request.output
        if self.diary.result.first_request_seconds is None:
            self.diary.result.first_request_seconds = request.latency_seconds
        self.diary.request(
            cell=f"{users}x{images}",
            index=request.index,
            user=request.user,
            counted=counted,
            queue_seconds=round(request.queue_seconds, 6),
            service_seconds=round(request.service_seconds, 6),
            stages={name: round(seconds, 6) for name, seconds in facts.stages.items()},
            **({"counts": facts.counts} if facts.counts else {}),
        )

    def profile(self) -> None:
        """Of one request at one image. A profiler that fails here costs the profile, not the cells."""
        result = self.diary.result
        try:
            profiles = self.engine.profile()
        except Exception as error:
            if judge.ends_row(error):
                raise
            log.warning("%s has no profile", self.job.row.label, exc_info=error)
            result.anomalies.append(record.Anomaly(kind="no_profile", detail=str(error)))
            return
        result.profile = profiles[0]
        self.profiles = profiles

    def account_for_communication(self) -> None:
        """From the evidence of the parallel axis, and the profiles where there are any."""
        result = self.diary.result
        evidence = result.effective.get("parallel", {})
        result.communication = communication(self.job.row, evidence, self.profiles)

    def save_quality(self) -> None:
        """``fluxbench quality`` computes from the files."""
        self.engine.save_pictures(self.diary.folder / layout.IMAGES)
