"""A results tree of stand-in attempts, and the command that renders it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_attempts import write_attempt
from fakes import fake_cell, fake_result, fake_row

from bench.cli import main
from bench.record import Code

TINY_ON_GPU = {"hardware": "h100x1", "model": "tiny", "size": 128, "tier": "extended"}
"""Of a row."""


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and a compiled row in two use cases, and a baseline that ran out of memory."""
    results = tmp_path_factory.mktemp("results")
    for number, (task, control) in enumerate((("txt2img", "none"), ("txt2img", "canny"))):
        first = 10 * number
        reference = fake_row(row=str(first + 2), task=task, control=control, parent=str(first + 1))
        compiled = reference.model_copy(
            update={"row": str(first + 4), "compilation": "inductor", "parent": reference.row}
        )
        baseline = fake_row(row=str(first + 1), task=task, control=control, precision="fp32")
        for seed in (1, 2):
            write_attempt(results, fake_result(reference, seed=seed, minutes=seed))
            write_attempt(results, fake_result(compiled, seed=seed, minutes=seed, median_seconds=3.9))
        cells = [
            fake_cell(1, 1, n=3, median_seconds=38.0),
            fake_cell(1, 4, code=Code.OOM, reason="CUDA out of memory <script>"),
        ]
        write_attempt(results, fake_result(baseline, cells=cells, budget="probe"))
    return results
