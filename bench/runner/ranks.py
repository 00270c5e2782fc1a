"""Several processes that serve one row, and the one that conducts them.

    conductor (``fluxbench run``)           the ranks
    decides, measures, writes      <---->   each a ``Worker`` on a GPU of its own (``runner.rank``)

The conductor loads nothing and joins no process group: it can never hang in a collective, so it sees a rank
that died, stopped or fell silent, ends the others and still writes the result. Every order goes to all ranks
in the same order with the same arguments over a socket pair each; no decision is taken twice.

Weights are not read once and broadcast: safetensors are mapped, so N ranks share one copy in the page cache
and the disk is read once (and fetched once: huggingface_hub locks each file), while a broadcast would idle
N - 1 PCIe links. They are mapped as they are stored and cast on the GPU (``models.place``): cast on the way,
each rank would hold a copy of its own in the host's memory. Synthetic ones are drawn on each GPU from one
seed. Either way a sample of every parameter is compared before anything is measured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from bench import config, layout, record
from bench.axes.option import Evidence
from bench.runner import agreement
from bench.runner.job import Job
from bench.runner.judge import RequestFailed
from bench.runner.links import Measured
from bench.runner.load import Finished, Lanes
from bench.runner.messages import Done, Failed, Place
from bench.runner.processes import Process, Processes, start
from bench.runner.window import Facts
from bench.runner.worker import Compiled, Loaded, PeakBytes


class Ranks:
    """An ``Engine`` of several processes, as a context."""

    def __init__(self, job: Job, ranks: int, device: str, image_digest: str | None) -> None:
        self.job, self.ranks, self.device, self.image_digest = job, ranks, device, image_digest
        self.apart = job.row.parallel == "replicas"
        """Whether each rank serves requests of its own."""
        self.processes = Processes([])

    def __enter__(self) -> Ranks:
        folder = self.job.attempt_dir
        self.processes = start(self._place, self.ranks, lambda rank: folder / layout.rank_log(rank))
        return self

    def _place(self, rank: int, store_port: int, store_fd: int | None) -> Place:
        return Place(
            rank=rank,
            ranks=self.ranks,
            store_port=store_port,
            store_fd=store_fd,
            collective_seconds=config.RANKS.collective_seconds,
            together=not self.apart,
            row=self.job.row,
            weights=self.job.weights,
            device=self.device,
            image_digest=self.image_digest,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error at once: whoever waits in a collective would wait for ever."""
        self.processes.end(config.RANKS.end_seconds if error is None else 0.0)

    @property
    def pids(self) -> list[int]:
        return [process.popen.pid for process in self.processes]

    # --- Engine --------------------------------------------------------------------------------------

    def prepare(self) -> dict[str, str | None]:
        versions: list[dict[str, str | None]] = self.processes.ask("prepare")
        return versions[0]

    def links(self) -> list[list[Measured]]:
        """By rank."""
        return self.processes.ask("links")

    def load(self) -> Loaded:
        loaded: list[Loaded] = self.processes.ask("load")
        for rank, each in enumerate(loaded):
            if each != loaded[0]:
                raise self.processes.diverged(rank, "it holds other weights or prompts than rank 0")
        return loaded[0]

    def apply(self, axes: Sequence[str]) -> None:
        self.processes.ask("apply", axes)

    def warm(self, images: int, index: int) -> float:
        begun = time.perf_counter()
        for process in self.processes:
            process.order("answer", images, index)
        done: list[Done] = []
        for rank, answer in enumerate(self.processes.gather(each_alone=self.apart)):
            if isinstance(answer, Failed):
                raise RequestFailed(self.processes.status_of_rank(rank, answer.status))
            done.append(answer)
        self.require_one_picture(done)
        return max(each.finished for each in done) - begun

    def compiled(self) -> Compiled:
        found: list[Compiled] = self.processes.ask("compiled")
        seconds = [each.seconds for each in found if each.seconds is not None]
        caches = [each.cache for each in found if each.cache is not None]
        cache = "cold" if "cold" in caches else next(iter(caches), None)
        return Compiled(sum(each.graphs for each in found), max(seconds, default=None), cache)

    def verify(self, images: int) -> dict[str, Evidence]:
        """Every rank's options left evidence, or this raises; rank 0's is kept."""
        found: list[dict[str, Evidence]] = self.processes.ask("verify", images)
        return found[0]

    def paint_alone(self, images: int) -> None:
        """Each keeps what it paints before its work is shared out."""
        self.processes.ask("paint_alone", images)

    def agreement(self, images: int) -> record.Agreement | None:
        if self.apart:
            return None
        found = self.processes.ask("apart_from_alone", images)
        if None in found:
            return None
        return agreement.agreement(self.job.row, found[0][0], [apart for _, apart in found])

    def lanes(self, images: int) -> Lanes[Facts]:
        return Apart(self, images) if self.apart else Together(self, images)

    def free_memory(self) -> None:
        self.processes.ask("free_memory")

    def reset_peak_memory(self) -> None:
        self.processes.ask("reset_peak_memory")

    def peak_memory(self) -> list[PeakBytes]:
        return [peak for peaks in self.processes.ask("peak_memory") for peak in peaks]

    def profile(self) -> list[record.Profile]:
        return [profile for profiles in self.processes.ask("profile") for profile in profiles]

    def save_pictures(self, folder: Path) -> None:
        for process in self.processes:
            process.order("save_pictures", folder if process.rank == 0 else None)
        self.processes.gather()

    def require_one_picture(self, done: Sequence[Done]) -> bool:
        """Whether what all ranks made of one request is the same to the bit. Raises RankLost where it is
        not one picture, or was not made in the same way."""
        for rank, each in enumerate(done):
            if how := done[0].sketch.differs(each.sketch):
                raise self.processes.diverged(rank, f"it diverged from rank 0: {how}")
        return len({each.sketch.sha256 for each in done}) == 1


