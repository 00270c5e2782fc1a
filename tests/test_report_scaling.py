"""What several GPUs gain: against one of the same GPUs, and against replicas on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_attempts import write_attempt
from fakes import STEPS_SHARE, fake_cell, fake_result, fake_row

from bench import check, record
from bench.config import SINGLE
from bench.matrix import Row
from bench.report import markdown
from bench.report.charts import Figure, figures
from bench.report.load import load
from bench.report.page import CaseView, SectionView, report

ONE = fake_row(row="1", hardware="h200x1")
ONE_COMPILED = fake_row(row="2", hardware="h200x1", compilation="inductor")
ULYSSES = fake_row(row="11", hardware="h200x2", parallel="ulysses2", compilation="inductor")
ONE_QUANTISED = fake_row(row="14", hardware="h200x1", quantization="scaledmm-fp8-row", compilation="inductor")
REPLICAS = fake_row(row="12", hardware="h200x2", parallel="replicas", compilation="inductor")
EAGER = fake_row(row="13", hardware="h200x2", parallel="ulysses2")


def measured(
    results: Path, row: Row, seconds: float, images_per_s: dict[int, float] | None = None, **more: Any
) -> None:
    """``images_per_s`` by users, at one image."""
    cells = [fake_cell(1, 1, median_seconds=seconds)]
    for users, rate in (images_per_s or {}).items():
        cell = fake_cell(users, 1, median_seconds=0.9 / rate)
        window = {"window_seconds": (cell.n + users - 1) / rate, "throughput_images_per_s": rate}
        cells.append(cell.model_copy(update=window))
    kept = {name: more.pop(name, None) for name in ("communication", "agreement", "profile")}
    made = fake_result(row, cells=cells, **more).model_copy(update=kept)
    write_attempt(results, made)


def view_of(results: Path, hardware: str = "h200x2") -> tuple[SectionView, CaseView]:
    (page,) = (page for page in report(load(results)).pages if page.hardware == hardware)
    (view,) = page.sections
    (case,) = view.cases
    return view, case


def line_of(case: CaseView, stack: str) -> dict[str, str]:
    table = next(table for table in case.side if table.title.startswith("Scaling"))
    (line,) = (line for line in table.lines if line.entries[0].text == stack)
    return {column.title: entry.text for column, entry in zip(table.columns, line.entries, strict=True)}


def test_efficiency_is_of_the_same_stack_and_of_the_fastest_lossless_one_on_one_of_these_gpus(
    tmp_path: Path,
) -> None:
    measured(tmp_path, ONE, 5.0)
    measured(tmp_path, ONE_COMPILED, 3.8)
    measured(tmp_path, ONE_QUANTISED, 3.0)
    measured(tmp_path, EAGER, 4.0)
    _, case = view_of(tmp_path)
    line = line_of(case, "bf16 + ulysses2")
    assert float(line["Speed-up"].partition("×")[0]) == pytest.approx(5.0 / 4.0, abs=0.02)
    assert float(line["Efficiency (%)"]) == pytest.approx(100 * 5.0 / 8.0, abs=1)
    assert float(line["Efficiency over the fastest (%)"]) == pytest.approx(100 * 3.8 / 8.0, abs=1), (
        "none has pictures: compiling keeps the arithmetic, quantising does not"
    )


def test_a_speed_up_of_several_gpus_needs_two_processes_of_both_for_an_interval(tmp_path: Path) -> None:
    for minutes in (0, 30):
        measured(tmp_path, ONE, 5.0, seed=minutes, minutes=minutes)
        measured(tmp_path, ONE_COMPILED, 3.8, seed=minutes, minutes=minutes)
    measured(tmp_path, EAGER, 4.0)
    for minutes in (0, 30):
        measured(tmp_path, ULYSSES, 2.2, seed=minutes, minutes=minutes)
    _, case = view_of(tmp_path)
    once, twice = (
        scaled.gain
        for scaled in sorted(case.scaled, key=lambda each: each.measurement.row.compilation != "none")
    )
    assert line_of(case, "bf16 + ulysses2")["Speed-up"].endswith("AMBIGUOUS")
    assert once is not None
    assert once.ratio.missing == "one run a side; of several GPUs both sides need two", (
        "the reference ran twice"
    )
    assert case.gains.speedups[EAGER.row, SINGLE].ratio.missing == once.ratio.missing
    assert line_of(case, "bf16 + ulysses2 + inductor")["Speed-up"].endswith("FASTER")
    assert twice is not None
    low, high = twice.ratio.interval() or (0.0, 0.0)
    assert 1.6 < low < 3.8 / 2.2 < high < 1.9


def test_another_hosts_gpu_is_no_t1(tmp_path: Path) -> None:
    measured(tmp_path, ONE, 5.0, host=3)
    measured(tmp_path, EAGER, 4.0)
    _, case = view_of(tmp_path)
    line = line_of(case, "bf16 + ulysses2")
    assert line["Efficiency (%)"] == line["Efficiency over the fastest (%)"] == line["Speed-up"] == "–"


def test_throughput_stands_against_replicas_of_the_same_stack_at_the_same_users(tmp_path: Path) -> None:
    measured(tmp_path, ONE_COMPILED, 3.8)
    measured(tmp_path, REPLICAS, 3.8, {2: 0.52, 4: 0.53})
    measured(tmp_path, ULYSSES, 2.4, {2: 0.40, 4: 0.41})
    measured(tmp_path, EAGER, 4.0, {2: 0.25, 4: 0.25})
    _, case = view_of(tmp_path)
    shared, apart, eager = (
        line_of(case, stack)
        for stack in ("bf16 + ulysses2 + inductor", "bf16 + replicas + inductor", "bf16 + ulysses2")
    )
    assert shared["Over replicas"] == "0.77×"
    assert (shared["Images/s, users = N"], shared["Images/s, users = 2N"]) == ("0.400", "0.410")
    assert apart["Over replicas"] == "–"
    assert apart["Efficiency (%)"] == "–", "a replica takes as long as one GPU"
    assert eager["Over replicas"] == "–", "those replicas are compiled"


def test_communication_is_a_share_of_denoising_of_the_rank_that_waited_least(tmp_path: Path) -> None:
    sent = record.Communication(
        calls_per_step=228, sent_bytes_per_step=1_234_000_000, kernel_seconds_by_rank=[1.8, 0.3]
    )
    measured(tmp_path, ULYSSES, 2.4, communication=sent)
    _, case = view_of(tmp_path)
    line = line_of(case, "bf16 + ulysses2 + inductor")
    assert (line["Communication (%)"], line["Sent per step (MB)"]) == ("13", "1234")


def test_how_far_the_picture_of_several_is_from_that_of_one_stands_beside_their_speed(tmp_path: Path) -> None:
    painted = record.Agreement(steps=4, latent_relative_error=0.0042, tolerance=0.04)
    measured(tmp_path, ULYSSES, 2.4, agreement=painted)
    measured(tmp_path, EAGER, 4.0, agreement=painted.model_copy(update={"image_relative_error": 0.011}))
    measured(tmp_path, REPLICAS, 3.8)
    _, case = view_of(tmp_path)
    column = "Apart from one GPU"
    assert line_of(case, "bf16 + ulysses2 + inductor")[column] == "0.004"
    assert line_of(case, "bf16 + ulysses2")[column] == "0.004 / 0.01"
    assert line_of(case, "bf16 + replicas + inductor")[column] == "–"


def test_charts_show_both_and_one_gpu_has_neither(tmp_path: Path) -> None:
    measured(tmp_path, ONE, 5.0)
    measured(tmp_path, EAGER, 4.0, {2: 0.25, 4: 0.25})
    measured(tmp_path, REPLICAS, 3.8, {2: 0.52, 4: 0.53})
    view, case = view_of(tmp_path)
    drawn = _figures(view, case)
    assert {row["series"] for row in drawn["scaling"].data if "series" in row} == {
        "same stack on one GPU",
        "fastest lossless stack on one GPU",
    }
    told = {row["label"]: row["value"] for row in drawn["throughput"].data if "value" in row}
    assert told == {"bf16 + ulysses2": "0.250 / 0.250", "bf16 + replicas + inductor": "0.520 / 0.530"}
    assert drawn["scaling"].vega_lite()["datasets"]["rows"]
    alone, only = view_of(tmp_path, "h200x1")
    assert not {"scaling", "throughput"} & set(_figures(alone, only))
    assert not any(table.title.startswith("Scaling") for table in only.side)


def test_no_throughput_is_drawn_against_replicas_that_nobody_measured(tmp_path: Path) -> None:
    measured(tmp_path, EAGER, 4.0, {2: 0.25, 4: 0.25})
    assert "throughput" not in _figures(*view_of(tmp_path))


def test_the_chart_the_kernels_and_the_share_tell_one_communication(tmp_path: Path) -> None:
    """FSDP: rank 0 waited 3 s in its collectives, and those of the other ran beside its computing."""
    sent = record.Communication(
        calls_per_step=2, sent_bytes_per_step=10**9, kernel_seconds_by_rank=[4.97, 1.71]
    )
    spent = record.Profile(
        request_seconds=5.5,
        busy_seconds=3.8,
        launches=9000,
        seconds_by_kind={"gemm": 3.46, "communication": 4.97},
        top=[],
    )
    measured(tmp_path, ULYSSES, 3.92, communication=sent, profile=spent)
    view, case = view_of(tmp_path)
    rows = _figures(view, case)["kernels"].data
    assert {row["kind"]: row["seconds"] for row in rows if "kind" in row}["communication"] == 1.71
    table = next(table for table in case.side if table.title.startswith("Where the GPU's time goes"))
    kernels = dict(zip([column.title for column in table.columns], table.lines[0].entries, strict=True))
    assert kernels["Communication (s)"].sort == 1.71
    service = rows[0]["service"]
    share = float(line_of(case, "bf16 + ulysses2 + inductor")["Communication (%)"])
    assert share == pytest.approx(100 * 1.71 / (STEPS_SHARE * service), abs=1)
    over = sum(row["seconds"] for row in rows if "kind" in row) - service
    assert rows[0]["value"] == f"{over:.2f} s overlap · {service:.2f} s"


def test_each_gpu_has_a_line_and_so_have_all_together(tmp_path: Path) -> None:
    made = fake_result(EAGER, shapes=((1, 1),))
    assert made.environment is not None
    uuids = [gpu.uuid for gpu in made.environment.gpus]
    each = [record.GpuFigures(uuid=uuid, memory_used_peak_gb=30.0 + rank) for rank, uuid in enumerate(uuids)]
    cell = made.cells[0]
    cell.gpus = each
    cell.memory.together_peak_gb = 60.5
    assert not [fault for fault in check.result_faults(made) if "gpus" in fault]
    write_attempt(tmp_path, made)
    _, case = view_of(tmp_path)
    table = next(table for table in case.side if table.title.startswith("Each GPU"))
    peak = [column.title for column in table.columns].index("Memory peak (GB)")
    assert [(line.entries[3].text, line.entries[peak].text) for line in table.lines] == [
        ("rank 0, GPU-00000000", "30.0"),
        ("rank 1, GPU-00000000", "31.0"),
        ("together", "60.5"),
    ]
    cell.gpus = each[::-1]
    assert any("gpus: they are not" in fault for fault in check.result_faults(made))


def test_the_slowest_link_stands_beside_what_was_sent_over_it(tmp_path: Path) -> None:
    row = EAGER.model_copy(update={"hardware": "h200x4", "parallel": "ulysses4"})
    made = fake_result(row, shapes=((1, 1),))
    assert made.environment is not None
    made.environment.nccl = "2.28.9"
    made.environment.links = [
        record.Link(ranks=ranks, kind="NV18", gb_per_s=gb_per_s, least_gb_per_s=100.0)
        for ranks, gb_per_s in {(0, 1): 279.4, (0, 2): 247.0, (0, 3): 281.0}.items()
    ]
    write_attempt(tmp_path, made)
    _, case = view_of(tmp_path, "h200x4")
    assert line_of(case, "bf16 + ulysses4")["Link (GB/s)"] == "247"
    (page,) = report(load(tmp_path)).pages
    (hardware,) = (line for line in markdown.configurations(page, page.sections[0]) if "Hardware:" in line)
    assert hardware.endswith("diffusers 0.42.1, NCCL 2.28.9")


def _figures(view: SectionView, case: CaseView) -> dict[str, Figure]:
    """By the last word of their names."""
    found = figures(view.section, case.case, case.gains, case.scaled)
    return {figure.name.rsplit("-", 1)[1]: figure for figure in found}


def test_several_gpus_are_held_against_the_reference_on_one_of_them(tmp_path: Path) -> None:
    measured(tmp_path, ONE, 5.0)
    measured(tmp_path, EAGER, 4.0)
    measured(tmp_path, fake_row(row="15", hardware="h200x1", attention="cudnn"), 1.0)
    measured(tmp_path, ONE.model_copy(update={"row": "3", "task": "img2img"}), 9.0)
    view, case = view_of(tmp_path)
    assert case.answer is not None
    assert case.answer.gain is not None
    assert case.answer.gain.ratio.value == pytest.approx(5.0 / 4.0, abs=0.02)
    assert "the reference took 5.0" in case.answer.beside_the_reference
    assert "on one of these GPUs, GPU-00000000" in case.answer.beside_the_reference
    assert view.spread_note.startswith("Speed-ups are over the reference on one of these GPUs (GPU-00000000)")


def test_the_reference_of_another_machine_is_no_reference_of_several_gpus(tmp_path: Path) -> None:
    measured(tmp_path, ONE, 5.0, host=7)
    measured(tmp_path, EAGER, 4.0)
    view, case = view_of(tmp_path)
    assert case.answer is not None
    assert case.answer.gain is None
    assert case.answer.beside_the_reference == "the reference was not measured on one of these GPUs"
    assert view.spread_note == "The reference was not measured here, so there are no speed-ups."
