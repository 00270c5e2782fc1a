"""The other processes of this machine, as /proc shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    pid: int
    name: str


def named(pid: int) -> Process:
    """``?`` for a process of another container, or one that is gone."""
    try:
        return Process(pid, Path(f"/proc/{pid}/comm").read_text().strip())
    except OSError:
        return Process(pid, "?")


def orphans() -> Iterator[Process]:
    """Runners whose fan-out is gone: the first process has adopted them."""
    for pid, arguments in command_lines():
        if any(argument.startswith("--attempt-dir=") for argument in arguments) and _parent(pid) == 1:
            yield Process(pid, " ".join(arguments[:4]))


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """(pid, arguments) of every process but this one."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                text = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            yield int(folder.name), text.split("\0")


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None
