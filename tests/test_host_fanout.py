"""Campaigns with real processes: a stand-in runner that can be told to go wrong, driven by a fan-out that is
itself a process to be stopped and killed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_row
from host_driver import STANDIN
from host_faults import small_disk, small_memory
from rich.console import Console

from bench import identity, layout, record
from bench.config import PROBE, QUICK, STANDARD
from bench.host.command import fan_out
from bench.host.fanout import Settings
from bench.host.local import LocalExecutor, runner_environment
from bench.host.progress import LiveDisplay, Look
from bench.matrix import Row
from bench.record import Code, Result

__all__ = ["small_disk", "small_memory"]  # fixtures

DRIVER = str(Path(__file__).parent / "host_driver.py")
ONE, FOUR = (1, 1), (1, 4)


def cpu_row(row: str = "1", **changes: Any) -> Row:
    return fake_row(**{"row": row, "hardware": "cpu", **changes})


pytestmark = pytest.mark.usefixtures("apart")


def run_rows(
    results: Path, rows: list[Row], cells: tuple[tuple[int, int], ...] = (ONE,), **changes: Any
) -> tuple[int, str]:
    """A campaign in this process: (exit code, what it said)."""
    said = io.StringIO()
    defaults: dict[str, Any] = {"weights": "synthetic", "budget": QUICK, "cells": cells, "grace_seconds": 1.0}
    settings = Settings(results=results, **{**defaults, **changes})
    console = Console(file=said, width=200)
    executor = LocalExecutor([sys.executable, STANDIN])
    return fan_out(rows, settings, [], console, executor=executor), said.getvalue()


def start_driver(results: Path, rows: list[Row], **asked: Any) -> subprocess.Popen[str]:
    request = {
        "results": str(results),
        "cells": [[1, 1]],
        "rows": [row.model_dump() for row in rows],
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
    return {f"{cell.users}x{cell.images}": cell.status.code.value for cell in result.cells}


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


# --- The usual course --------------------------------------------------------------------------------


def test_rows_run_most_valuable_first_each_in_its_own_process_into_the_plans_tree(results: Path) -> None:
    rows = [cpu_row("1", precision="fp32"), cpu_row("2", compilation="inductor"), cpu_row("3")]
    code, said = run_rows(results, rows, (ONE, FOUR))
    assert code == 0
    order = [line.split(" (")[0] for line in said.splitlines() if ": ok " in line]
    assert order == ["row 3", "row 2", "row 1"]
    folders = list(layout.attempts(results))
    assert [folder.parent.parent.name for folder in folders] == ["row-0001", "row-0002", "row-0003"]
    pids = {re.search(r"pid (\d+)", (folder / layout.LOG).read_text())[1] for folder in folders}  # type: ignore[index]
    assert len(pids) == 3
    for result in saved(results):
        assert result.status.code is Code.OK
        assert codes(result) == {"1x1": "ok", "1x4": "ok"}
    assert "3 rows chosen, 3 to run (quick): about" in said
    assert "What ran" in said


def test_what_is_done_here_is_skipped_and_said_so(results: Path) -> None:
    rows = [cpu_row("1"), cpu_row("2", vae="tiled")]
    run_rows(results, rows)
    code, said = run_rows(results, [*rows, cpu_row("3", vae="sliced")])
    assert code == 0
    assert "done: rows 1-2" in said
    assert [result.row["row"] for result in saved(results)].count("1") == 1
    assert len(saved(results)) == 3


def test_only_cells_that_are_missing_are_measured_when_a_row_goes_on(results: Path) -> None:
    run_rows(results, [cpu_row()])
    code, _ = run_rows(results, [cpu_row()], (ONE, FOUR))
    assert code == 0
    assert [codes(result) for result in saved(results)] == [{"1x1": "ok"}, {"1x4": "ok"}]


def test_results_of_other_code_are_shown_as_stale_and_kept(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_rows(results, [cpu_row()])
    monkeypatch.setattr(identity, "code_sha256", lambda row: "other code")
    _, said = run_rows(results, [cpu_row()])
    assert "stale results, shown as stale and not counted as done: row 1" in said
    assert len(saved(results)) == 2


def test_code_that_changes_under_a_campaign_does_not_make_it_run_for_ever(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FINGERPRINT", "0" * 64)
    _, said = run_rows(results, [cpu_row()])
    assert "its result is stale already" in said
    assert len(saved(results)) == 1


def test_a_budget_of_two_processes_starts_two_the_second_after_every_first(results: Path) -> None:
    code, said = run_rows(results, [cpu_row("1"), cpu_row("2", vae="tiled")], budget=STANDARD)
    assert code == 0
    order = [line.split(" (")[0] for line in said.splitlines() if ": ok " in line]
    assert order == ["row 1", "row 2", "row 1", "row 2"]


def test_a_dry_run_says_everything_and_writes_nothing(results: Path) -> None:
    said = io.StringIO()
    settings = Settings(results, "synthetic", QUICK, (ONE,))
    assert fan_out([cpu_row()], settings, [], Console(file=said, width=200), dry_run=True) == 0
    assert "1. row 1 (bf16 on cpu, txt2img) 1x1: about" in said.getvalue()
    assert not results.exists()


def test_an_unsupported_row_gets_one_result_with_its_rule_and_nothing_runs(results: Path) -> None:
    rows = [cpu_row("1", attention="cudnn"), cpu_row("2"), cpu_row("3", cache="replay-50")]
    for _ in range(2):
        code, _ = run_rows(results, rows)
        assert code == 0
    for row, rule in (("1", "gpu-option-on-cpu"), ("3", "replayed-cache-on-real-weights")):
        unsupported = [result for result in saved(results) if result.row["row"] == row]
        assert [result.status.code for result in unsupported] == [Code.UNSUPPORTED]
        assert rule in unsupported[0].status.reason
    assert run_rows(results, rows[:1])[0] == 1, "a campaign of nothing but refusals has not succeeded"


def test_rows_that_no_longer_fit_the_time_are_left_out_by_name(results: Path) -> None:
    code, said = run_rows(results, [cpu_row()], max_hours=0.0001)
    assert code == 0
    assert "row 1 (bf16 on cpu, txt2img): left out, it takes about" in said
    assert saved(results) == []


def test_a_runner_keeps_byte_code_whatever_the_caller_wishes() -> None:
    kept = runner_environment({"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "2"}, ("GPU-1",))
    assert kept == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "GPU-1"}


def test_the_callers_environment_reaches_the_runner(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "1x1=exit7")
    run_rows(results, [cpu_row()])
    assert saved(results)[0].status.exit_code == 7


def test_the_fan_out_itself_costs_less_than_a_fifth_of_a_second_a_row(results: Path) -> None:
    rows = [cpu_row(str(number), size=128 * number) for number in range(1, 21)]
    settings = Settings(results, "synthetic", PROBE, (ONE,))
    begun = time.perf_counter()
    fan_out(rows, settings, [], Console(file=io.StringIO()), executor=LocalExecutor(["true"]))
    assert (time.perf_counter() - begun) / len(rows) < 0.2
    assert len(saved(results)) == 20


def test_the_living_line_stands_in_a_terminal_and_leaves_it_clean() -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=200)
    with LiveDisplay(console) as display:
        display.look(Look("row 42", 1, 2, "load", 0, 1, 2, 3, 0.5))
        display.note("row 41: ok")
    assert "row 42" in said.getvalue()
    assert "row 41: ok" in said.getvalue()


# --- What goes wrong in a row ------------------------------------------------------------------------


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
    exit_code, said = run_rows(results, [cpu_row("1"), cpu_row("2", vae="tiled")], (ONE, FOUR, (4, 1)))
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


def test_log_lines_of_a_dead_runner_stand_in_its_result(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "1x1=exit7")
    run_rows(results, [cpu_row()])
    status = saved(results)[0].status
    assert status.log_tail[-1] == "something is broken"
    assert status.exit_code == 7


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
    assert f"have a damaged result: row 1: {path}: cells.0.users" in said
    assert "row 2 (bf16+tiled on cpu, txt2img): ok" in said
    assert path.read_text() == edited, "what a person wrote is not overwritten"


# --- Stopping and killing the fan-out ----------------------------------------------------------------


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_campaign_keeps_every_cell_and_the_same_command_goes_on(
    results: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, exit_code: int
) -> None:
    monkeypatch.setenv("STANDIN", "1x4=hang")
    driver = start_driver(results, [cpu_row("1"), cpu_row("2", vae="tiled")], cells=[ONE, FOUR])
    pid = wait_for(runner_pid(results, "1x4"))
    driver.send_signal(number)
    said, _ = driver.communicate(timeout=20)
    assert driver.returncode == exit_code, said
    assert "goes on from here" in said
    (result,) = saved(results)
    assert result.status.code is Code.INTERRUPTED
    assert codes(result)["1x1"] == "ok"
    assert not is_alive(pid)
    monkeypatch.delenv("STANDIN")
    code, _ = run_rows(results, [cpu_row("1"), cpu_row("2", vae="tiled")], (ONE, FOUR))
    assert code == 0
    assert codes(saved(results)[1]) == {"1x4": "ok"}


def test_a_second_ctrl_c_kills_a_deaf_runner_at_once(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "1x4=deaf")
    driver = start_driver(results, [cpu_row()], cells=[ONE, FOUR], grace_seconds=60)
    wait_for(runner_pid(results, "1x4"))
    driver.send_signal(signal.SIGINT)
    time.sleep(1.2)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=20)
    (result,) = saved(results)
    assert result.status.code is Code.INTERRUPTED
    assert codes(result) == {"1x1": "ok", "1x4": "interrupted"}


def test_a_killed_fan_out_takes_its_runner_along_and_leaves_an_honest_result(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "1x4=hang")
    driver = start_driver(results, [cpu_row()], cells=[ONE, FOUR])
    pid = wait_for(runner_pid(results, "1x4"))
    driver.kill()
    driver.wait()
    wait_for(lambda: not is_alive(pid))
    (result,) = saved(results)
    assert result.status.code is Code.INTERRUPTED
    assert codes(result) == {"1x1": "ok"}
    monkeypatch.delenv("STANDIN")
    code, _ = run_rows(results, [cpu_row()], (ONE, FOUR))
    assert code == 0
    assert codes(saved(results)[1]) == {"1x4": "ok"}


def test_host_and_runner_killed_together_leave_an_interrupted_result(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "1x1=hang")
    driver = start_driver(results, [cpu_row()])
    pid = wait_for(runner_pid(results))
    os.kill(pid, signal.SIGSTOP)
    driver.kill()
    driver.wait()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    assert [result.status.code for result in saved(results)] == [Code.INTERRUPTED]


# --- Two fan-outs at once ----------------------------------------------------------------------------


def test_a_second_fan_out_on_the_same_machine_is_refused_by_name_or_waits(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_SECONDS", "2")
    first = start_driver(results, [cpu_row()])
    wait_for(runner_pid(results))
    waiting = start_driver(results, [cpu_row()], wait_seconds=30)
    refused = start_driver(results, [cpu_row()])
    said, _ = refused.communicate(timeout=20)
    assert refused.returncode == 1
    assert f"cpu: process {first.pid} (fluxbench, 1 rows, since " in said
    assert first.wait(timeout=20) == 0
    said, _ = waiting.communicate(timeout=20)
    assert waiting.returncode == 0, said
    assert "row 1 (bf16 on cpu, txt2img): left out, done here" in said
    assert len(saved(results)) == 1, "who waited sees that the row is done by now"


def test_two_fan_outs_share_the_gpus_of_a_machine_and_the_rows_of_a_campaign(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_SECONDS", "0.7")
    others = [fake_row(row=str(number), attention="cudnn", steps=number) for number in range(2, 5)]
    rows = [fake_row(row="1"), *others]
    both = [start_driver(results, rows, gpus=2) for _ in range(2)]
    said = [driver.communicate(timeout=40)[0] for driver in both]
    assert [driver.returncode for driver in both] == [0, 0], said
    logs = [(folder / layout.LOG).read_text() for folder in layout.attempts(results)]
    # The reference, row 1, runs on the GPU of each fan-out and again at its end; the others once.
    assert sorted(result.row["row"] for result in saved(results) if result.row["row"] != "1") == [
        "2",
        "3",
        "4",
    ]
    assert {re.search(r"gpus (\S+)", log)[1] for log in logs} == {"GPU-0", "GPU-1"}  # type: ignore[index]


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
