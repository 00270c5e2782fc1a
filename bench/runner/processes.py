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
import re
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
from bench.host.verdict import LOG_TAIL_LINES, Ending, log_tail, verdict
from bench.record import Code, Status
from bench.runner.judge import RankLost
from bench.runner.messages import LOCALHOST, Failed, Place

LOOK_SECONDS = 1.0
"""How often silent ranks are looked at; a message or a death is noticed at once."""

COMMAND = (sys.executable, "-m", "bench.runner.rank")

STACK_BEGINS = re.compile(r"(Current t|T)hread 0x.*most recent call first")
"""What faulthandler writes above each thread's stack; C++ has "most recent call first" above its own."""
STACK_LINES = 8
FATAL = "Fatal Python error"
"""What faulthandler writes above all of them where a signal ends the process."""
LINES_BEFORE_FATAL = 6

WAITING_FRAMES = ("torch/distributed/distributed_c10d.py", "torch/distributed/_functional_collectives.py")
"""Among the innermost in the stack of a rank that waits for another one."""
WAITED_IN_VAIN = ("Watchdog caught collective operation timeout", "remote process exited")
"""What NCCL's watchdog writes before it aborts its process for what another rank did (ProcessGroupNCCL.cpp;
``ncclGetErrorString`` of ncclRemoteError)."""
CRASH_LINES = 500
"""How far back in a log the reason of a crash is looked for: the stacks of all threads may follow it."""

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
        """The end of its log. Where a fatal signal struck, the stacks of all its threads would be that: what
        came before them, and the main thread's."""
        lines = log_tail(self.log, lines=CRASH_LINES)
        fatal = next((number for number, line in enumerate(lines) if line.startswith(FATAL)), None)
        if fatal is None:
            return list(lines[-LOG_TAIL_LINES:])
        return [*lines[max(0, fatal - LINES_BEFORE_FATAL) : fatal + 1], *self.stack()]

    def stack(self) -> list[str]:
        """Where a signal found its main thread, told last of all; innermost call first. Empty until then."""
        lines = log_tail(self.log, lines=CRASH_LINES)
        begins = [number for number, line in enumerate(lines) if STACK_BEGINS.match(line)]
        return list(lines[begins[-1] + 1 :][:STACK_LINES]) if begins else []

    def waits_for_a_peer(self) -> bool:
        """Whether its stack says so. Where the GPU waits for a peer, and Python for the GPU, it does not."""
        return any(frame in line for line in self.stack() for frame in WAITING_FRAMES)

    def aborted_for_a_peer(self, code: int) -> bool:
        """Whether its end, with this exit code, says only that another rank is gone or late."""
        return code == -signal.SIGABRT and any(
            words in line for line in log_tail(self.log, lines=CRASH_LINES) for words in WAITED_IN_VAIN
        )


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
        self._deaths: dict[int, int] = {}
        """rank -> exit code, in the order in which they were noticed."""

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
                    self._await_death(process, time.monotonic() + config.RANKS.settle_seconds)
                    raise self._lost(waiting, {}) from None
            if self._notice_deaths():
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
        """A rank's own error comes before a death, and both before what only says that a peer is gone or
        late: if there is nothing else, the peer is one of those that still say nothing."""
        silent = self._listen_on([process for process in waiting if process.rank not in failed], failed)
        self._notice_deaths()
        silent = [process for process in silent if process.rank not in self._deaths]
        told = [*failed.items(), *self._died()]
        own = [(rank, each) for rank, each in told if not each.of_a_peer]
        if silent and not own:
            return self._hung(silent, "did not answer, and the others waited in vain")
        self.kill()
        rank, each = (own or told)[0]
        return RankLost(self.status_of_rank(rank, each.status))

    def _listen_on(self, processes: Sequence[Process], failed: dict[int, Failed]) -> list[Process]:
        """Who says nothing within the next moments either. What others say joins ``failed``."""
        silent, open_ = list(processes), list(processes)
        until = time.monotonic() + config.RANKS.settle_seconds
        while open_ and (left := until - time.monotonic()) > 0:
            for ready in wait([process.connection for process in open_], left):
                process = next(each for each in open_ if each.connection is ready)
                open_.remove(process)
                try:
                    answer = process.connection.recv()
                except GONE:
                    self._await_death(process, until)
                    continue
                silent.remove(process)
                if isinstance(answer, Failed):
                    failed[process.rank] = answer
        return silent

    def _await_death(self, process: Process, until: float) -> None:
        """A connection that closes is a process that dies: its exit code is waited for."""
        with suppress(subprocess.TimeoutExpired):
            code = process.popen.wait(max(0.0, until - time.monotonic()))
            self._deaths.setdefault(process.rank, code)

    def _notice_deaths(self) -> bool:
        for process in self:
            if (code := process.popen.poll()) is not None:
                self._deaths.setdefault(process.rank, code)
        return bool(self._deaths)

    def _died(self) -> list[tuple[int, Failed]]:
        """The first death first; but an abort may follow from another rank's death that was noticed later."""
        deaths = sorted(self._deaths.items(), key=lambda death: death[1] == -signal.SIGABRT)
        return [
            (rank, Failed(self._death(rank, code), of_a_peer=self[rank].aborted_for_a_peer(code)))
            for rank, code in deaths
        ]

    def _death(self, rank: int, code: int) -> Status:
        exit_ = Exit(signal=-code) if code < 0 else Exit(code=code)
        status = verdict(Ending(exit_, log_tail=tuple(self[rank].tail())), None)
        assert status is not None, "no result was written that could stand"
        return status

    def _hung(self, processes: Sequence[Process], how: str) -> RankLost:
        """Each first writes into its log where it is; one that is stopped does so as it goes on. Those that
        wait for a peer are not to blame, unless all do."""
        for process in processes:
            process.ask_where()
            process.popen.send_signal(signal.SIGCONT)
        until = time.monotonic() + config.RANKS.settle_seconds
        while time.monotonic() < until and not all(process.stack() for process in processes):
            time.sleep(0.1)
        self.kill()
        blamed = [process for process in processes if not process.waits_for_a_peer()] or processes
        names = " and ".join(f"rank {process.rank}" for process in blamed)
        tail = [
            line
            for process in blamed
            for line in (f"rank {process.rank}:", *(process.stack() or process.tail()))
        ]
        return RankLost(
            Status(code=Code.TIMEOUT, reason=f"{names} of {len(self)} {how}; below, where", log_tail=tail)
        )

    def status_of_rank(self, rank: int, status: Status) -> Status:
        """The same, in the name of a rank and with the end of its log."""
        reason = f"rank {rank} of {len(self)}: {status.reason}"
        return status.model_copy(update={"reason": reason, "log_tail": status.log_tail or self[rank].tail()})
