"""What goes wrong in a row of a campaign: a stand-in runner told to die, to hang, to fill disk or memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaigns import DRIVER, FOUR, ONE, codes, cpu_row, run_rows, saved
from host_faults import small_disk, small_memory

from bench import layout
from bench.config import Shape
from bench.record import Code

__all__ = ["small_disk", "small_memory"]  # fixtures

pytestmark = pytest.mark.usefixtures("apart")


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("segv", Code.CRASHED, "SIGSEGV"),
        ("exit7", Code.CRASHED, "exit code 7"),
        ("cuda-oom", Code.OOM, "CUDA out of memory"),
        ("scribble", Code.CRASHED, "exit code 1"),
    ],
)
def test_a_runner_that_dies_costs_one_cell_and_not_the_campaign(
    results: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: Code, says: str
) -> None:
    monkeypatch.setenv("STANDIN", f"1x4={fault}")
    exit_code, said = run_rows(results, [cpu_row("1"), cpu_row("2", vae="tiled")], (ONE, FOUR, Shape(4, 1)))
    assert exit_code == 1
    first, *later = (result for result in saved(results) if result.row["row"] == "1")
    assert first.status.code is code
    assert says in first.status.reason
    if fault == "scribble":
        assert codes(first) == {"1x1": code, "1x4": code, "4x1": code}, "nothing whole was left to keep"
        assert list(results.rglob("result.json.damaged"))
    else:
        assert codes(first) == {"1x1": "ok", "1x4": code, "4x1": "interrupted"}
        assert [codes(result) for result in later] == [{"4x1": "ok"}], (
            "the cells after the bad one are measured by a fresh process"
        )
    assert "row 2" in said


def test_log_lines_of_a_dead_runner_stand_in_its_result_and_below_what_the_campaign_says(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "1x1=exit7")
    _, said = run_rows(results, [cpu_row()])
    status = saved(results)[0].status
    assert status.log_tail[-1] == "something is broken"
    assert status.exit_code == 7
    assert "the last lines of its log stand below" in said
    assert "\n    something is broken\n" in said


@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_a_hanging_row_ends_as_timeout_with_its_finished_cells(
    results: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("STANDIN", f"1x4={fault}")
    begun = time.monotonic()
    code, _ = run_rows(results, [cpu_row()], (ONE, FOUR), timeout_seconds=1.5, grace_seconds=0.5)
    assert code == 1
    assert time.monotonic() - begun < 8
    (result,) = saved(results)
    assert result.status.code is Code.TIMEOUT
    assert "--timeout" in result.status.reason
    assert codes(result) == {"1x1": "ok", "1x4": "timeout"}


def test_a_failing_driver_is_tried_three_times_more_and_then_left(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "1x1=driver")
    code, _ = run_rows(results, [cpu_row()])
    assert code == 1
    assert [result.status.code for result in saved(results)] == [Code.INFRA] * 4


def test_what_failed_is_not_run_again_unless_asked(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "1x1=exit7")
    run_rows(results, [cpu_row()])
    monkeypatch.delenv("STANDIN")
    _, said = run_rows(results, [cpu_row()])
    assert "failed before, not tried again: row 1: crashed earlier" in said
    assert len(saved(results)) == 1
    assert run_rows(results, [cpu_row()], retry=True)[0] == 0
    assert [result.status.code for result in saved(results)] == [Code.CRASHED, Code.OK]


def test_a_result_edited_by_hand_is_refused_and_other_rows_run(results: Path) -> None:
    run_rows(results, [cpu_row()])
    path = next(iter(layout.attempts(results))) / layout.RESULT
    edited = path.read_text().replace('"users": 1', '"users": 0')
    path.write_text(edited)
    code, said = run_rows(results, [cpu_row("1"), cpu_row("2", vae="tiled")])
    assert code == 1
    assert f"have a result that cannot be read: row 1: {path}: cells.0.users" in said
    assert "row 2 (bf16+tiled on cpu, txt2img): ok" in said
    assert path.read_text() == edited, "what a person wrote is not overwritten"


# --- A full disk, a full memory ----------------------------------------------------------------------


def test_a_disk_that_fills_mid_row_ends_as_infra_and_loses_no_finished_cell(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "1x4=fill-disk")
    code, said = run_rows(small_disk / "results", [cpu_row("1"), cpu_row("2", vae="tiled")], (ONE, FOUR))
    assert code == 1
    (result,) = saved(small_disk / "results")
    assert result.status.code is Code.INFRA
    assert "free space" in result.status.reason
    assert codes(result) == {"1x1": "ok", "1x4": "infra"}
    assert "broken off: " in said
    assert "free space and run the same command again" in said
    for filler in small_disk.rglob("filler"):
        filler.unlink()
    monkeypatch.delenv("STANDIN")
    code, _ = run_rows(small_disk / "results", [cpu_row("1"), cpu_row("2", vae="tiled")], (ONE, FOUR))
    assert code == 0
    later = {result.row["row"]: codes(result) for result in saved(small_disk / "results")}
    assert later == {"1": {"1x4": "ok"}, "2": {"1x1": "ok", "1x4": "ok"}}


def test_a_campaign_does_not_start_a_row_on_a_full_disk(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 1_000_000))
    code, said = run_rows(small_disk / "results", [cpu_row()])
    assert code == 1
    assert "MB free under" in said
    assert saved(small_disk / "results") == []


def test_a_row_that_the_kernel_kills_for_memory_is_oom_and_its_other_cells_are_kept(
    results: Path, monkeypatch: pytest.MonkeyPatch, small_memory: Path
) -> None:
    monkeypatch.setenv("STANDIN", "1x4=memory")
    request = {"results": str(results), "cells": [ONE, FOUR], "rows": [cpu_row().model_dump()]}
    join = f'echo $$ > {small_memory}/cgroup.procs && exec "$0" "$@"'
    driver = subprocess.run(
        ["bash", "-c", join, sys.executable, DRIVER, json.dumps(request)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert driver.returncode == 1, driver.stdout + driver.stderr
    (result,) = saved(results)
    assert result.status.code is Code.OOM
    assert "out-of-memory killer" in result.status.reason
    assert codes(result) == {"1x1": "ok", "1x4": "oom"}
