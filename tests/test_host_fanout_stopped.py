"""Fan-outs that are stopped, killed, or started twice: real processes, of a stand-in runner."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from campaigns import FOUR, ONE, codes, cpu_row, is_alive, run_rows, runner_pid, saved, start_driver, wait_for
from fakes import fake_row

from bench import layout
from bench.record import Code

pytestmark = pytest.mark.usefixtures("apart")


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
