"""`fluxbench check` accepts what the bench writes and finds what a hand changed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_attempts import fake_tree, write_attempt
from fakes import fake_cell, fake_result, fake_row

from bench import check, judging, record, stats
from bench.cli import main
from bench.matrix import Row
from bench.matrix_file import dump

ROW = fake_row(row="2", compilation="inductor", parent="1")
ROWS = [fake_row(row="1"), ROW, fake_row(row="3", hardware="cpu"), fake_row(row="4", hardware="h100x8")]
Json = dict[str, Any]


def faults(results: Path, rows: list[Row] = ROWS) -> list[str]:
    return list(check.check(results, rows))


@pytest.fixture(scope="module")
def sound() -> record.Result:
    return fake_result(ROW, n=16)


@pytest.fixture
def folder(tmp_path: Path, sound: record.Result) -> Path:
    return write_attempt(tmp_path, sound)


def edited(folder: Path, edit: Callable[[Json], None]) -> list[str]:
    """Faults after ``edit`` of result.json, as a hand would: the file alone, nothing beside it."""
    path = folder / "result.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return faults(folder.parents[4])


def test_a_tree_as_the_bench_writes_it_has_no_fault(tmp_path: Path) -> None:
    fake_tree(tmp_path, ROWS, attempts=2, n=13 * 4)
    write_attempt(tmp_path, fake_result(ROW, code=record.Code.OOM, reason="63 GiB of weights", minutes=99))
    write_attempt(tmp_path, fake_result(ROW, code=record.Code.UNSTABLE, n=8, minutes=999))
    cells = [fake_cell(1, 1, n=8), fake_cell(1, 4, code=record.Code.OOM, reason="no room")]
    write_attempt(tmp_path, fake_result(ROW, cells=cells, minutes=9999))
    assert faults(tmp_path) == []


def test_quality_as_the_bench_writes_it_has_no_fault_until_a_hand_changes_it(tmp_path: Path) -> None:
    rows = [
        fake_row(row=str(i + 1), hardware="cpu", compilation=c) for i, c in enumerate(("none", "inductor"))
    ]
    for number, row in enumerate(rows):
        result = fake_result(row, shapes=[(1, 1)], n=6, minutes=number)
        written = write_attempt(tmp_path, result, images=True, noise=0.01 * number)
    assert judging.run(tmp_path, False, [], lambda _: None) == 0
    assert faults(tmp_path, rows) == []
    path = written / "quality.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"ssim": 1.0}))
    assert [f for f in faults(tmp_path, rows) if f.startswith(f"{path}: ssim: 1.0")]
    path.write_text(json.dumps(data | {"beauty": 1.0}))
    assert faults(tmp_path, rows) == [f"{path}: beauty: Extra inputs are not permitted"]


def cell(data: Json, users: int = 1, images: int = 1) -> Json:
    found: Json = next(c for c in data["cells"] if (c["users"], c["images"]) == (users, images))
    return found


def faster(data: Json) -> None:
    """The whole distribution made anew from better values, n and all: only its neighbours can tell."""
    target = cell(data)
    raw = [value * 0.9 for value in target["latency"]["raw"]]
    target["latency"] = stats.summarise(raw).model_dump(mode="json")


def halved_stages(data: Json) -> None:
    stages = cell(data)["stages"]
    for name, stage in stages.items():
        stages[name] = stats.summarise([value / 2 for value in stage["raw"]]).model_dump(mode="json")


def longer(target: Json, factor: float = 1.2) -> None:
    target["window_seconds"] *= factor
    target["throughput_images_per_s"] /= factor


EDITS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "a median": (lambda d: cell(d)["latency"]["p50"].update(value=3.0), "latency.p50.value: 3.0, but raw"),
    "a mean": (lambda d: cell(d)["service"].update(mean=3.0), "service.mean: 3.0, but raw"),
    "an interval": (lambda d: cell(d)["latency"]["p50"].update(ci95=[5.2, 5.3]), "latency.p50.ci95"),
    "an interval of several users": (
        lambda d: cell(d, 4, 1)["latency"]["p50"].update(ci95=[5.2, 5.3]),
        "cells[4x1].latency.p50.ci95",
    ),
    "support": (lambda d: cell(d)["latency"]["p99"].update(supported=True), "latency.p99.supported: True"),
    "one raw value": (lambda d: cell(d)["latency"]["raw"].__setitem__(3, 1.0), "cells[1x1].latency.raw[3]"),
    "every latency": (faster, "is not a wait of"),
    "n": (lambda d: cell(d).update(n=36), "latency.raw: 16 values, but n is 36"),
    "a stage": (lambda d: cell(d)["stages"]["denoise"].update(max=9.9), "stages.denoise.max: 9.9"),
    "throughput": (lambda d: cell(d).update(throughput_images_per_s=0.9), "throughput_images_per_s"),
    "the window": (lambda d: cell(d, 4, 1).update(window_seconds=1.0), "window_seconds: 1.0, but serving"),
    "batch efficiency": (lambda d: cell(d, 1, 4).update(batch_efficiency=1.5), "batch_efficiency: 1.5, but"),
    "a percentage": (
        lambda d: cell(d)["utilisation"].update(gpu_busy_peak_percent=130.0),
        "utilisation.gpu_busy_peak_percent: 130.0 is not in the range 0 to 100",
    ),
    "an average above its peak": (
        lambda d: cell(d)["memory"].update(used_avg_gb=80.0),
        "memory.used_avg_gb: 80.0 is above its peak",
    ),
    "negative energy": (
        lambda d: cell(d)["power"].update(energy_per_image_j=-1.0),
        "power.energy_per_image_j: -1.0",
    ),
    "NaN": (
        lambda d: cell(d).update(window_seconds=float("nan")),
        "window_seconds: Input should be a finite",
    ),
    "ranks that disagree": (
        lambda d: d.update(agreement={"steps": 4, "latent_relative_error": 0.5, "tolerance": 0.04}),
        "agreement: latents are 0.5 apart, over 0.04",
    ),
    "what is no record": (lambda d: d.update(communication=[]), "communication: Input should be"),
    "an unknown field": (lambda d: d.update(note="looks fine"), "note: Extra inputs are not permitted"),
    "a missing field": (lambda d: d.pop("fingerprint"), "fingerprint: Field required"),
    "a cell twice": (lambda d: d["cells"].append(d["cells"][0]), "cells: one stands twice"),
    "a status better than its cells": (
        lambda d: cell(d)["status"].update(code="unstable", reason="drift"),
        "status.code: ok, but a cell is unstable",
    ),
    "a failure that kept its numbers": (
        lambda d: cell(d)["status"].update(code="oom", reason="no room"),
        "latency: there although the status is oom",
    ),
    "a status without a reason": (lambda d: d["status"].update(code="suspect"), "status.reason: empty"),
    "missing evidence": (
        lambda d: d["effective"].pop("compilation"),
        "effective.compilation: no evidence of",
    ),
    "emptied evidence": (lambda d: d["effective"].update(cache={}), "effective.cache: no evidence of none"),
    "an option": (
        lambda d: d["row"].update(attention="flash3"),
        "row.attention: flash3, but the matrix says sdpa",
    ),
    "another row's id": (lambda d: d["row"].update(row="1"), "belong in"),
    "an id of no row": (lambda d: d["row"].update(row="77"), "row.row: 77 is not in the matrix"),
    "a row that is none": (lambda d: d["row"].update(task="txt2video"), "row.task: Input should be"),
    "weights": (lambda d: d["weights"].update(source="hub"), "ingredients.weights: synthetic, but"),
    "the fingerprint": (lambda d: d.update(fingerprint="0" * 64), "fingerprint: row and ingredients"),
    "the code's hash": (lambda d: d["ingredients"].update(code="1" * 64), "fingerprint: row and ingredients"),
    "the host": (lambda d: d["environment"].update(host_id="GPU-mine"), "environment.host_id: GPU-mine"),
    "the cost": (lambda d: d["cost"].update(bookkeeping_seconds=1.0), "cost.wall_seconds"),
    "energy": (
        lambda d: cell(d)["power"].update(energy_per_image_j=100.0),
        "cell 1x1: power.energy_per_image_j: 100.0, but the samples of its window give",
    ),
    "memory": (
        lambda d: cell(d)["memory"].update(used_peak_gb=37.0),
        "memory.used_peak_gb: 37.0, but",
    ),
    "how busy": (
        lambda d: cell(d)["utilisation"].update(gpu_busy_avg_percent=50.0),
        "utilisation.gpu_busy_avg_percent: 50.0, but the samples of its window give",
    ),
    "the first request": (lambda d: d.update(first_request_seconds=0.01), "first_request_seconds is 0.01"),
    "drift": (
        lambda d: d["stability"].update(drift_percent=0.0),
        "stability.drift_percent: 0.0, but",
    ),
    "every stage": (halved_stages, "cell 1x1: its stages.denoise is not that of the result"),
    "window and throughput": (lambda d: longer(cell(d)), "cell 1x1: took"),
    "a package": (
        lambda d: d["environment"]["packages"].update(torch="9.9"),
        "environment.packages.torch: 9.9, but ingredients.versions has 2.11.0",
    ),
    "the GPU": (
        lambda d: d["environment"]["gpus"][0].update(name="NVIDIA A100-SXM4-80GB"),
        "environment.gpus: NVIDIA A100-SXM4-80GB, but the row is for h100x1",
    ),
    "the GPU's variant": (
        lambda d: d["environment"]["gpus"][0].update(variant="PCIe"),
        "environment.gpus: the variant PCIe, but NVIDIA H100 80GB HBM3 is SXM",
    ),
    "a crash that nothing tells of": (
        lambda d: d["status"].update(code="crashed", reason="by hand"),
        "status.code: crashed, but all cells have numbers",
    ),
    "the time": (lambda d: d.update(started_at="yesterday"), "started_at: 'yesterday' is not a time in UTC"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_by_hand_is_found_and_named(folder: Path, what: str) -> None:
    edit, expected = EDITS[what]
    found = edited(folder, edit)
    assert [fault for fault in found if expected in fault], found
    assert all(fault.startswith(str(folder)) for fault in found)


def test_figures_made_anew_from_invented_values_still_disagree_with_the_requests(folder: Path) -> None:
    """Latency, service and window all scaled alike, so result.json agrees with itself."""

    def invent(data: Json) -> None:
        target = cell(data)
        for name in ("latency", "service"):
            raw = [value * 0.9 for value in target[name]["raw"]]
            target[name] = stats.summarise(raw).model_dump(mode="json")
        cell(data, 1, 4)["batch_efficiency"] *= 0.9

    found = edited(folder, invent)
    assert found == [
        f"{folder / 'requests.jsonl'}: cell 1x1: its {of} is not that of the result"
        for of in ("latency", "service")
    ]


@pytest.mark.parametrize("name", ["requests.jsonl", "events.jsonl", "telemetry.csv.gz"])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert [fault for fault in faults(folder.parents[4]) if fault.startswith(f"{path}: ")]
    path.unlink()
    assert [fault for fault in faults(folder.parents[4]) if fault.startswith(f"{path}: missing")]


def test_a_result_of_another_version_is_called_that_and_not_picked_to_pieces(folder: Path) -> None:
    path = folder / "result.json"
    newer = {**json.loads(path.read_text()), "schema_version": 2, "colour": "blue"}
    path.write_text(json.dumps(newer))
    assert [fault for fault in faults(folder.parents[4]) if fault.startswith(f"{path}: ")] == [
        f"{path}: schema_version: 2, of another version of fluxbench; this one reads 1"
    ]


def test_telemetry_out_of_range_is_found(folder: Path) -> None:
    path = folder / "telemetry.csv.gz"
    header, first, *_ = gzip.decompress(path.read_bytes()).decode().splitlines()
    busy = header.split(",").index("gpu_busy_percent")
    fields = first.split(",")
    fields[busy] = "250"
    path.write_bytes(gzip.compress(f"{header}\n{','.join(fields)}\n".encode()))
    assert "gpu_busy_percent" in faults(folder.parents[4])[0]


def test_a_killed_attempt_may_end_in_half_a_line(tmp_path: Path) -> None:
    result = fake_result(ROW, cells=[fake_cell(1, 1, n=8)])
    status = record.Status(code=record.Code.INTERRUPTED, reason="killed")
    folder = write_attempt(tmp_path, result.model_copy(update={"status": status, "cost": None}))
    for name in ("requests.jsonl", "events.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"t": 17')
    assert faults(tmp_path) == []


def test_the_hosts_verdict_over_cells_that_were_not_reached_is_no_fault(tmp_path: Path) -> None:
    reached = fake_cell(1, 1, n=8)
    unreached = fake_cell(1, 4, code=record.Code.INTERRUPTED, reason="not reached")
    for minute, code in enumerate((record.Code.TIMEOUT, record.Code.CRASHED)):
        result = fake_result(ROW, cells=[reached, unreached], minutes=minute)
        status = record.Status(code=code, reason="the host says so")
        write_attempt(tmp_path, result.model_copy(update={"status": status, "cost": None}))
    assert faults(tmp_path) == []


def test_an_attempt_without_a_result_is_a_fault(folder: Path) -> None:
    (folder / "result.json").unlink()
    assert faults(folder.parents[4]) == [f"{folder / 'result.json'}: missing; every attempt ends in one"]


def test_a_moved_or_stray_result_is_a_fault(folder: Path) -> None:
    results = folder.parents[4]
    moved = folder.parents[1].with_name("row-0004")
    folder.parents[1].rename(moved)
    (results / "copy").mkdir()
    (results / "copy" / "result.json").write_text("{}")
    found = faults(results)
    assert [fault for fault in found if f"belong in {folder}" in fault]
    assert [fault for fault in found if "copy/result.json: stands nowhere in the tree" in fault]


def test_a_picture_of_the_wrong_size_or_cut_off_is_a_fault(tmp_path: Path) -> None:
    from PIL import Image

    row = ROWS[2]
    folder = write_attempt(tmp_path, fake_result(row, shapes=[(1, 1)], n=6), images=True)
    Image.new("RGB", (64, 64)).save(folder / "images" / "p0.png")
    cut = folder / "images" / "p1.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    (folder / "images" / "p2.png").unlink()
    assert faults(tmp_path) == [
        f"{folder / 'images'}: p0.png is not 128x128",
        f"{folder / 'images'}: p1.png is no whole PNG",
        f"{folder / 'images'}: p2 has either image or latents, not both",
    ]


def test_the_command_names_faults_and_exits_with_1(tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.csv"
    matrix.write_text(dump([ROWS[0]]))
    results = tmp_path / "results"
    folder = write_attempt(results, fake_result(ROWS[0], n=8))
    command = ["check", str(results), "--matrix", str(matrix)]
    fine = CliRunner().invoke(main, command)
    assert (fine.exit_code, fine.output) == (0, "1 attempt, no faults\n")
    (folder / "result.json").write_text("{")
    broken = CliRunner().invoke(main, command)
    assert broken.exit_code == 1
    assert f"{folder / 'result.json'}: the whole file: Invalid JSON" in broken.output
    assert "1 attempt, 1 fault\n" in broken.output


def test_a_file_stands_for_its_attempt(folder: Path) -> None:
    (folder / "requests.jsonl").write_text("broken\n")
    for name in ("result.json", "requests.jsonl", "log.txt"):
        assert faults(folder / name) == faults(folder.parents[4]) != []


@pytest.mark.parametrize("what", ["an empty folder", "a file of something else", "a weights folder by hand"])
def test_nothing_to_check_is_an_error_that_says_what_was_looked_for(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if "file" in what:
        path.write_text("{}")
    else:
        (path / "synthetic").mkdir(parents=True)
    said: list[str] = []
    assert check.run(path, ROWS, said.append) == 2
    assert "nothing to check" in said[0]
    assert "row-*/<weights>/<attempt>/result.json" in said[0]


def test_a_result_outside_every_tree_is_a_fault_also_when_it_is_named_itself(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("{}")
    said: list[str] = []
    assert check.run(path, ROWS, said.append) == 1
    assert "stands nowhere in the tree" in said[0]


def test_a_thousand_results_are_checked_in_seconds(tmp_path: Path) -> None:
    """On a tenth of them: what is repeated is the same work again."""
    import time

    rows = [fake_row(row=str(number + 1), steps=number + 1) for number in range(100)]
    fake_tree(tmp_path, rows, n=36)
    begun = time.process_time()
    assert faults(tmp_path, rows) == []
    assert time.process_time() - begun < 6
