"""The processes of a row that several ranks serve: begun together, asked together, ended together.

Nothing here knows what is asked. What is known is how ranks fail: one dies, one raises, one is stopped or
falls silent, and the others then wait for it or fail because of it. Whoever is to blame is named, with the
end of its log, and no process is left behind.

Ranks get torchrun's variables, not torchrun: its agent gives every worker a session of its own
(``start_new_session`` in torch/distributed/elastic/multiprocessing), so neither killing the runner's process
group nor the runner's death would end them, and a stopped worker would keep it waiting for 30 s. Here they
stay in the runner's group and die with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from bench import config
from bench.host.local import Exit, stop_when_parent_dies
from bench.host.verdict import Ending, log_tail, verdict
from bench.record import Code, Status
from bench.runner.judge import RankLost
from bench.runner.messages import LOCALHOST, Failed, Place

LOOK_SECONDS = 1.0
"""How often silent ranks are looked at; a message or a death is noticed at once."""

COMMAND = (sys.executable, "-m", "bench.runner.rank")

STACK_BEGINS = "most recent call first"
"""What faulthandler writes above a stack."""
STACK_LINES = 8

GONE = (EOFError, ConnectionResetError, BrokenPipeError)


def variables(caller: Mapping[str, str], rank: int, ranks: int, port: int) -> dict[str, str]:
    """The caller's environment unchanged, NCCL's variables among it, and what torchrun tells a worker."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {
        **caller,
        **{name: str(value) for name, value in told.items()},
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
    }