class Together:
    """One lane of all ranks: every request is everyone's, and done when the last of them is."""

    def __init__(self, ranks: Ranks, images: int) -> None:
        self._ranks, self._images = ranks, images
        self._taken: tuple[int, float] | None = None
        """(index, begun)"""

    @property
    def free(self) -> bool:
        return self._taken is None

    def begin(self, index: int) -> None:
        self._taken = index, time.perf_counter()
        for process in self._ranks.processes:
            process.order("answer", self._images, index)

    def finish(self) -> Finished[Facts]:
        if self._taken is None:
            raise RuntimeError("no request has begun")
        index, begun = self._taken
        done: list[Done] = self._ranks.processes.gather()
        self._taken = None
        identical = self._ranks.require_one_picture(done)
        facts = done[0].facts.counting("parallel", identical_on_all_ranks=int(identical))
        return Finished(index, begun, max(each.finished for each in done), facts)

    def drain(self) -> None:
        """Nothing is left to wait for: what had begun was finished, or its error has ended the ranks."""


class Apart:
    """A lane for each rank, behind one queue: the one that has idled longest takes the next request."""

    def __init__(self, ranks: Ranks, images: int) -> None:
        self._processes, self._images = ranks.processes, images
        self._idle: deque[Process] = deque(ranks.processes)
        self._serving: dict[int, tuple[int, float]] = {}
        """rank -> (index, begun)"""

    @property
    def free(self) -> bool:
        return bool(self._idle)

    def begin(self, index: int) -> None:
        process = self._idle.popleft()
        self._serving[process.rank] = index, time.perf_counter()
        process.order("answer", self._images, index)

    def finish(self) -> Finished[Facts]:
        """What a replica raises is its request's alone: it and the others go on."""
        serving = [process for process in self._processes if process.rank in self._serving]
        process, answer = self._processes.next_answer(serving)
        index, begun = self._serving.pop(process.rank)
        self._idle.append(process)
        if isinstance(answer, Failed):
            raise RequestFailed(self._processes.status_of_rank(process.rank, answer.status))
        done: Done = answer
        return Finished(index, begun, done.finished, done.facts)

    def drain(self) -> None:
        while self._serving:
            with suppress(RequestFailed):
                self.finish()
