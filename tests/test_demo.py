"""``make demo`` is a transcript of real commands; what fails in it is named, and nothing hides it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench import demo
from bench.record import Code, Status


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(Path(__file__).parent.parent)
    return []


def let_the_demo_be(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(demo, "PARTS", ())
    monkeypatch.setattr(demo, "commands", lambda results: [("a part", line.split()) for line in lines])


def test_every_command_is_shown_before_it_runs_and_the_report_is_named(
    said: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    let_the_demo_be(monkeypatch, "rows --where row=73", "matrix --check")
    assert demo.run(said.append) == 0
    assert "$ fluxbench rows --where row=73" in said[0]
    assert "matrix.csv: " in capfd.readouterr().out
    assert said[-1].endswith("results/demo/analysis/index.html")


def test_a_row_without_numbers_fails_the_demo_and_an_unstable_one_does_not(tmp_path: Path) -> None:
    ok, unstable, crashed, missing = (
        fake_row(row=str(number), hardware="cpu", model="tiny", size=128) for number in (1, 2, 3, 4)
    )
    for row, code in ((ok, Code.OK), (unstable, Code.UNSTABLE), (crashed, Code.CRASHED)):
        result = fake_result(row, weights="tiny")
        result.status = Status(code=code, reason="" if code is Code.OK else "as the test wants it")
        write_attempt(tmp_path, result)
    assert list(demo.unmeasured([ok, unstable, crashed, missing], tmp_path)) == [
        f"{crashed.label}: crashed: as the test wants it",
        f"{missing.label}: was not run",
    ]


def test_a_command_that_fails_is_named_in_the_end_and_the_rest_still_runs(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_the_demo_be(monkeypatch, "rows --where tsk=inpaint", "matrix --check")
    assert demo.run(said.append) == 1
    assert any("$ fluxbench matrix --check" in line for line in said)
    assert said[-1] == "fluxbench rows --where tsk=inpaint  (exit code 2)"


STAND_IN = """
import signal, sys, time
def finish(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, finish)
signal.signal(signal.SIGTERM, finish)
print("at work", flush=True)
time.sleep(60)
"""
DEMO = f"""
import sys
from bench import demo
sys.exit(demo.run(lambda line: print(line, flush=True), fluxbench=(sys.executable, "-c", {STAND_IN!r})))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_lets_the_command_at_work_save_and_ends_the_demo(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    while "at work" not in process.stdout.readline():
        pass
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: everyone in the foreground
    else:
        process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert rest.splitlines()[0] == "saved"
    assert "goes on from there" in rest
    assert "$ fluxbench" not in rest
