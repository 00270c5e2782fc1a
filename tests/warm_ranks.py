"""Ranks for the warm runner: forked from it, for importing torch anew in each would take most of a test.

What a rank then does is the product's (``bench.runner.rank.main``); only how the process comes to be is not.
Faults are planted in the runner before it forks and strike on the rank that the fault names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from bench import config

HUNG_SECONDS = 20.0
"""Of patience where a rank is made to hang: the conductor's, or (``ENDS_FIRST``) that of the others in a
collective. A loaded machine needs some for a request."""


class Forked:
    """What the product uses of ``subprocess.Popen``."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                run()
            finally:
                os._exit(70)

    def poll(self) -> int | None:
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("rank", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork_ranks() -> None:
    """In the runner, before it begins a row."""
    from bench.host.local import stop_when_parent_dies
    from bench.runner import processes, rank

    config.RANKS = dataclasses.replace(config.RANKS, stopped_looks=2)
    if os.environ.get("FAULT", "").startswith("hang"):
        ends_first: Any = {os.environ.get("ENDS_FIRST", "silence_seconds"): HUNG_SECONDS}
        config.RANKS = dataclasses.replace(config.RANKS, **ends_first)

    def spawn(place: Any, fd: int, told: Mapping[str, str], output: BinaryIO) -> Any:
        die_with_parent = stop_when_parent_dies(signal.SIGKILL)

        def become_rank() -> None:
            if die_with_parent:
                die_with_parent()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            kept = {fd, place.store_fd}
            for other in range(3, 256):  # as exec would: a sibling's socket must not stay open here
                if other not in kept:
                    with contextlib.suppress(OSError):
                        os.close(other)
            os.environ.update(told)
            sys.argv = ["rank", str(fd)]
            rank.main()

        return Forked(become_rank)

    processes.spawn = spawn


def spoil(what: str, output: Any) -> Any:
    """A picture that a rank made otherwise than the others."""
    changed = {
        "nan": {"finite": False},
        "diverge": {"images": 255 - output.images},
    }
    return dataclasses.replace(output, **changed[what]) if what in changed else output


def plant_on_rank(what: str, images: int, number: str, strike: Callable[[str], None]) -> None:
    """In every request of so many images that this rank serves."""
    from bench.runner import tasks

    generate = tasks.generate

    def broken(pipe: Any, row: Any, request: Any, **options: Any) -> Any:
        here = os.environ.get("RANK") == number and request.images == images
        if here:
            strike(what)
        output = generate(pipe, row, request, **options)
        return spoil(what, output) if here else output

    tasks.generate = broken


def plant_wrong_sharing() -> None:
    """Shared out, the transformer predicts another thing than it did alone; the same thing on every rank."""
    from bench.axes.parallel import native

    share_tokens = native.share_tokens

    def sharing(session: Any, **degrees: int) -> None:
        share_tokens(session, **degrees)
        session.pipe.transformer.proj_out.weight.data.mul_(1.1)

    native.share_tokens = sharing


def plant_alone(what: str, number: str, strike: Callable[[str], None]) -> None:
    """While this rank paints alone."""
    from bench.runner.rank import RankWorker

    paint_alone, painted = RankWorker.paint_alone, RankWorker._painted

    def broken(self: Any, images: int) -> Any:
        strike(what)
        return painted(self, images)

    def painting(self: Any, images: int) -> None:
        if os.environ.get("RANK") == number:
            self._painted = broken.__get__(self)
        paint_alone(self, images)
        self.__dict__.pop("_painted", None)

    RankWorker.paint_alone = painting  # type: ignore[method-assign]


def plant_other_weights(number: str) -> None:
    """This rank's transformer is not the others'."""
    from bench.runner import models

    load = models.load

    def loading(*arguments: Any) -> Any:
        loaded = load(*arguments)
        if os.environ.get("RANK") == number:
            next(loaded.pipe.transformer.parameters()).data.add_(1e-3)
        return loaded

    models.load = loading
