"""What stands behind the answers, what was never run, and the best option of each axis alone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_cell, fake_result, fake_row

from bench import matrix_file
from bench.cli import main
from bench.matrix import Row
from bench.record import Code
from bench.report import alone, coverage, overall
from bench.report.coverage import layer_of
from bench.report.load import load
from bench.report.page import Report, report
from bench.report.table import Entry, Table

REPOSITORY = Path(__file__).parent.parent
MATRIX = matrix_file.read(REPOSITORY / "matrix.csv")


def row(number: int, **changes: Any) -> Row:
    return fake_row(row=str(number), parent=None if number == 1 else "1", **changes)


REFERENCE = row(1)
INDUCTOR = row(2, compilation="inductor")
GRAPHS = row(3, compilation="inductor-graphs")
NF4 = row(4, quantization="bnb-nf4")
INT8 = row(5, quantization="bnb-int8")
BOTH = row(6, quantization="bnb-nf4", compilation="inductor")
ELSEWHERE = row(7, task="img2img")
ROWS = (REFERENCE, INDUCTOR, GRAPHS, NF4, INT8, BOTH, ELSEWHERE)


def measured(results: Path, row: Row, seconds: float = 5.25, host: int = 0, **result: Any) -> None:
    for minutes in (0, 30):
        made = fake_result(row, median_seconds=seconds, host=host, minutes=minutes, shapes=[(1, 1)], **result)
        write_attempt(results, made)


def rendered(results: Path, rows: tuple[Row, ...] = ROWS) -> Report:
    return report(load(results, rows))


def by_heading(table: Table, line: str) -> dict[str, Entry]:
    (found,) = (each for each in table.lines if each.entries[0].text == line)
    return {column.title: entry for column, entry in zip(table.columns, found.entries, strict=True)}


def covered(results: Path, rows: tuple[Row, ...] = ROWS) -> Table:
    of = rendered(results, rows)
    (one,) = coverage.coverages(of.pages[0], of.rows)
    return one.table()


def best_alone(results: Path, rows: tuple[Row, ...] = ROWS) -> Table:
    (page,) = rendered(results, rows).pages
    (world,) = overall.worlds(page.sections)
    return alone.table(world, rows)


# --- Coverage ------------------------------------------------------------------------------------------


def test_rows_are_counted_by_use_case_phase_and_layer(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    measured(tmp_path, INDUCTOR, host=1)
    table = covered(tmp_path)
    texts = {
        heading: entry.text.replace("\xa0", " ")
        for heading, entry in by_heading(table, "Text-to-Image").items()
    }
    assert texts == {
        "Use case": "Text-to-Image",
        "Phase 1: Precision": "1 of 1",
        "Phase 2: Quantization": "0 of 2",
        "Phase 3: Compilation": "1 of 2",
        "Phase 3: Combined": "0 of 1",
        "All": "2 of 6",
    }
    assert by_heading(table, "Image-to-Image")["Phase 3: Compilation"].text == "–", "the matrix holds none"
    assert by_heading(table, "All")["All"].sort == 2.0


def test_a_row_that_was_tried_and_has_no_numbers_is_told_by_its_latest_status(tmp_path: Path) -> None:
    write_attempt(tmp_path, fake_result(NF4, code=Code.CRASHED))
    write_attempt(tmp_path, fake_result(NF4, code=Code.OOM, minutes=30))
    write_attempt(tmp_path, fake_result(INT8, code=Code.UNAVAILABLE))
    write_attempt(tmp_path, fake_result(REFERENCE, code=Code.CRASHED, minutes=9))
    measured(tmp_path, REFERENCE)
    line = by_heading(covered(tmp_path), "Text-to-Image")
    assert (line["Phase 2: Quantization"].sort, line["Phase 2: Quantization"].note) == (
        0.0,
        "1 oom, 1 unavailable",
    )
    assert line["Phase 1: Precision"].note == "", "measured since"


def test_rows_of_other_weights_tiers_and_hardware_do_not_count(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    others = (
        row(8, cache="teacache-0.4"),  # refused on random weights
        row(9, control="depth", tier="extended"),
        row(10, hardware="a100x1"),
        row(11, model="tiny", size=128),
    )
    assert covered(tmp_path, (*ROWS, *others)) == covered(tmp_path)
    of = rendered(tmp_path, (*ROWS, *others))
    assert coverage.untouched(of) == [("1 × A100", 1)]


def test_another_workload_has_a_line_of_its_own_even_where_nothing_of_it_was_run(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    table = covered(tmp_path, (*ROWS, row(8, size=2048)))
    assert by_heading(table, "Text-to-Image, 2048×2048, 28 steps")["All"].sort == 0.0


def test_every_row_of_the_matrix_has_a_layer_within_its_phase() -> None:
    layers = {layer_of(each) for each in MATRIX}
    assert (4, "parallel") in layers
    assert {phase for phase, layer in layers if layer == "precision"} == {1}
    assert {phase for phase, layer in layers if layer == "quantization"} == {2}


def test_the_command_of_a_coverage_plans_what_is_missing(tmp_path: Path, own_leases: None) -> None:
    present = next(each for each in MATRIX if each.identity == fake_row().identity)
    measured(tmp_path, present)
    of = rendered(tmp_path, tuple(MATRIX))
    (found,) = coverage.coverages(of.pages[0], of.rows)
    _, *arguments = shlex.split(found.command)
    more = ("--dry-run", "--on", "h100x1", "--executor", "local", "--matrix", str(REPOSITORY / "matrix.csv"))
    done = CliRunner().invoke(main, [*arguments, *more, "--results", str(tmp_path)], catch_exceptions=False)
    planned = set(re.findall(r"^ +\d+\. row (\d+) ", done.output, re.MULTILINE))
    assert planned == {each.row for each in found.rows}, done.output[:2000]


# --- The best option of each axis alone ----------------------------------------------------------------


def test_of_each_axis_the_fastest_option_alone_is_named_with_what_it_costs(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    measured(tmp_path, INDUCTOR, 3.9)
    measured(tmp_path, GRAPHS, 3.5)
    measured(tmp_path, BOTH, 2.0)
    line = by_heading(best_alone(tmp_path), "Text-to-Image")
    assert line["Compilation"].text == "inductor-graphs"
    assert re.fullmatch(
        r"1\.50× FASTER over bf16; row 3; 37\.5 GB against 37\.5; 2 of 2 compared", line["Compilation"].note
    )
    assert (line["Quantization"].text, line["Quantization"].note) == ("–", "0 of 2 compared")


def test_an_option_alone_names_the_stack_that_it_was_faster_than_which_of_a_precision_is_fp32(
    tmp_path: Path,
) -> None:
    rows = (row(1, precision="fp32"), row(2, precision="bf16"))
    for each, seconds in zip(rows, (9.0, 5.0), strict=True):
        measured(tmp_path, each, seconds)
    entry = by_heading(best_alone(tmp_path, rows), "Text-to-Image")["Precision"]
    assert entry.text == "bf16"
    assert entry.note.startswith("1.80× FASTER over fp32; row 2; ")


def test_a_cache_that_follows_a_schedule_is_no_option_alone(tmp_path: Path) -> None:
    replay = row(8, cache="replay-65")
    for each, seconds in ((REFERENCE, 5.25), (INDUCTOR, 3.9), (replay, 1.7)):
        measured(tmp_path, each, seconds)
    assert "Cache" not in by_heading(best_alone(tmp_path, (*ROWS, replay)), "Text-to-Image")


def test_an_option_that_is_slower_is_no_answer(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    measured(tmp_path, NF4, 6.1)
    entry = by_heading(best_alone(tmp_path), "Text-to-Image")["Quantization"]
    assert entry.text == "none faster"
    assert entry.note.startswith("bnb-nf4; 0.86× SLOWER over bf16; row 4; ")


def test_what_is_certain_on_one_machine_goes_before_more_on_another(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    measured(tmp_path, INDUCTOR, 3.9)
    for each, seconds in ((REFERENCE, 5.25), (GRAPHS, 3.5)):  # one process a side: no interval
        write_attempt(tmp_path, fake_result(each, median_seconds=seconds, host=1, shapes=[(1, 1)]))
    assert by_heading(best_alone(tmp_path), "Text-to-Image")["Compilation"].text == "inductor"


def test_a_machine_with_an_interval_speaks_for_an_option_before_one_where_it_did_better(
    tmp_path: Path,
) -> None:
    measured(tmp_path, REFERENCE)
    measured(tmp_path, NF4, 6.1)
    for each, seconds in ((REFERENCE, 5.25), (NF4, 5.2)):  # one process a side: no interval
        write_attempt(tmp_path, fake_result(each, median_seconds=seconds, host=1, shapes=[(1, 1)]))
    entry = by_heading(best_alone(tmp_path), "Text-to-Image")["Quantization"]
    assert (entry.text, entry.note.split(";")[1]) == ("none faster", " 0.86× SLOWER over bf16")


def test_a_row_whose_median_is_not_supported_is_not_compared(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    measured(tmp_path, INDUCTOR, 3.9)
    write_attempt(tmp_path, fake_result(NF4, cells=[fake_cell(1, 1, n=3, median_seconds=1.0)]))
    assert by_heading(best_alone(tmp_path), "Text-to-Image")["Quantization"].note == "0 of 2 compared"


def test_where_nothing_was_compared_there_is_no_table(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE)
    assert best_alone(tmp_path).lines == ()
    measured(tmp_path, INDUCTOR, 3.9)
    assert best_alone(tmp_path, rows=()).lines == (), "without a matrix nobody knows how many there are"


def test_page_and_index_show_coverage_and_without_a_matrix_the_command_says_so(
    tmp_path: Path, monkeypatch: Any
) -> None:
    results = tmp_path / "results"
    measured(results, fake_row(row="39"))
    monkeypatch.chdir(tmp_path)
    without = CliRunner().invoke(main, ["report", str(results)], catch_exceptions=False)
    assert "matrix.csv is not here" in without.output
    page = results / "analysis" / "h100x1.html"
    assert "coverage" not in page.read_text().lower()
    monkeypatch.chdir(REPOSITORY)
    done = CliRunner().invoke(main, ["report", str(results)], catch_exceptions=False)
    assert "not here" not in done.output
    assert 'id="coverage"' in page.read_text()
    assert 'href="h100x1.html#coverage"' in (page.parent / "index.html").read_text()
    assert "## Core rows with numbers: 1 × H100" in (page.parent / "summaries" / "README.md").read_text()
