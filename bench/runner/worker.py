"""One process that serves: a pipeline on its device, options applied.

``Engine`` is what the server needs of whoever does the work. A ``Worker`` does it in this very process;
``ranks.Ranks`` has one ``Worker`` in each of several processes and asks them all in the same order.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from bench import record
from bench.axes import AXES, require
from bench.axes.option import Evidence, Session
from bench.axes.precision import torch_dtype
from bench.matrix import Row
from bench.runner import compiler, environment, models, tasks
from bench.runner.clock import StageClock, synchronise
from bench.runner.diary import keep_picture
from bench.runner.load import Lanes, OneLane
from bench.runner.outputs import Output, require_valid
from bench.runner.profile import profile
from bench.runner.window import Facts

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    weights: record.Weights
    manifest_sha256: str
    sample_sha256: str | None = None
    """Of a few values of every parameter, where ranks compare it: who holds other weights is told by it."""


CacheState = Literal["cold", "warm"]


class Compiled(NamedTuple):
    """Since the process began."""

    graphs: int
    seconds: float | None
    """Wall time; None where nothing was compiled."""
    cache: CacheState | None


PeakBytes = tuple[int, int]
"""Torch's memory on one device: (allocated, reserved) at most since the last reset."""


class Engine(Protocol):
    device: str
    """``cuda`` or ``cpu``."""

    def prepare(self) -> dict[str, str | None]:
        """Imports what a row needs; returns versions for ``record.Environment``. Raises Unavailable where
        this machine lacks something for one of its options."""

    def load(self) -> Loaded: ...

    def apply(self, axes: Sequence[str]) -> None: ...

    def warm(self, images: int, index: int) -> float:
        """Seconds of one request, on everything that will serve."""

    def compiled(self) -> Compiled: ...

    def verify(self, images: int) -> dict[str, Evidence]:
        """Raises NotApplied for the first option that left no evidence."""

    def agreement(self, images: int) -> record.Agreement | None:
        """Of one process alone with all together; None where nothing is shared out or one alone has not the
        memory."""

    def lanes(self, images: int) -> Lanes[Facts]: ...

    def free_memory(self) -> None:
        """Give back what an earlier cell left, so that the next one's peaks are its own."""

    def reset_peak_memory(self) -> None: ...

    def peak_memory(self) -> list[PeakBytes]:
        """By GPU, in the order of the row's GPUs; empty on CPU."""

    def profile(self) -> list[record.Profile]:
        """By rank."""

    def save_pictures(self, folder: Path) -> None:
        """Latents and images of the fixed quality prompts."""


class Worker:
    """Alone, it is an ``Engine``."""

    def __init__(self, row: Row, weights: str, device: str, image_digest: str | None) -> None:
        self.row, self.weights, self.device, self.image_digest = row, weights, device, image_digest
        self.pipe: Any = None
        self.session: Session
        self.manifest: tasks.Manifest

    def prepare(self) -> dict[str, str | None]:
        compiler.use_cache(self.row.gpu or "cpu", self.image_digest)
        models.pipeline_class(self.row.task, control=self.row.control != "none")
        self.join()
        require(self.row, self.device)
        return environment.torch_versions() if self.device == "cuda" else {}

    def join(self) -> None:
        """Meets the other ranks, where there are any."""

    def load(self) -> Loaded:
        loaded = models.load(self.row, self.weights, self.device)
        self.pipe = loaded.pipe
        self.manifest = tasks.manifest(self.row)
        dtype = torch_dtype(self.row.precision)
        self.session = Session(self.row, self.pipe, self.device, dtype, run=self.profiled)
        return Loaded(loaded.weights, self.manifest.sha256)

    def apply(self, axes: Sequence[str]) -> None:
        for axis in axes:
            AXES[axis][self.row.stack[axis]].apply(self.session)

    def serve(self, images: int, index: int) -> tuple[Output, Facts]:
        """Request ``index`` of the fixed list, from prompt to decoded images in host memory."""
        clock = StageClock(self.device)
        request = self.manifest.request(index, images)
        synchronise(self.device)
        output = tasks.generate(self.pipe, self.row, request, on_stage=clock.stage, on_step=clock.step)
        synchronise(self.device)
        counts = {axis: count() for axis, count in self.session.after_request.items()}
        return output, Facts(clock.seconds(), counts)

    def facts(self, images: int, answer: tuple[Output, Facts]) -> Facts:
        """What is kept of a request; raises InvalidOutput where the pictures are none."""
        output, facts = answer
        require_valid(self.row, output, images)
        return facts

    def lanes(self, images: int) -> Lanes[Facts]:
        return OneLane(partial(self.serve, images), partial(self.facts, images))

    def warm(self, images: int, index: int) -> float:
        begun = time.perf_counter()
        answer = self.serve(images, index)
        seconds = time.perf_counter() - begun
        self.facts(images, answer)
        return seconds

    def compiled(self) -> Compiled:
        return Compiled(compiler.graphs_compiled(), compiler.compile_seconds(), compiler.cache_state())

    def verify(self, images: int) -> dict[str, Evidence]:
        self.session.run = partial(self.profiled, images=images)
        return {axis: AXES[axis][option].verify(self.session) for axis, option in self.row.stack.items()}

    def agreement(self, images: int) -> record.Agreement | None:
        return None

    def profile(self) -> list[record.Profile]:
        return [profile(self.profiled)]

    def save_pictures(self, folder: Path | None) -> None:
        """``folder`` None: the pictures are generated and forgotten, as by a rank that only helps."""
        self.free_memory()
        for request in self.manifest.quality_requests():
            output = tasks.generate(self.pipe, self.row, request, latents=True)
            require_valid(self.row, output, images=1)
            if folder is not None:
                keep_picture(folder, request.id, output.images[0], output.latents)

    def profiled(self, images: int = 1, **options: Any) -> Any:
        """What ``verify`` calls as ``session.run(steps=1)``."""
        output = tasks.generate(self.pipe, self.row, self.manifest.request(0, images), **options)
        synchronise(self.device)
        return output

    def free_memory(self) -> None:
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> list[PeakBytes]:
        if self.device != "cuda":
            return []
        import torch

        return [(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())]
