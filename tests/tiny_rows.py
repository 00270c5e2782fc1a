"""Rows run in the process of the tests, on a FLUX of the tiny model's dimensions, and requests that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import config, layout, record
from bench.matrix import Row
from bench.record import Code, Result
from bench.runner import row, tasks
from bench.runner.job import Job
from bench.runner.outputs import Output

Start = Callable[..., Result]


@pytest.fixture
def start(make_row: Callable[..., Row], tiny_weights: Path, tmp_path: Path) -> Start:
    """Runs a two-step row in this process with three requests a cell."""

    def run(cells: tuple[tuple[int, int], ...] = ((1, 1),), **changes: Any) -> Result:
        job = Job(
            make_row(steps=2),
            "tiny",
            config.PROBE,
            cells,
            tmp_path / "attempt",
            quality=False,
        )
        return row.run(replace(job, **changes))

    return run


def on_disk(tmp_path: Path) -> Result:
    return record.load(tmp_path / "attempt" / layout.RESULT)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def codes(result: Result) -> dict[tuple[int, int], Code]:
    return {cell.shape: cell.status.code for cell in result.cells}


def breaking(
    monkeypatch: pytest.MonkeyPatch, images: int, strike: Callable[[], None], after: int = 0
) -> None:
    """Every request of this many images strikes, but for the first ``after`` of them."""
    generate, seen = tasks.generate, []

    def broken(pipe: Any, row: Row, request: tasks.Request, **options: Any) -> Output:
        if request.images == images:
            seen.append(request)
            if len(seen) > after:
                strike()
        return generate(pipe, row, request, **options)

    monkeypatch.setattr(tasks, "generate", broken)


def raising(error: BaseException) -> Callable[[], None]:
    def strike() -> None:
        raise error

    return strike
