"""Exclusive use of a machine's parts, across processes: one flock-ed file for each.

The kernel releases a lock when the last process holding it dies, so nothing is ever left to clean up.
The runner inherits the lock: if the fan-out is killed, the GPU stays taken for as long as a runner is
still on it.

The files lie in the machine's temporary directory, not under ``results/``: two campaigns with different
results would disturb each other just the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = "fluxbench-leases"
POLL_SECONDS = 0.5


class Busy(Exception):
    """Somebody else holds what was asked for; the message says who."""


@dataclass
class Lease:
    names: tuple[str, ...]
    descriptors: tuple[int, ...]
    """Open files that carry the locks; a child that inherits them shares the lease."""

    def part(self, name: str) -> Lease:
        """One of several, for who uses only that; the whole is still what is released."""
        place = self.names.index(name)
        return Lease((name,), (self.descriptors[place],))

    def release(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = ()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def joined(leases: Sequence[Lease]) -> Lease:
    """One lease that stands for all of them."""
    names = tuple(name for lease in leases for name in lease.names)
    return Lease(names, tuple(descriptor for lease in leases for descriptor in lease.descriptors))


def folder() -> Path:
    """One for all users of the machine, hence writable by all."""
    path = Path(tempfile.gettempdir()) / FOLDER
    path.mkdir(exist_ok=True)
    if path.stat().st_uid == os.getuid():
        path.chmod(0o1777)
    return path


def take(
    candidates: Sequence[str], count: int, holder: str, wait_seconds: float = 0.0, *, most: int | None = None
) -> Lease:
    """The first ``count`` free ones of ``candidates``, and further free ones up to ``most``. Raises ``Busy``,
    and takes none, when fewer than ``count`` are free after ``wait_seconds``. ``holder`` is what the next one
    who asks is told."""
    deadline = time.monotonic() + wait_seconds
    while True:
        taken: list[tuple[str, int]] = []
        for name in candidates:
            if len(taken) < (most or count) and (descriptor := _try_lock(name, holder)) is not None:
                taken.append((name, descriptor))
        lease = Lease(tuple(name for name, _ in taken), tuple(descriptor for _, descriptor in taken))
        if len(taken) >= count:
            return lease
        lease.release()
        if time.monotonic() >= deadline:
            raise Busy(_who_holds(candidates, count))
        time.sleep(POLL_SECONDS)


def held() -> list[str]:
    """``GPU-...: process 123 (fluxbench, 3 rows, since ...)`` for each part that is held at this moment."""
    notes = []
    for path in sorted(folder().glob("*.lock")):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            notes.append(_note(path.stem))
    return notes


def _try_lock(name: str, holder: str) -> int | None:
    descriptor = _open(folder() / f"{name}.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "holder": holder}).encode(), 0)
    return descriptor


def _open(path: Path) -> int:
    """For every user of the machine to lock and write, whoever made it: the caller's umask must not close it,
    and to open another user's file with O_CREAT is forbidden in a sticky folder (fs.protected_regular)."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        except FileExistsError:
            continue
        os.fchmod(descriptor, 0o666)
        return descriptor


def _who_holds(candidates: Sequence[str], count: int) -> str:
    notes = "; ".join(_note(name) for name in candidates)
    return f"{count} of {', '.join(candidates)} wanted, fewer are free; last taken by {notes}"


def _note(name: str) -> str:
    try:
        note = json.loads((folder() / f"{name}.lock").read_text())
        return f"{name}: process {note['pid']} ({note['holder']})"
    except (OSError, ValueError, KeyError):
        return f"{name}: taken this moment"
