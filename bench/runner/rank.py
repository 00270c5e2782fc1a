"""One rank: a process that does what the conductor (``ranks.Ranks``) asks of all of them, in the same order.

``python -m bench.runner.rank FD``: FD is one end of a socket pair, over which a ``Place`` comes first, then
orders. A rank ends when that end closes, so none outlives its conductor. It decides nothing and writes
nothing but its log and the quality pictures.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from bench.runner import agreement, judge
from bench.runner.agreement import Apart, apart
from bench.runner.clock import synchronise
from bench.runner.links import Measured, exchange
from bench.runner.messages import LOCALHOST, Done, Failed, Place, Sketch
from bench.runner.outputs import Output
from bench.runner.worker import Loaded, Worker

PEER_WORDS = ("closed by peer", "reset by peer", "Broken pipe", "third_party/gloo", "Timed out waiting")
"""Of gloo's errors when another rank is gone or late, for which torch has no class."""


class RankWorker(Worker):
    def __init__(self, place: Place) -> None:
        super().__init__(place.row, place.weights, place.device, place.image_digest)
        self.place = place
        self._control: Any = None
        """A gloo group, on which ranks wait for each other before they begin a request."""
        self._alone: Output | None = None
        """What this rank painted before its work was shared out."""

    def join(self) -> None:
        """The default group exists before anything is asked or loaded."""
        import torch
        import torch.distributed as dist

        place = self.place
        patience = timedelta(seconds=place.collective_seconds)
        if self.device == "cuda":
            torch.cuda.set_device(place.rank)
        store = dist.TCPStore(  # type: ignore[attr-defined]  # public by its documentation
            LOCALHOST,
            place.store_port,
            place.ranks,
            is_master=place.rank == 0,
            timeout=patience,
            wait_for_workers=False,
            master_listen_fd=place.store_fd,
        )
        backend = "cpu:gloo,cuda:nccl" if self.device == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=place.rank, world_size=place.ranks, timeout=patience
        )
        self._control = dist.new_group(backend="gloo", timeout=patience)

    def load(self) -> Loaded:
        return super().load()._replace(sample_sha256=sample_sha256(self.pipe))

    def links(self) -> list[Measured]:
        """Bandwidth to every other rank, before weights take the memory."""
        measured = exchange(self.place.rank, self.place.ranks, self.device)
        self.free_memory()
        return measured

    def paint_alone(self, images: int) -> None:
        """Where one GPU has not the memory that several have together, nothing is kept."""
        try:
            self._alone = self._painted(images)
        except RuntimeError as error:
            if not judge.is_memory(error):
                raise
            logging.warning("alone it runs out of memory: nothing to hold the ranks against", exc_info=error)
        self.free_memory()

    def apart_from_alone(self, images: int) -> tuple[int, Apart] | None:
        """(steps, how far the ranks together are from this one alone); None where one of them kept nothing:
        to paint together takes all."""
        import torch.distributed as dist

        alone, self._alone = self._alone, None
        kept = [False] * self.place.ranks
        dist.all_gather_object(kept, alone is not None, group=self._control)
        return (alone.steps, apart(self._painted(images), alone)) if alone and all(kept) else None

    def _painted(self, images: int) -> Output:
        painted: Output = self.profiled(images, steps=agreement.steps(self.row), latents=True)
        return painted

    def answer(self, images: int, index: int) -> Done:
        """One request: begun together with the others where all compute it."""
        import torch.distributed as dist

        if self.place.together:
            synchronise(self.device)
            dist.barrier(self._control)
        output, facts = self.serve(images, index)
        finished = time.perf_counter()
        return Done(finished, self.facts(images, (output, facts)), Sketch.of(output, facts))


SAMPLED_VALUES = 8
"""Of each parameter, evenly spaced: some 16,000 of a full-size FLUX."""


def sample_sha256(pipe: Any) -> str:
    """One copy to the host for each module, so that it costs milliseconds."""
    import torch

    digest = hashlib.sha256()
    for name, module in sorted(pipe.components.items()):
        if not isinstance(module, torch.nn.Module):
            continue
        digest.update(name.encode())
        flat = [parameter.detach().reshape(-1) for parameter in module.parameters()]
        values = [each[:: max(1, each.numel() // SAMPLED_VALUES)][:SAMPLED_VALUES].float() for each in flat]
        if values:
            digest.update(torch.cat(values).cpu().numpy().tobytes())
    return digest.hexdigest()


def of_a_peer(error: BaseException) -> bool:
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in PEER_WORDS)


def serve(connection: Connection, worker: RankWorker) -> None:
    """Until the conductor closes its end."""
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            reply = getattr(worker, name)(*arguments)
        except BaseException as error:  # whatever it is, the conductor must hear of it
            logging.error("%s", name, exc_info=error)
            reply = Failed(judge.status_of(error), of_a_peer(error))
        with suppress(BrokenPipeError):
            connection.send(reply)


def main() -> None:
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    # Ctrl-C reaches the whole group. Only the conductor decides, and ends its ranks itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()  # a signal that ends it says where
    # Even while it waits inside a collective: the log then says where. Of all threads, for one of gloo's may
    # be the one that the signal finds.
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with Connection(fd) as connection:
        serve(connection, RankWorker(connection.recv()))
    # Not by way of exit handlers: NCCL's would wait for peers that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
