"""``fluxbench run``: one row in this process. What the host starts, and what replays a row by hand."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from bench import layout
from bench.record import Cell, Code, Result
from bench.runner.job import Job

OK_EXIT = 0
STATUS_EXIT = 3
"""result.json says another status than ``ok``."""


def run_here(job: Job, *, keep_log: bool) -> int:
    """``keep_log``: write log.txt too; the host does that for the runners it starts. Returns the exit code.
    Raises OSError when there is no room for the attempt's files."""
    from bench.runner import row

    _log_to(job.attempt_dir / layout.LOG if keep_log else None)
    result = row.run(job)
    print(summary(result, job.attempt_dir))
    return OK_EXIT if result.status.code is Code.OK else STATUS_EXIT


def summary(result: Result, attempt_dir: Path) -> str:
    lines = [f"{cell.users}x{cell.images}: {_numbers_of(cell)}" for cell in result.cells]
    reason = f": {result.status.reason}" if result.status.reason else ""
    return "\n".join([*lines, f"{result.status.code}{reason}", str(attempt_dir / layout.RESULT)])


def _numbers_of(cell: Cell) -> str:
    if cell.latency is None:
        return str(cell.status.code)
    p50 = cell.latency.p50
    shown = f"p50 {p50.value:.3f} s" if p50.supported else f"max {cell.latency.max:.3f} s"
    return f"{shown}, n={cell.n}, {cell.status.code}"


def _log_to(path: Path | None) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path))
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
    logging.getLogger("bench").setLevel(logging.INFO)
