"""``fluxbench run``: one row in this process. What the host starts, and what replays a row by hand."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import layout
from bench.config import BUDGETS, SINGLE, Shape, cells_of
from bench.contract import OK_EXIT, STATUS_EXIT
from bench.flux import check_weights, weights_of
from bench.host.gpus import Gpu, misfit
from bench.matrix import Row
from bench.record import Cell, Code, Result, write_atomically
from bench.rules import refusal
from bench.runner.job import Job
from bench.runner.judge import words_of
from bench.runner.load import Load

if TYPE_CHECKING:
    from bench.runner.overhead import Overhead


def job_of(
    row: Row,
    *,
    weights: str | None,
    budget: str,
    requests: int | None,
    cells: tuple[Shape, ...] | None,
    load: Load,
    quality: bool,
    profile: bool | None,
    results: Path,
    attempt_dir: Path | None,
) -> Job:
    """``cells`` None: those that are usual on the row's hardware. Raises ValueError when a rule refuses the
    row, the weights are not its model's, or the attempt has been made."""
    weights = weights or weights_of(row, "hub")
    if refused := refusal(row, weights):
        raise ValueError(f"{row.label} cannot run: {refused}")
    check_weights(row, weights)
    folder = attempt_dir or layout.attempt_dir(results, row, weights, layout.new_attempt())
    if (folder / layout.REQUESTS).exists():
        raise ValueError(f"{folder} holds an attempt already; name an empty folder, or none")
    cells = cells or cells_of(row.gpu_count)
    return Job(row, weights, BUDGETS[budget], cells, folder, load, requests, quality, profile)


def run_here(job: Job, *, keep_log: bool) -> int:
    """``keep_log``: write log.txt too; the host does that for the runners it starts. Returns the exit code.
    Raises OSError when there is no room for the attempt's files."""
    from bench.runner import row

    with _logging(job.attempt_dir / layout.LOG if keep_log else None):
        result = row.run(job)
        _keep_prompts(job)
    print(summary(result, job.attempt_dir))
    return OK_EXIT if result.status.code is Code.OK else STATUS_EXIT


def _keep_prompts(job: Job) -> None:
    """Beside the pictures, what each was to show. After the row: it costs none of its requests."""
    folder = job.attempt_dir / layout.IMAGES
    if any(folder.glob("*.png")):
        from bench.runner import tasks

        asked = tasks.manifest(job.row).quality_requests()
        write_atomically(
            folder / layout.PROMPTS, json.dumps({each.id: each.prompt for each in asked}, indent=1) + "\n"
        )


def usual_row(rows: Sequence[Row], gpus: Sequence[Gpu]) -> Row:
    """The plainest row that this machine fits: the reference on its GPU, else the tiny one on its CPU."""
    plain = [row for row in rows if row.use_case == ("txt2img", "none")]
    with_gpu = [row for row in plain if row.gpu and row.is_reference and misfit(row, gpus) is None]
    return (with_gpu or [row for row in plain if row.gpu is None and row.is_baseline])[0]


def measure_overhead(row: Row, weights: str | None, pairs: int) -> Overhead:
    from bench.runner.overhead import measure

    weights = weights or weights_of(row, "synthetic")
    with _logging(None):
        return measure(Job(row, weights, BUDGETS["quick"], cells=(SINGLE,), attempt_dir=Path()), pairs)


def summary(result: Result, attempt_dir: Path) -> str:
    lines = [f"{cell.shape}: {_numbers_of(cell)}" for cell in result.cells]
    reason = f": {result.status.reason}" if result.status.reason else ""
    return "\n".join([*lines, f"{result.status.code}{reason}", str(attempt_dir / layout.RESULT)])


def _numbers_of(cell: Cell) -> str:
    if cell.latency is None:
        return str(cell.status.code)
    p50 = cell.latency.p50
    shown = f"p50 {p50.value:.3f} s" if p50.supported else f"max {cell.latency.max:.3f} s"
    return f"{shown}, n={cell.n}, {cell.status.code}"


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's)
        """What an error of our own says is enough to mend it; where it was raised is no help."""
        return words_of(ei[1]) or super().formatException(ei)


@contextmanager
def _logging(path: Path | None) -> Iterator[None]:
    """To the terminal, and to this file too."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path))
    logging.getLogger("bench").setLevel(logging.INFO)
    root = logging.getLogger()
    for handler in handlers:
        handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
