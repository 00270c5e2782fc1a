"""Results copied off a rented machine while they come, so that the machine may vanish at any moment.

A copy never shows half a file, and a result.json only after the files beside it. What a running row has
written so far is copied too: its finished cells stand in its result.json. Nothing is ever deleted at the
destination.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import layout
from bench.host import leases
from bench.host.supervise import GRACE_SECONDS, Stop

LAST_WORD_SECONDS = GRACE_SECONDS + 5.0
"""How long the campaigns of this machine, stopped at the same moment, may take to write their verdicts."""
REMOTE = re.compile(r"[^/]+:")
"""``user@host:path`` or ``rsync://...``"""
NOT_COPIED = (".*.tmp", "/demo")
"""For rsync: files that are being written, and the demo's tree, which is never mixed with the rest."""


class SyncError(Exception):
    """Nothing, or not everything, was copied; the message says what to do."""


def keep_copying(results: Path, destination: str, every_seconds: float, say: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM; then once more, when no campaign holds a lease any longer. A round that fails
    is told and made good by the next. Raises SyncError when the last one fails."""
    with Stop() as stop:
        while not stop.asked:
            try:
                _tell(copy(results, destination), destination, say)
            except SyncError as error:
                say(str(error))
            wait_until = time.monotonic() + every_seconds
            while not stop.asked and time.monotonic() < wait_until:
                time.sleep(0.2)
        give_up = time.monotonic() + LAST_WORD_SECONDS
        while leases.held() and time.monotonic() < give_up:
            time.sleep(0.2)
        _tell(copy(results, destination), destination, say)


def _tell(copied: int, destination: str, say: Callable[[str], None]) -> None:
    if copied:
        say(f"{copied} file{'s' * (copied != 1)} to {destination}")


def copy(results: Path, destination: str) -> int:
    """One round; how many files it copied. Raises SyncError."""
    if not results.is_dir():
        raise SyncError(f"{results} is not there yet: no row has run")
    if REMOTE.match(destination):
        return _rsync(results, destination)
    try:
        there = Path(destination)
        return sum(_copy_if_changed(path, there / path.relative_to(results)) for path in files(results))
    except OSError as error:
        raise SyncError(f"{destination}: {error}; free space there, or name another place") from error


def files(results: Path) -> Iterator[Path]:
    """Each folder's result.json comes last: it speaks of the others."""
    for folder, folders, names in os.walk(results):
        if Path(folder) == results and "demo" in folders:
            folders.remove("demo")
        folders.sort()
        for name in sorted(names, key=lambda name: (name == layout.RESULT, name)):
            if not (name.startswith(".") and name.endswith(".tmp")):
                yield Path(folder, name)


def _copy_if_changed(source: Path, target: Path) -> bool:
    try:
        now = source.stat()
        if target.exists():
            before = target.stat()
            if (before.st_size, before.st_mtime_ns) == (now.st_size, now.st_mtime_ns):
                return False
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = layout.temporary(target)
        try:
            shutil.copyfile(source, temporary)
            # The time from before: what is written while we copy is seen by the next round.
            os.utime(temporary, ns=(now.st_atime_ns, now.st_mtime_ns))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except FileNotFoundError:
        if source.exists():
            raise
        return False  # renamed or removed since it was listed
    return True


def _rsync(results: Path, destination: str) -> int:
    if shutil.which("rsync") is None:
        raise SyncError(f"{destination} is on another machine: that needs rsync, `apt-get install rsync`")
    excluded = [f"--exclude={pattern}" for pattern in NOT_COPIED]
    command = ["rsync", "--archive", "--out-format=%n", *excluded, f"{results}/", destination]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # 24: some files vanished while it ran, as temporary ones do.
    if done.returncode not in (0, 24):
        raise SyncError(f"rsync to {destination} failed: {done.stderr.strip()}")
    return sum(not line.endswith("/") for line in done.stdout.splitlines())
