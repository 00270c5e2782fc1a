"""A cached row through the runner: what each request skipped is written down and adds up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import config, layout
from bench.check_files import file_faults
from bench.flux import MODELS, executed_steps
from bench.matrix import Row
from bench.record import Code, Result
from bench.runner import row, tasks
from bench.runner.job import Job

MakeRow = Callable[..., Row]
STEPS = 12


@pytest.fixture
def run(make_row: MakeRow, tmp_path: Path) -> Callable[..., Result]:
    def start(cells: tuple[tuple[int, int], ...] = ((1, 1),), **changes: Any) -> Result:
        measured = make_row(steps=STEPS, **changes)
        return row.run(Job(measured, "tiny", config.PROBE, cells, tmp_path, requests=2, quality=False))

    return start


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / layout.REQUESTS).read_text().splitlines()]


def test_every_request_says_what_it_skipped_and_the_cell_adds_it_up(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    """One and four images in one process: a request that began with what another kept would count other
    steps, and the evidence of verify, taken before both, would no longer be true."""
    result = run(((1, 1), (1, 4)), cache="fbcache-0.2", task="img2img", control="canny")
    executed = executed_steps("img2img", STEPS, MODELS["tiny"].settings.strength)
    assert (result.status.code, result.status.reason) == (Code.OK, "")
    evidence = result.effective["cache"]
    assert evidence["decided_by"] == "threshold 0.2"
    assert 0 < evidence["steps_skipped"] < executed
    for cell in result.cells:
        counts = cell.counts["cache"]
        of_window = [
            line["counts"]["cache"]
            for line in lines(tmp_path)
            if line["cell"] == str(cell.shape) and line["counted"]
        ]
        assert len(of_window) == cell.n
        assert all(each["steps_computed"] + each["steps_skipped"] == executed for each in of_window)
        assert counts == {name: sum(each[name] for each in of_window) for name in of_window[0]}
        assert counts["controlnet_calls"] == counts["steps_computed"] < cell.n * executed
        assert not [each for each in cell.anomalies if each.kind == "nothing_skipped"]
    assert list(file_faults(tmp_path, result)) == []

    path = tmp_path / layout.REQUESTS
    path.write_text(path.read_text().replace('"steps_skipped": ', '"steps_skipped": 1'))
    assert any("its lines count" in fault for name, fault in file_faults(tmp_path, result))


@pytest.mark.usefixtures("tiny_weights")
def test_a_cache_that_skips_nothing_is_measured_and_marked(run: Callable[..., Result]) -> None:
    """As on random weights: that is what it costs to ask, and no gain."""
    result = run(cache="fbcache-0.08")
    assert result.status.code is Code.OK
    assert result.effective["cache"]["steps_skipped"] == 0
    (cell,) = result.cells
    assert "nothing_skipped" in {anomaly.kind for anomaly in cell.anomalies}


def test_a_request_that_passed_the_cache_by_ends_the_row(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify saw the cache work; something took its place afterwards."""
    generate, served = tasks.generate, []

    def unhooked(pipe: Any, *request: Any, **options: Any) -> Any:
        if "on_stage" in options:  # verify's own requests have no clock
            served.append(None)
        if len(served) == config.WARMUP.minimum + 2:
            del pipe.transformer.forward
        return generate(pipe, *request, **options)

    monkeypatch.setattr(tasks, "generate", unhooked)
    result = run(cache="fbcache-0.2")
    assert result.status.code is Code.NOT_APPLIED
    assert "the cache was not asked once" in result.status.reason
