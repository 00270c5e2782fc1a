"""The local executor: one runner process in its own session, on this machine, in this environment.

``Executor`` and ``Handle`` are all that the fan-out knows of where a row runs; ``docker.py`` and ``venv.py``
hold the other two.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench import identity, layout
from bench.config import BudgetName, Shape
from bench.matrix import Row

PR_SET_PDEATHSIG = 1
"""prctl(2), linux/prctl.h"""


@dataclass(frozen=True)
class Job:
    """One attempt to execute: all that an executor is told."""

    row: Row
    weights: str
    budget: BudgetName
    cells: tuple[Shape, ...]
    attempt_dir: Path
    gpu_uuids: tuple[str, ...] = ()
    lease_descriptors: tuple[int, ...] = ()
    """Open lock files that must stay open for as long as the runner lives."""


@dataclass(frozen=True)
class Exit:
    """How a runner ended. ``code`` or ``signal`` is set, or ``infra`` alone."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    """Whether the kernel killed for memory in a control group that is the runner's own."""
    infra: str = ""
    """What failed around the runner: it never began, or nobody can say any more how it ended."""

    def __str__(self) -> str:
        if self.code is None and self.signal is None:
            return "an end that nobody saw"
        return f"exit code {self.code}" if self.signal is None else f"killed by {signal_name(self.signal)}"


class Handle(Protocol):
    def wait(self, seconds: float) -> Exit | None:
        """None while it still runs after this long."""

    def stop(self) -> None:
        """Ask the runner to finish: it writes what it has and exits."""

    def kill(self) -> None:
        """End every process of the attempt at once."""


class Executor(Protocol):
    def start(self, job: Job) -> Handle: ...

    def command(self, job: Job) -> list[str]:
        """What ``start`` would run, ready for a shell."""

    def lock(self, row: Row) -> str | None:
        """The lock that the row's packages come from; None where their versions stand for them."""

    def lacks(self, row: Row) -> str | None:
        """What must be made before the row can run, as the end of a sentence; None when nothing."""


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def runner_arguments(job: Job) -> list[str]:
    """The one line that crosses from host to runner; pasted into a shell it runs the row again."""
    return [
        f"--row-json={job.row.model_dump_json()}",
        f"--weights={job.weights}",
        f"--budget={job.budget}",
        f"--cells={cells_text(job.cells)}",
        f"--attempt-dir={job.attempt_dir}",
    ]


def cells_text(cells: Sequence[Shape]) -> str:
    """``1x1,1x4``"""
    return ",".join(map(str, cells))


def runner_environment(caller: Mapping[str, str], gpu_uuids: Sequence[str]) -> dict[str, str]:
    """The caller's environment, but for the GPUs that were leased for the row, and for the wish to keep no
    byte code, common in containers: every row would compile torch and diffusers anew, on paid time."""
    kept = {name: value for name, value in caller.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | ({"CUDA_VISIBLE_DEVICES": ",".join(gpu_uuids)} if gpu_uuids else {})


class LocalExecutor:
    """``runner`` is the command line that ``runner_arguments`` complete, ``variables`` are added to its
    environment."""

    def __init__(
        self,
        runner: Sequence[str] = (sys.executable, "-m", "bench", "run"),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.runner = tuple(runner)
        self.variables = dict(variables or {})

    def command(self, job: Job) -> list[str]:
        return [*self.runner, *runner_arguments(job)]

    def lock(self, row: Row) -> str | None:
        return identity.installed_lock()

    def lacks(self, row: Row) -> str | None:
        return None

    def start(self, job: Job) -> LocalHandle:
        """The runner's output goes to the attempt's log, after whatever is there already."""
        job.attempt_dir.mkdir(parents=True, exist_ok=True)
        with (job.attempt_dir / layout.LOG).open("ab") as log:
            process = subprocess.Popen(
                self.command(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**runner_environment(os.environ, job.gpu_uuids), **self.variables},
                # A session of its own: Ctrl-C in the terminal reaches the fan-out alone, which then asks
                # the runner to stop; and one killpg ends the runner with every helper it started.
                start_new_session=True,
                pass_fds=job.lease_descriptors,
                preexec_fn=stop_when_parent_dies(),
            )
        return LocalHandle(process)


class LocalHandle:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, seconds: float) -> Exit | None:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self.kill()  # what the runner started must not outlive it and disturb the next row
        return Exit(signal=-code) if code < 0 else Exit(code=code)

    def stop(self) -> None:
        # The runner alone: its sampler has to live until the runner has closed its books.
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def stop_when_parent_dies(by: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """Run in the child before exec: a fan-out that is killed takes its runner along (by SIGTERM, so that
    it still writes its result), and a runner its ranks (``runner.ranks``). Only Linux can."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:
            os.kill(os.getpid(), by)

    return ask
