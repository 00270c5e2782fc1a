"""The real runner, started fast: a server that has imported everything and forks one process per attempt.

Importing torch and diffusers takes five seconds; the failure tests start the runner dozens of times. What is
forked runs ``fluxbench run`` itself, on the shipped tiny weights or on the directory in TINY_WEIGHTS. Faults
are injected here and never in the product: FAULT is ``<what>@<where>``.

A ``WarmExecutor`` is what the tests hand to a campaign in place of ``LocalExecutor``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from warm_ranks import fork_ranks, plant_alone, plant_on_rank, plant_other_weights, plant_wrong_sharing

from bench import flux, identity, layout
from bench.cli import main as cli
from bench.host.local import Exit, Job, runner_arguments

# --- The executor, in the process of the tests -------------------------------------------------------


class WarmServer:
    """As a context: the server runs."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "warm.sock")

    def __enter__(self) -> WarmServer:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, self.path]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"warm\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


class WarmExecutor:
    """``faults`` are environment variables of every runner that it starts."""

    def __init__(self, server: WarmServer, **faults: str) -> None:
        self.server, self.faults = server, faults
        self.handles: list[WarmHandle] = []

    def start(self, job: Job) -> WarmHandle:
        order = {
            "arguments": ["run", *runner_arguments(job)],
            "log": str(job.attempt_dir / layout.LOG),
            "environment": {**self.faults, "ATTEMPT_DIR": str(job.attempt_dir)},
        }
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.server.path)
        connection.sendall(json.dumps(order).encode() + b"\n")
        handle = WarmHandle(connection)
        self.handles.append(handle)
        return handle


class WarmHandle:
    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._lines.readline())

    def wait(self, seconds: float) -> Exit | None:
        if not select.select([self._connection], [], [], seconds)[0]:
            return None
        code = int(self._lines.readline())
        self.kill()
        return Exit(signal=-code) if code < 0 else Exit(code=code)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


# --- The server --------------------------------------------------------------------------------------


def serve(path: str) -> None:
    """One request at a time is read; any number of runners run."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    warm_up()
    print("warm", flush=True)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener, sys.stdin], [], [], 0.01)[0]
        if sys.stdin in ready:
            return  # the tests are gone
        if listener in ready:
            connection, _ = listener.accept()
            order = json.loads(connection.makefile("r").readline())
            pid = os.fork()
            if pid == 0:
                become_runner(order)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpgid(pid, pid)  # so that killpg works before the child gets there
            running[pid] = connection
            connection.sendall(f"{pid}\n".encode())
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                with contextlib.suppress(OSError):
                    running[pid].sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                running.pop(pid).close()


def warm_up() -> None:
    """Imports every class that a row of the tests needs, and computes nothing: torch's thread pool, once it
    exists, does not survive a fork."""
    import diffusers
    import transformers

    from bench.runner import models, server

    for name in (*models.PIPELINES.values(), "FluxControlNetModel", "FlowMatchEulerDiscreteScheduler"):
        getattr(diffusers, name)
    for name in ("CLIPTextModel", "CLIPTokenizer", "T5EncoderModel", "T5TokenizerFast"):
        getattr(transformers, name)
    assert server
    identity.code_sha256 = lambda row: "frozen"  # type: ignore[assignment]
    tiny = flux.MODELS["tiny"]
    settings = dataclasses.replace(tiny.settings, quality_prompts=2)
    flux.MODELS["tiny"] = dataclasses.replace(tiny, settings=settings)


def become_runner(order: dict[str, Any]) -> None:
    """Never returns."""
    code = 70
    try:
        with contextlib.suppress(PermissionError):
            os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["environment"])
        if folder := os.environ.get("TINY_WEIGHTS"):
            identity.TINY_WEIGHTS = Path(folder)
        fork_ranks()
        what, _, where = os.environ.get("FAULT", "").partition("@")
        if what:
            plant(what, where)
        try:
            cli.main(order["arguments"], standalone_mode=True)
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(bool(exit_.code))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


# --- Faults ------------------------------------------------------------------------------------------


def plant(what: str, where: str) -> None:
    """``where`` is the begin of a phase; ``saving N``, the N-th time that result.json is about to be renamed
    into place; ``request xN``, a request of N images, ``request xN on rank R``; ``load on rank R``;
    ``alone on rank R``; or ``sharing``. ``lack``: a module is missing."""
    if what == "lack":
        sys.modules[where] = None  # type: ignore[assignment]
    elif where == "sharing":
        plant_wrong_sharing()
    elif where.startswith("saving "):
        plant_in_saving(what, int(where.split()[1]))
    elif where.startswith("load on rank "):
        plant_other_weights(where.split()[-1])
    elif where.startswith("alone on rank "):
        plant_alone(what, where.split()[-1], strike)
    elif " on rank " in where:
        request, number = where.split(" on rank ")
        plant_on_rank(what, int(request.removeprefix("request x")), number, strike)
    elif where.startswith("request x"):
        plant_in_requests(what, int(where.removeprefix("request x")))
    else:
        plant_in_phases(what, where)


def strike(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "raise":
        raise ValueError("this request is broken")
    elif what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what in ("hang", "deaf"):
        while True:
            time.sleep(1)
    if what == "fill":
        with Path(os.environ["ATTEMPT_DIR"], "filler").open("wb") as filler:
            while True:
                filler.write(b"x" * 1_000_000)
    if what == "memory":
        import torch

        torch.empty(1 << 50, dtype=torch.uint8)


def plant_in_phases(what: str, where: str) -> None:
    from bench.runner.diary import Diary

    mark = Diary._mark

    def marked(self: Diary, phase: str, event: str) -> None:
        mark(self, phase, event)
        if (phase, event) == (where, "begin"):
            strike(what)

    Diary._mark = marked  # type: ignore[method-assign]


def plant_in_requests(what: str, images: int) -> None:
    from bench.runner import tasks

    generate = tasks.generate

    def broken(pipe: Any, row: Any, request: Any, **options: Any) -> Any:
        if request.images == images:
            strike(what)
        return generate(pipe, row, request, **options)

    tasks.generate = broken


def plant_in_saving(what: str, number: int) -> None:
    count = 0
    replace = Path.replace

    def counted(self: Path, target: Any) -> Path:
        nonlocal count
        if Path(target).name == layout.RESULT:
            count += 1
            if count == number:
                strike(what)
        return replace(self, target)

    Path.replace = counted  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    serve(sys.argv[1])