class Process:
    """One rank, as seen from outside."""

    def __init__(self, rank: int, popen: subprocess.Popen[bytes], connection: Connection, log: Path) -> None:
        self.rank, self.popen, self.connection, self.log = rank, popen, connection, log
        self.looks_stopped = 0

    def order(self, name: str, *arguments: Any) -> None:
        with suppress(*GONE):  # seen when the answer is awaited
            self.connection.send((name, arguments))

    def is_stopped(self) -> bool:
        """Whether it has been in so many looks that it will not go on by itself."""
        try:
            stopped = psutil.Process(self.popen.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            stopped = False
        self.looks_stopped = self.looks_stopped + 1 if stopped else 0
        return self.looks_stopped >= config.RANKS.stopped_looks

    def ask_where(self) -> None:
        """Have it write its stack, see ``stack``. Its main thread itself is asked: any thread of a stopped
        process may take a signal sent to the process, and faulthandler writes the taker's stack last."""
        if self.popen.poll() is not None:
            return
        if sys.platform == "linux":  # the main thread's id is the process's
            ctypes.CDLL(None).tgkill(self.popen.pid, self.popen.pid, signal.SIGUSR1)
        else:
            self.popen.send_signal(signal.SIGUSR1)

    def tail(self) -> list[str]:
        return list(log_tail(self.log))

    def stack(self) -> list[str]:
        """Where SIGUSR1 found its main thread, which is told last; innermost call first. Empty until then."""
        lines = log_tail(self.log, lines=200)
        begins = [number for number, line in enumerate(lines) if STACK_BEGINS in line]
        return list(lines[begins[-1] + 1 :][:STACK_LINES]) if begins else []


def start(
    place: Callable[[int, int, int | None], Place], ranks: int, log: Callable[[int], Path]
) -> Processes:
    """``place`` of (rank, port of the store, the descriptor behind that port on rank 0)."""
    begun: list[Process] = []
    try:
        with socket.create_server((LOCALHOST, 0)) as listening:
            port, descriptor = listening.getsockname()[1], listening.fileno()
            for rank in range(ranks):
                fd = descriptor if rank == 0 else None
                begun.append(_start(place(rank, port, fd), log(rank)))
    except BaseException:
        Processes(begun).kill()
        raise
    return Processes(begun)


def _start(place: Place, log: Path) -> Process:
    ours, theirs = socket.socketpair()
    told = variables(os.environ, place.rank, place.ranks, place.store_port)
    with theirs, log.open("ab") as output:
        child = spawn(place, theirs.fileno(), told, output)
    connection = Connection(ours.detach())
    connection.send(place)
    return Process(place.rank, child, connection, log)


def spawn(place: Place, fd: int, told: Mapping[str, str], output: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, str(fd)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=told,
        pass_fds=[fd, *([] if place.store_fd is None else [place.store_fd])],
        preexec_fn=stop_when_parent_dies(signal.SIGKILL),
    )


class Processes(Sequence[Process]):
    """All ranks of a row, by rank."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = list(processes)

    def __getitem__(self, rank: Any) -> Any:
        return self._processes[rank]

    def __len__(self) -> int:
        return len(self._processes)

    def kill(self) -> None:
        for process in self:
            process.popen.kill()
        for process in self:
            process.popen.wait()

    def end(self, patience_seconds: float) -> None:
        """A rank whose connection closes ends by itself; one that does not is killed."""
        until = time.monotonic() + patience_seconds
        for process in self:
            process.connection.close()
        for process in self:
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, until - time.monotonic()))
        self.kill()

    # --- Orders and answers --------------------------------------------------------------------------

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        """What every rank answers, by rank. Raises RankLost."""
        for process in self:
            process.order(name, *arguments)
        return self.gather()

    def gather(self, *, each_alone: bool = False) -> list[Any]:
        """One answer of each. ``each_alone``: what one of them raises is its own affair, and stands in the
        list as a ``Failed``; else nobody could go on. Raises RankLost."""
        answers: dict[int, Any] = {}
        while len(answers) < len(self):
            waiting = [process for process in self if process.rank not in answers]
            process, answer = self.next_answer(waiting, some_have_answered=bool(answers))
            if isinstance(answer, Failed) and not each_alone:
                raise self._lost(waiting, {process.rank: answer})
            answers[process.rank] = answer
        return [answers[process.rank] for process in self]

    def next_answer(
        self, waiting: Sequence[Process], *, some_have_answered: bool = False
    ) -> tuple[Process, Any]:
        """The first to answer; a ``Failed`` is an answer too. Raises RankLost when one died, is stopped, or
        when none speaks for too long."""
        limit = config.RANKS.apart_seconds if some_have_answered else config.RANKS.silence_seconds
        waited, looked = 0.0, time.monotonic()
        while waited <= limit:
            if ready := wait([process.connection for process in waiting], LOOK_SECONDS):
                process = next(each for each in waiting if each.connection is ready[0])
                try:
                    return process, process.connection.recv()
                except GONE:
                    raise self._lost(waiting, {}) from None
            if any(process.popen.poll() is not None for process in self):
                raise self._lost(waiting, {})
            if stopped := [process for process in self if process.is_stopped()]:
                raise self._hung(
                    stopped, f"was stopped for {config.RANKS.stopped_looks} s, and the others wait for it"
                )
            # Not by the clock alone: this process may have been stopped too, by Ctrl-Z.
            now = time.monotonic()
            waited, looked = waited + min(now - looked, 2 * LOOK_SECONDS), now
        raise self._hung(waiting, f"did not answer for {limit:.0f} s")

    # --- Who is to blame -----------------------------------------------------------------------------

    def diverged(self, rank: int, how: str) -> RankLost:
        """Ends all; ``how`` goes on from the rank's name."""
        self.kill()
        return RankLost(self.status_of_rank(rank, Status(code=Code.INVALID_OUTPUT, reason=how)))

    def _lost(self, waiting: Sequence[Process], failed: dict[int, Failed]) -> RankLost:
        """A rank's own error comes before a death, and both before errors that only say that a peer is
        gone: those are what the others answer."""
        self._listen_on([process for process in waiting if process.rank not in failed], failed)
        deaths = {each.rank: code for each in self if (code := each.popen.poll()) is not None}
        self.kill()
        own = [rank for rank, each in sorted(failed.items()) if not each.of_a_peer]
        if not own and deaths:
            rank = min(deaths)
            return RankLost(self.status_of_rank(rank, self._death(rank, deaths[rank])))
        rank = (own or sorted(failed))[0]
        return RankLost(self.status_of_rank(rank, failed[rank].status))

    def _listen_on(self, silent: list[Process], failed: dict[int, Failed]) -> None:
        """What the others say within the next moments. A connection that closes is a process that dies: its
        exit code is waited for."""
        until = time.monotonic() + config.RANKS.settle_seconds
        while silent and (left := until - time.monotonic()) > 0:
            for ready in wait([process.connection for process in silent], left):
                process = next(each for each in silent if each.connection is ready)
                silent.remove(process)
                try:
                    answer = process.connection.recv()
                except GONE:
                    with suppress(subprocess.TimeoutExpired):
                        process.popen.wait(max(0.0, until - time.monotonic()))
                    continue
                if isinstance(answer, Failed):
                    failed[process.rank] = answer

    def _death(self, rank: int, code: int) -> Status:
        exit_ = Exit(signal=-code) if code < 0 else Exit(code=code)
        status = verdict(Ending(exit_, log_tail=tuple(self[rank].tail())), None)
        assert status is not None, "no result was written that could stand"
        return status

    def _hung(self, processes: Sequence[Process], how: str) -> RankLost:
        """Each first writes into its log where it is; one that is stopped does so as it goes on."""
        for process in processes:
            process.ask_where()
            process.popen.send_signal(signal.SIGCONT)
        until = time.monotonic() + config.RANKS.settle_seconds
        while time.monotonic() < until and not all(process.stack() for process in processes):
            time.sleep(0.1)
        self.kill()
        names = " and ".join(f"rank {process.rank}" for process in processes)
        tail = [
            line
            for process in processes
            for line in (f"rank {process.rank}:", *(process.stack() or process.tail()))
        ]
        return RankLost(
            Status(code=Code.TIMEOUT, reason=f"{names} of {len(self)} {how}; below, where", log_tail=tail)
        )

    def status_of_rank(self, rank: int, status: Status) -> Status:
        """The same, in the name of a rank and with the end of its log."""
        reason = f"rank {rank} of {len(self)}: {status.reason}"
        return status.model_copy(update={"reason": reason, "log_tail": status.log_tail or self[rank].tail()})
