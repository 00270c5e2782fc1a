"""The pipeline of one row, and what is done to it in the order of the methods: options applied, warmed up,
verified, measured cell by cell, asked for the quality images."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from bench import config, record, steady
from bench.axes import AXES
from bench.axes.option import Session
from bench.axes.precision import torch_dtype
from bench.runner import compiler, judge, tasks
from bench.runner.clock import StageClock, synchronise
from bench.runner.diary import Diary
from bench.runner.job import Job
from bench.runner.load import Served
from bench.runner.outputs import Output, require_valid
from bench.runner.profile import profile
from bench.runner.telemetry import Device, Telemetry
from bench.runner.window import Facts, Window, cell_of

log = logging.getLogger(__name__)


class Server:
    """One request at a time, on ``device`` (``cuda`` or ``cpu``)."""

    def __init__(
        self,
        job: Job,
        diary: Diary,
        pipe: Any,
        manifest: tasks.Manifest,
        device: str,
        sampling: Telemetry,
        devices: list[Device],
    ) -> None:
        self.job, self.diary, self.pipe, self.manifest = job, diary, pipe, manifest
        self.device, self.sampling, self.devices = device, sampling, devices
        self.session = Session(job.row, pipe, device, torch_dtype(job.row.precision), run=self._profiled)
        self.warmups: dict[int, record.Warmup] = {}
        """images of a request -> how that batch was warmed up"""

    def apply(self, axes: Iterable[str]) -> None:
        for axis in axes:
            AXES[axis][self.job.row.stack[axis]].apply(self.session)

    def cell(self, users: int, images: int) -> record.Cell:
        """What goes wrong here costs this cell alone, unless it would go wrong in every other."""
        try:
            self._free_memory()
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
            graphs, begun = compiler.graphs_compiled(), time.perf_counter()
            output, _ = self.serve(images, len(seconds))
            seconds.append(time.perf_counter() - begun)
            compiled.append(compiler.graphs_compiled() > graphs)
            require_valid(self.job.row, output, images)

        phase = f"warm-up x{images}"
        with self.diary.phase(phase):
            while len(seconds) < config.WARMUP.minimum:
                request()
        if not self.diary.result.effective:
            with self.diary.phase("verify"):
                self._verify(images)
        settle = self.job.budget.settle
        rule = config.WARMUP if self.device == "cuda" else config.CPU_WARMUP
        with self.diary.phase(phase):
            while (warmth := steady.warmth(seconds, compiled, settle, rule)) is steady.Warm.MORE:
                request()
        self.warmups[images] = record.Warmup(
            seconds=seconds,
            settled=warmth is steady.Warm.SETTLED,
            compile_seconds=compiler.compile_seconds(),
            compile_cache=compiler.cache_state(),
        )
        if self.diary.result.warmup is None:
            self.diary.result.warmup = self.warmups[images]

    def _verify(self, images: int) -> None:
        """Raises NotApplied for the first option that left no evidence."""
        self.session.run = partial(self._profiled, images=images)
        self.diary.result.effective = {
            axis: AXES[axis][option].verify(self.session) for axis, option in self.job.row.stack.items()
        }

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
        served: list[Served[Facts]] = []
        latencies: list[float] = []
        graphs = compiler.graphs_compiled()
        self._reset_peak_memory()
        with self.diary.phase(f"cell {users}x{images}"):
            for request in self.job.load.start(partial(self.serve, images), users):
                served.append(self.keep_books(request, users, images))
                if len(served) <= users:
                    continue  # the first round: its users did not queue yet
                latencies.append(request.latency_seconds)
                if steady.enough(latencies, self.job.n, self.job.cap, users):
                    break
        unix = time.time() - time.perf_counter()
        steady_part = served[users:]
        samples = self.sampling.window(unix + steady_part[0].scheduled, unix + steady_part[-1].finished)
        recompiles = compiler.graphs_compiled() - graphs
        peak = self._peak_memory_bytes()
        return Window(users, images, str(self.job.load), served, samples, self.devices, recompiles, peak)

    def serve(self, images: int, index: int) -> tuple[Output, Facts]:
        """Request ``index`` of the fixed list, from prompt to decoded images in host memory."""
        clock = StageClock(self.device)
        request = self.manifest.request(index, images)
        synchronise(self.device)
        output = tasks.generate(self.pipe, self.job.row, request, on_stage=clock.stage, on_step=clock.step)
        synchronise(self.device)
        counts = {axis: count() for axis, count in self.session.after_request.items()}
        return output, Facts(clock.seconds(), counts)

    def keep_books(self, request: Served[tuple[Output, Facts]], users: int, images: int) -> Served[Facts]:
        """Refuses what is no picture, writes the request down and forgets the pictures."""
        output, facts = request.output
        require_valid(self.job.row, output, images)
        if self.diary.result.first_request_seconds is None:
            self.diary.result.first_request_seconds = request.latency_seconds
        self.diary.request(
            cell=f"{users}x{images}",
            index=request.index,
            user=request.user,
            counted=request.index >= users,
            queue_seconds=round(request.queue_seconds, 6),
            service_seconds=round(request.service_seconds, 6),
            stages={name: round(seconds, 6) for name, seconds in facts.stages.items()},
            **({"counts": facts.counts} if facts.counts else {}),
        )
        return request.keeping(facts)

    def profile(self) -> None:
        """Of one request at one image. A profiler that fails here costs the profile, not the cells."""
        try:
            self.diary.result.profile = profile(self._profiled)
        except Exception as error:
            if judge.ends_row(error):
                raise
            log.warning("%s has no profile", self.job.row.label, exc_info=error)
            self.diary.result.anomalies.append(record.Anomaly(kind="no_profile", detail=str(error)))

    def save_quality(self) -> None:
        """Latents and images of the fixed quality prompts; ``fluxbench quality`` computes from the files."""
        self._free_memory()
        for request in self.manifest.quality_requests():
            output = tasks.generate(self.pipe, self.job.row, request, latents=True)
            require_valid(self.job.row, output, images=1)
            self.diary.keep_picture(request.id, output.images[0], output.latents)

    def _profiled(self, images: int = 1, **options: Any) -> Any:
        """What ``verify`` calls as ``session.run(steps=1)``."""
        output = tasks.generate(self.pipe, self.job.row, self.manifest.request(0, images), **options)
        synchronise(self.device)
        return output

    def _free_memory(self) -> None:
        """Give back what an earlier cell left, so that this one's peaks are its own."""
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _reset_peak_memory(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()

    def _peak_memory_bytes(self) -> tuple[int, int] | None:
        if self.device != "cuda":
            return None
        import torch

        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
