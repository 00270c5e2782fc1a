"""Campaigns of the stand-in runner, for tests: in this process, or as a process to be stopped and killed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fakes import fake_row
from host_driver import STANDIN
from rich.console import Console

from bench import layout, record
from bench.config import QUICK, SINGLE, Shape
from bench.host.command import fan_out
from bench.host.fanout import Settings
from bench.host.local import LocalExecutor
from bench.matrix import Row
from bench.record import Result

DRIVER = str(Path(__file__).parent / "host_driver.py")
ONE, FOUR = SINGLE, Shape(1, 4)


def cpu_row(row: str = "1", **changes: Any) -> Row:
    return fake_row(**{"row": row, "hardware": "cpu", **changes})


def run_rows(
    results: Path, rows: list[Row], cells: tuple[Shape, ...] = (ONE,), **changes: Any
) -> tuple[int, str]:
    """A campaign in this process: (exit code, what it said)."""
    said = io.StringIO()
    defaults: dict[str, Any] = {"weights": "synthetic", "budget": QUICK, "cells": cells, "grace_seconds": 1.0}
    settings = Settings(results=results, **{**defaults, **changes})
    console = Console(file=said, width=200)
    executor = LocalExecutor([sys.executable, STANDIN])
    return fan_out(rows, settings, [], console, executor=executor), said.getvalue()


def start_driver(
    results: Path, rows: list[Row], matrix: Sequence[Row] = (), **asked: Any
) -> subprocess.Popen[str]:
    request = {
        "results": str(results),
        "cells": [[1, 1]],
        "rows": [row.model_dump() for row in rows],
        "matrix": [row.model_dump() for row in matrix],
        **asked,
    }
    return subprocess.Popen(
        [sys.executable, DRIVER, json.dumps(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def saved(results: Path) -> list[Result]:
    """Every result of the tree in the order in which they ended. Each must be a whole, valid file."""
    paths = [folder / layout.RESULT for folder in layout.attempts(results)]
    return [record.load(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


def codes(result: Result) -> dict[str, str]:
    return {str(cell.shape): cell.status.code.value for cell in result.cells}


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return found


def runner_pid(results: Path, cell: str = "1x1") -> Callable[[], int | None]:
    """The runner that has begun this cell, once there is one."""

    def look() -> int | None:
        for folder in layout.attempts(results):
            events = folder / layout.EVENTS
            if events.exists() and f'"cell {cell}"' in events.read_text():
                match = re.search(r"pid (\d+)", (folder / layout.LOG).read_text())
                return int(match[1]) if match else None
        return None

    return look


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
