"""The usual course of a campaign, with real processes: a stand-in runner in place of the real one."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest
from campaigns import FOUR, ONE, codes, cpu_row, run_rows, saved
from fakes import fake_row
from host_driver import STANDIN
from rich.console import Console

from bench import identity, layout
from bench.config import PROBE, QUICK, STANDARD
from bench.host.command import fan_out
from bench.host.fanout import Settings
from bench.host.local import LocalExecutor, runner_environment
from bench.host.progress import LiveDisplay, Look
from bench.matrix import Row
from bench.record import Code
from bench.typed import Asked

pytestmark = pytest.mark.usefixtures("apart")


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


def test_a_row_that_was_asked_for_alone_stays_alone_and_says_how_to_compare_it(results: Path) -> None:
    reference, row = cpu_row("1"), cpu_row("2", vae="tiled")
    asked = Asked(budget="probe", cells="1x1", results=str(results))
    settings = Settings(results, "synthetic", PROBE, (ONE,), again=True)
    executor = LocalExecutor([sys.executable, STANDIN])

    def bench(row: Row) -> str:
        said = io.StringIO()
        console = Console(file=said, width=200)
        fan_out([row], settings, [], console, executor=executor, matrix=[reference, row], asked=asked)
        return said.getvalue()

    command = f"`make bench ROW=1 BUDGET=probe CELLS=1x1 RESULTS={results}`"
    assert f"row 2 has nothing to be compared with here yet; {command} runs its reference, row 1" in bench(
        row
    )
    assert [result.row["row"] for result in saved(results)] == ["2"]
    assert "compared" not in bench(reference)
    assert "compared" not in bench(row)


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


def test_of_an_unsupported_row_whose_hardware_is_absent_the_plan_tells_and_nothing_is_written(
    results: Path,
) -> None:
    row = fake_row(row="1", hardware="h100x1", cache="replay-50")
    code, said = run_rows(results, [row], weights="hub")
    assert code == 1
    assert "unsupported: row 1" in said
    assert saved(results) == []


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
