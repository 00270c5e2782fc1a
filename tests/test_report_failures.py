"""What went wrong, and what was odd, stands in the report beside the numbers that it concerns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_attempts import write_attempt
from fakes import fake_cell, fake_result, fake_row
from reports import COMPILED, REFERENCE, attempt, comparison, rendered, texts

from bench import layout, record, stats
from bench.matrix import Row
from bench.record import Code
from bench.report.load import load


def test_old_numbers_stay_in_sight_when_the_new_attempt_crashed(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, fingerprint="0" * 64)
    attempt(tmp_path, REFERENCE, code=Code.CRASHED, minutes=60, log_tail=["Segmentation fault"])
    (line, *_) = comparison(rendered(tmp_path)).lines
    assert "ended crashed" in line.entries[0].note
    (failure,) = rendered(tmp_path).pages[0].failures
    assert failure.log == ("Segmentation fault",)


def test_a_failed_cell_keeps_its_line_its_reason_and_its_log(tmp_path: Path) -> None:
    cells = [fake_cell(1, 1), fake_cell(1, 4, code=Code.OOM, reason="CUDA out of memory")]
    attempt(tmp_path, fake_row(row="1", precision="fp32"), cells=cells)
    page = rendered(tmp_path).pages[0]
    assert texts(comparison(rendered(tmp_path)), "fp32", "1x4")["Status"] == "oom"
    (failure,) = page.failures
    assert (failure.cell, failure.reason, failure.answered) == ("1x4", "CUDA out of memory", "no")
    assert failure.log[-1] == "oom"


def test_a_cell_that_was_measured_later_says_so(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, code=Code.INFRA, reason="disk full")
    attempt(tmp_path, REFERENCE, minutes=30)
    (failure,) = rendered(tmp_path).pages[0].failures
    assert failure.answered == "here"


def test_a_cell_that_another_machine_measured_names_it_however_many_did_not(tmp_path: Path) -> None:
    single = {"shapes": [(1, 1)]}
    for host, code in ((1, Code.UNSTABLE), (2, None), (3, Code.UNSTABLE)):
        attempt(tmp_path, REFERENCE, host=host, code=code, minutes=host, **single)
    failed = rendered(tmp_path).pages[0].failures
    assert [(each.machine, each.answered) for each in failed] == [
        ("GPU-00000001", "on GPU-00000002"),
        ("GPU-00000003", "on GPU-00000002"),
    ]


def test_unreadable_results_are_named_with_the_reason(tmp_path: Path) -> None:
    folder, _ = attempt(tmp_path, REFERENCE)
    edited = json.loads((folder / layout.RESULT).read_text())
    edited["speed"] = "great"
    (folder / layout.RESULT).write_text(json.dumps(edited))
    running, _ = attempt(tmp_path, COMPILED, n=5, shapes=[(1, 1)])
    (running / layout.RESULT).unlink()
    reasons = {problem.path.split("/")[2]: problem.reason for problem in load(tmp_path).problems}
    assert "speed: Extra inputs are not permitted" in reasons["row-0002"]
    assert " finished requests in requests.jsonl" in reasons["row-0004"]


@pytest.mark.parametrize("invented", ["a median", "every latency"])
def test_a_number_changed_by_hand_is_left_out_with_what_contradicts_it(tmp_path: Path, invented: str) -> None:
    folder, result = attempt(tmp_path, COMPILED, shapes=[(1, 1)])
    attempt(tmp_path, REFERENCE)
    cell = result.cells[0]
    assert cell.latency is not None
    assert cell.service is not None
    if invented == "a median":
        cell.latency.p50.value *= 0.9
        because = "cells[1x1].latency.p50.value: "
    else:  # made anew from values that nobody measured: result.json agrees with itself
        cell.latency = stats.summarise([0.9 * seconds for seconds in cell.latency.raw])
        cell.service = stats.summarise([0.9 * seconds for seconds in cell.service.raw])
        because = "requests.jsonl: cell 1x1: its latency is not that of the result"
    record.save(result, folder)
    loaded = load(tmp_path)
    assert [each.row for each in loaded.attempts] == [REFERENCE]
    (problem,) = loaded.problems
    assert because in problem.reason
    assert "`fluxbench check` lists every fault" in problem.reason


def odd_attempt(results: Path, row: Row, **made: Any) -> None:
    """A power cap in its cell, and a machine that was busy before it began."""
    cell = fake_cell(1, 1, gpu=row.gpu is not None)
    cell.anomalies = [record.Anomaly(kind="power_cap", detail="held the clocks down in 98% of samples")]
    result = fake_result(row, cells=[cell], **made)
    busy = record.Anomaly(kind="busy_machine", detail="load average 20.3 on 16 processors")
    assert result.environment is not None
    result.environment.load_average = (20.3, 9.0, 9.0)
    write_attempt(results, result.model_copy(update={"anomalies": [busy]}))


def test_what_was_odd_stands_beside_every_number_it_concerns(tmp_path: Path) -> None:
    odd_attempt(tmp_path, REFERENCE)
    odd_attempt(tmp_path, REFERENCE, minutes=30)
    (view,) = rendered(tmp_path).pages[0].sections
    tables = view.headline, view.cases[0].comparison
    for table, column in zip(tables, ("p50 (s)", "Status"), strict=True):
        titles = [each.title for each in table.columns]
        assert table.lines[0].entries[titles.index(column)].tags == ("power cap", "busy machine")


def test_the_machine_table_has_clocks_temperature_load_and_anomalies_of_one_gpu_too(tmp_path: Path) -> None:
    odd_attempt(tmp_path, REFERENCE)
    (view,) = rendered(tmp_path).pages[0].sections
    table = next(each for each in view.cases[0].side if each.title.startswith("Each GPU"))
    line = texts(table, "bf16")
    assert line["GPU"] == "GPU-00000000"
    assert (line["SM clock avg (MHz)"], line["Temperature peak (°C)"]) == ("1755", "61.0")
    assert (line["Power limit (W)"], line["Power cap (% of samples)"]) == ("700", "2")
    assert line["Load before"] == "20.3 of 16"
    assert line["Anomalies"] == (
        "power cap: held the clocks down in 98% of samples; busy machine: load average 20.3 on 16 processors"
    )


def test_the_machine_table_of_a_cpu_has_its_load_and_no_columns_of_gpus(tmp_path: Path) -> None:
    odd_attempt(tmp_path, fake_row(row="2", hardware="cpu"))
    (view,) = rendered(tmp_path).pages[0].sections
    table = next(each for each in view.cases[0].side if each.title.startswith("Machine"))
    line = texts(table, "bf16")
    assert line["Load before"] == "20.3 of 16"
    assert not any("GPU" in title or "SM clock" in title for title in line)
