"""The report, from a tree of results: what its tables may print, and what they must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_attempts import write_attempt
from fakes import fake_cell, fake_result, fake_row
from reports import COMPILED, REFERENCE, attempt, comparison, rendered, texts
from scipy.special import stdtrit

from bench import record
from bench.config import SINGLE
from bench.quality import Prompt, against, assemble, save
from bench.record import Code
from bench.report.answers import entries
from bench.report.chart_data import MOMENTS, latency_rows, life_rows
from bench.report.matrix_table import certainty
from bench.report.origin import Matrix, origin
from bench.report.text import number, ratio_bounds
from bench.verdicts import Verdict


def test_the_table_prints_the_numbers_of_the_json(tmp_path: Path) -> None:
    _, result = attempt(tmp_path, REFERENCE, n=368)
    cell = result.cells[0]
    assert cell.latency is not None
    line = texts(comparison(rendered(tmp_path)), "bf16")
    assert line["p25 (s)"] == f"{cell.latency.p25.value:#.3g}"
    assert line["p50 (s)"] == f"{cell.latency.p50.value:#.3g}"
    assert line["p90 (s)"] == f"{cell.latency.p90.value:#.3g}"
    assert line["p99 (s)"] == f"{cell.latency.p99.value:#.3g}"
    assert line["Memory Usage (GB)"] == f"{cell.memory.used_peak_gb:#.3g}"
    assert line["n"] == "368"


def test_a_percentile_that_n_cannot_support_is_never_printed_bare(tmp_path: Path) -> None:
    _, result = attempt(tmp_path, REFERENCE, n=20)
    latency = result.cells[0].latency
    assert latency is not None
    line = texts(comparison(rendered(tmp_path)), "bf16")
    assert line["p25 (s)"] == f"{latency.p25.value:#.3g}"
    assert line["p90 (s)"] == line["p99 (s)"] == f"n=20, max {latency.max:#.3g}"


def test_a_ratio_of_unsupported_medians_is_not_printed(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, n=36)
    attempt(tmp_path, fake_row(row="1", precision="fp32"), n=3, median_seconds=38.0, shapes=[(1, 1)])
    line = texts(comparison(rendered(tmp_path)), "fp32")
    assert line["p50 (s)"].startswith("n=3, max ")
    assert line["Speed-up"] == "–"


def test_what_is_missing_is_a_dash_and_never_zero(tmp_path: Path) -> None:
    attempt(tmp_path, fake_row(row="2", hardware="cpu"))
    line = texts(comparison(rendered(tmp_path)), "bf16")
    assert line["GPU Util (%)"] == "–"
    assert line["Quality"] == "reference"
    memory = rendered(tmp_path).pages[0].sections[0].cases[0].side[0]
    assert texts(memory, "bf16")["Power avg (W)"] == "–"


def test_attempts_of_one_fingerprint_are_pooled_and_others_are_not(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, n=36, seed=1)
    attempt(tmp_path, REFERENCE, n=36, seed=2, minutes=30)
    attempt(tmp_path, REFERENCE, n=36, seed=3, minutes=60, host=7)
    page = rendered(tmp_path).pages[0]
    counts = [
        next(cell.n for each in view.section.measurements for cell in each.cells.values())
        for view in page.sections
    ]
    assert sorted(counts) == [36, 72]


def test_the_runs_p50s_stand_beside_n_because_the_pooled_interval_does_not_know_them(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, shapes=[(1, 1)], n=36, seed=1, median_seconds=5.0)
    attempt(tmp_path, REFERENCE, shapes=[(1, 1)], n=36, seed=2, median_seconds=6.0, minutes=30)
    attempt(tmp_path, REFERENCE, shapes=[(1, 1)], n=3, seed=3, median_seconds=9.0, minutes=60)
    view = rendered(tmp_path).pages[0].sections[0].cases[0]
    (line,) = (line for line in view.comparison.lines if line.shape == "1x1")
    entry = line.entries[[column.title for column in view.comparison.columns].index("n")]
    low, high = (float(text) for text in entry.note.partition(", p50 ")[2].split(" to "))
    assert entry.text == "75"
    assert entry.note.startswith("3 runs, p50 ")
    assert (low, high) == (pytest.approx(5.0, rel=0.01), pytest.approx(6.0, rel=0.01))
    assert view.answer is not None
    assert entry in entries(view.case, view.answer)


def test_a_run_that_was_unstable_beside_stable_ones_is_said_to_be_left_out(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, n=8)
    attempt(tmp_path, REFERENCE, n=8, minutes=30, code=Code.UNSTABLE)
    table = comparison(rendered(tmp_path))
    place = [column.title for column in table.columns].index("n")
    (entry,) = {line.entries[place] for line in table.lines if line.shape == "1x1"}
    assert (entry.text, entry.note) == ("8", "1 unstable left out")


def test_the_worst_prompt_stands_beside_the_median_and_tiers_that_differ_are_counted(tmp_path: Path) -> None:
    folder, result = attempt(tmp_path, COMPILED)
    errors, decibels = (0.019, 0.023, 0.018, 0.035), (46.6, 44.5, 47.1, None)
    prompts = [
        Prompt(id=f"q{number:02}", latent_relative_error=error, psnr_db=psnr, ssim=0.99)
        for number, (error, psnr) in enumerate(zip(errors, decibels, strict=True))
    ]
    save(assemble(result, against(REFERENCE, result), prompts, [], None), folder)
    side = rendered(tmp_path).pages[0].sections[0].cases[0].side
    (table,) = (each for each in side if each.title.startswith("Quality"))
    (line,) = table.lines
    assert [(entry.text, entry.note) for entry in line.entries[1:6]] == [
        ("near", "lossless on 2, near on 2"),
        ("0.0190", "worst 0.0350"),
        ("46.6", "worst 44.5"),
        ("0.9900", "worst 0.9900"),
        ("4", ""),
    ]


def test_requests_of_several_users_are_counted_in_rounds_too(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, cells=[fake_cell(1, 1, n=8), fake_cell(4, 1, n=8)])
    table = comparison(rendered(tmp_path))
    place = [column.title for column in table.columns].index("n")
    assert {line.shape: line.entries[place].note for line in table.lines} == {"1x1": "", "4x1": "2 rounds"}


def test_a_first_request_of_four_images_is_not_taken_for_one_image(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, cells=[fake_cell(4, 4, n=8), fake_cell(1, 1, n=8)])
    attempt(tmp_path, COMPILED, cells=[fake_cell(1, 1, n=8), fake_cell(4, 4, n=8)])
    side = rendered(tmp_path).pages[0].sections[0].cases[0].side
    (table,) = (each for each in side if each.title.startswith("Warm-up, first and steady"))
    titles = [column.title for column in table.columns]
    for title in ("Warm-up time (s)", "First inference (s)"):
        notes = {line.entries[0].text: line.entries[titles.index(title)].note for line in table.lines}
        assert notes == {"bf16": "4 images", "bf16 + inductor": ""}


def test_compiling_cold_and_from_the_compile_cache_are_two_lines_and_the_chart_shows_the_cold_one(
    tmp_path: Path,
) -> None:
    times = (("cold", [24.0, 4.0]), ("warm", [7.0, 4.0]))
    for minutes, (state, seconds) in enumerate(times):
        folder, result = attempt(tmp_path, COMPILED, shapes=[(1, 1)], minutes=minutes)
        told = {"seconds": seconds, "compile_seconds": seconds[0] - 4, "compile_cache": state}
        assert result.warmup is not None
        warmup = result.warmup.model_copy(update=told)
        record.save(result.model_copy(update={"warmup": warmup}), folder)
        attempt(tmp_path, REFERENCE, shapes=[(1, 1)], minutes=minutes)
    case = rendered(tmp_path).pages[0].sections[0].cases[0]
    (table,) = (each for each in case.side if each.title.startswith("Warm-up, first and steady"))
    place = [column.title for column in table.columns].index("Compile (s)")
    lines = [
        (line.entries[0].text, line.entries[place].text, line.entries[place].note) for line in table.lines
    ]
    assert sorted(lines) == [
        ("bf16", "–", ""),
        ("bf16 + inductor", "20.0", "cold"),
        ("bf16 + inductor", "3.00", "warm"),
    ]
    compiled = [each for each in case.case.measurements if each.row == COMPILED]
    assert [row["x"] for row in life_rows(compiled) if row["series"] == MOMENTS[-1]] == [28.0]


def test_requests_that_came_at_a_rate_of_their_own_have_a_line_of_their_own(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, n=36)
    attempt(tmp_path, COMPILED, n=36, median_seconds=3.9)
    open_cell = fake_cell(1, 1, n=36, median_seconds=2.0).model_copy(update={"load": "poisson:0.6"})
    attempt(tmp_path, COMPILED, cells=[open_cell], minutes=30)
    table = comparison(rendered(tmp_path))
    lines = {
        line.entries[1].text: {c.title: e.text for c, e in zip(table.columns, line.entries, strict=True)}
        for line in table.lines
        if line.shape == "1x1" and line.entries[0].text == "bf16 + inductor"
    }
    assert set(lines) == {"1", "1 (Poisson 0.6/s)"}
    assert {line["n"] for line in lines.values()} == {"36"}
    assert lines["1"]["Speed-up"].startswith("1.3")
    assert lines["1 (Poisson 0.6/s)"]["Speed-up"] == "–"
    (page,) = rendered(tmp_path).pages
    places = [source.facts for each in page.measurements for source in origin(each, Matrix(())).sources]
    assert sum("1x1 poisson:0.6 n=36" in facts for facts in places) == 1


def test_a_row_measured_at_a_rate_of_its_own_only_has_no_numbers_to_compare(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, n=36)
    open_cell = fake_cell(1, 1, n=36, median_seconds=2.0).model_copy(update={"load": "poisson:0.6"})
    attempt(tmp_path, COMPILED, cells=[open_cell])
    line = texts(comparison(rendered(tmp_path)), "bf16 + inductor")
    assert (line["Concurrent Users"], line["n"], line["Speed-up"]) == ("1 (Poisson 0.6/s)", "36", "–")
    (page,) = rendered(tmp_path).pages
    assert page.sections[0].cases[0].answer is not None
    assert page.sections[0].cases[0].answer.is_reference


def test_an_unstable_side_gets_no_verdict_and_is_marked_wherever_its_numbers_stand(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, n=72, seed=1)
    attempt(tmp_path, REFERENCE, n=72, seed=2, minutes=30)
    attempt(tmp_path, COMPILED, n=72, median_seconds=3.9, code=Code.UNSTABLE)
    case = rendered(tmp_path).pages[0].sections[0].cases[0]
    for gain in (case.gains.speedups["4", (1, 1)], case.gains.layers[0].gain):
        assert gain.verdict is Verdict.AMBIGUOUS
        assert certainty(gain.ratio) == "no interval: the row is unstable"
    tables = [each for each in case.side if not each.title.startswith("Gains by layer")]
    assert len(tables) >= 4
    for table in tables:
        marked = {line.entries[0].text for line in table.lines if "unstable" in line.entries[0].tags}
        assert marked == {"bf16 + inductor"}, table.title
    (layers,) = (each for each in case.side if each not in tables)
    assert [entry.tags for entry in layers.lines[0].entries[2:4]] == [(), ("unstable",)]
    labels = {row["label"] for row in latency_rows(case.case.measurements, None)}
    assert labels == {"bf16 (reference)", "bf16 + inductor, unstable"}


def test_an_unstable_reference_makes_no_stack_faster(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, n=72, seed=1, code=Code.UNSTABLE)
    attempt(tmp_path, REFERENCE, n=72, seed=2, minutes=30, code=Code.UNSTABLE)
    attempt(tmp_path, COMPILED, n=72, median_seconds=3.9)
    case = rendered(tmp_path).pages[0].sections[0].cases[0]
    gain = case.gains.speedups["4", (1, 1)]
    assert (gain.verdict, gain.ratio.missing) == (Verdict.AMBIGUOUS, "the reference is unstable")
    assert case.answer is not None
    assert entries(case.case, case.answer)[5].tags == ("unstable",)


def test_an_option_without_evidence_has_no_latency_anywhere(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE)
    cells = [fake_cell(1, 1, median_seconds=1.234)]
    broken = fake_result(COMPILED, cells=cells).model_copy(
        update={"status": record.Status(code=Code.NOT_APPLIED, reason="no compiled graph")}
    )
    write_attempt(tmp_path, broken)
    line = texts(comparison(rendered(tmp_path)), "bf16 + inductor")
    assert line["Status"] == "not_applied"
    assert {line[title] for title in ("p50 (s)", "Avg (s)", "Speed-up", "Images/s")} == {"–"}
    (failure,) = rendered(tmp_path).pages[0].failures
    assert (failure.code, failure.reason) == (Code.NOT_APPLIED, "no compiled graph")


def test_speedups_compare_on_one_host_only(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, host=1)
    attempt(tmp_path, COMPILED, host=2, median_seconds=3.9)
    page = rendered(tmp_path).pages[0]
    assert len(page.sections) == 2
    lines = [texts(view.cases[0].comparison, "bf16 + inductor") for view in page.sections[1:]]
    assert [line["Speed-up"] for line in lines] == ["–"]


def test_a_speedup_names_its_verdict_and_interval(tmp_path: Path) -> None:
    for seed in (1, 2):
        attempt(tmp_path, REFERENCE, seed=seed, minutes=seed)
        attempt(tmp_path, COMPILED, seed=seed + 10, minutes=seed, median_seconds=3.9)
    table = comparison(rendered(tmp_path))
    assert texts(table, "bf16 + inductor")["Speed-up"] == "1.35× FASTER"
    line = next(line for line in table.lines if line.entries[0].text == "bf16 + inductor")
    assert any(entry.note.startswith("CI 1.3") for entry in line.entries)
    assert line.best


def test_rows_of_different_weights_share_no_table(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE, weights="synthetic")
    attempt(tmp_path, REFERENCE, weights="hub", minutes=9)
    page = rendered(tmp_path).pages[0]
    assert [view.section.weights for view in page.sections] == ["hub", "synthetic"]
    for view in page.sections:
        tables = [view.headline, *(case.comparison for case in view.cases), *view.cases[0].side]
        assert all(f"{view.section.weights} weights" in table.scope for table in tables)


def test_gains_are_attributed_to_the_change_from_the_parent(tmp_path: Path) -> None:
    both = fake_row(row="6", compilation="inductor", attention="cudnn", parent="4")
    alone = fake_row(row="5", attention="cudnn", parent="2")
    medians = ((REFERENCE, 5.25), (COMPILED, 3.9), (alone, 5.5), (both, 3.9))
    for seed in (1, 2):
        for row, median in medians:
            attempt(tmp_path, row, median_seconds=median, seed=seed, minutes=seed)
    layers = {
        each.measurement.row.row: each
        for each in rendered(tmp_path).pages[0].sections[0].cases[0].gains.layers
    }
    assert layers["4"].change == "compilation none → inductor"
    assert layers["4"].gain.ratio.value == pytest.approx(5.25 / 3.9, rel=0.01)
    crossed = layers["6"].interaction
    assert crossed is not None
    assert crossed.value == pytest.approx(5.5 / 5.25, rel=0.01)
    assert layers["6"].interacts
    (table,) = (
        each
        for each in rendered(tmp_path).pages[0].sections[0].cases[0].side
        if each.title.startswith("Gains by layer")
    )
    shown = {line.entries[0].text: line.entries[-1] for line in table.lines}["bf16 + cudnn + inductor"]
    assert shown.note == f"{certainty(crossed)}; not the product of its parts"
    assert shown.note.startswith("CI 1.0")


def test_the_headline_names_the_fastest_stack_beside_the_reference(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE)
    attempt(tmp_path, COMPILED, median_seconds=3.9)
    probed = fake_row(row="9", compilation="inductor", vae="tiled")
    attempt(tmp_path, probed, median_seconds=2.0, n=3, shapes=[(1, 1)])
    headline = rendered(tmp_path).pages[0].sections[0].headline
    line = texts(headline, "Text-to-Image")
    assert line["Fastest stack"] == "bf16 + inductor"
    assert line["Reference p50 (s)"] == "5.25"


def test_a_wait_of_microseconds_is_no_number_with_an_exponent() -> None:
    assert [number(value) for value in (2.39e-06, 0.0, 0.000123, 1234.5)] == [
        "<0.0001",
        "0",
        "0.000123",
        "1234",
    ]


def test_the_interval_of_a_ratio_shows_on_which_side_of_one_it_lies() -> None:
    assert ratio_bounds((0.9954, 1.0234)) == "0.995–1.023"


def test_cells_of_the_same_processes_are_no_further_evidence_of_how_far_references_lie_apart(
    tmp_path: Path,
) -> None:
    spreads = []
    for shapes in ([(1, 1)], [(1, 1), (4, 1), (1, 4)]):
        folder = tmp_path / str(len(shapes))
        for minutes, seconds in enumerate((5.0, 5.5)):
            attempt(folder, REFERENCE, shapes=shapes, n=36, minutes=minutes, median_seconds=seconds)
        spreads.append(rendered(folder).pages[0].sections[0].spread)
    assert spreads[0] is not None
    assert spreads[0] == spreads[1]


def test_the_spread_of_references_is_said_as_a_share_of_seconds(tmp_path: Path) -> None:
    for minutes, seconds in enumerate((5.0, 5.5)):
        attempt(tmp_path, REFERENCE, shapes=[(1, 1)], n=36, minutes=minutes, median_seconds=seconds)
    view = rendered(tmp_path).pages[0].sections[0]
    runs = view.section.measurements[0].cells[SINGLE].runs
    ratio = sorted(runs[1])[17] / sorted(runs[0])[17]
    of_two_processes = float(stdtrit(1, 0.975))
    share = 100 * (ratio**of_two_processes - 1)  # of seconds, not of their logarithms
    assert f"may be {share:.2f} % apart" in view.spread_note
