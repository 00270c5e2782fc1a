"""The answer for one hardware that several machines measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench.cli import main
from bench.matrix import Row
from bench.report import overall
from bench.report.html import navigation
from bench.report.load import load
from bench.report.overall import World
from bench.report.page import report

REFERENCE = fake_row(row="2")
COMPILED = REFERENCE.model_copy(update={"row": "4", "compilation": "inductor"})
QUANTISED = COMPILED.model_copy(update={"row": "5", "quantization": "scaledmm-fp8-row"})


def measured(results: Path, row: Row, seconds: float, host: int) -> None:
    for minutes in (0, 30):  # two processes: how far equal ones differ is known
        write_attempt(results, fake_result(row, median_seconds=seconds, host=host, minutes=minutes))


def world_of(results: Path) -> World:
    (page,) = report(load(results)).pages
    (world,) = overall.worlds(page.sections)
    return world


def answers(results: Path) -> list[tuple[str, str]]:
    """(quality floor, row)"""
    return [(best.floor, best.answer.winner.row.row) for best in world_of(results).bests]


def test_the_fastest_of_all_stands_beside_the_fastest_lossless_one(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE, 5.2, host=0)
    measured(tmp_path, COMPILED, 3.9, host=0)
    measured(tmp_path, QUANTISED, 2.9, host=0)
    assert answers(tmp_path) == [("lossless", "4"), ("any", "5")]


def test_a_lossless_stack_that_is_the_fastest_of_all_stands_once(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE, 5.2, host=0)
    measured(tmp_path, COMPILED, 3.9, host=0)
    measured(tmp_path, QUANTISED, 4.5, host=0)
    assert answers(tmp_path) == [("lossless", "4")]


def test_a_certain_gain_on_one_machine_goes_before_fewer_seconds_on_another(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE, 5.2, host=0)
    measured(tmp_path, COMPILED, 3.9, host=0)
    measured(tmp_path, QUANTISED, 3.8, host=1)
    assert answers(tmp_path) == [("lossless", "4")], "nothing says what the other gained over its machine"


def test_the_larger_gain_decides_between_machines_and_not_the_fewer_seconds(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE, 5.2, host=0)
    measured(tmp_path, COMPILED, 3.9, host=0)
    measured(tmp_path, REFERENCE, 4.4, host=1)
    measured(tmp_path, QUANTISED, 3.7, host=1)
    assert answers(tmp_path) == [("lossless", "4")]
    (line,) = overall.table(world_of(tmp_path)).lines
    assert line.entries[-2].text == "GPU-00000000", "the machine that says so"


def test_of_machines_that_found_one_stack_the_one_with_more_requests_speaks_for_it_not_the_luckier(
    tmp_path: Path,
) -> None:
    for host, seconds, requests in ((0, 3.9, 8), (1, 4.1, 20)):
        for minutes in (0, 30):
            of_host = {"host": host, "minutes": minutes, "n": requests}
            write_attempt(tmp_path, fake_result(REFERENCE, median_seconds=5.2, **of_host))
            write_attempt(tmp_path, fake_result(COMPILED, median_seconds=seconds, **of_host))
    (best,) = world_of(tmp_path).bests
    assert best.view.section.devices == "GPU-00000001"
    assert best.answer.cell.latency.p50.value == pytest.approx(4.1, rel=0.01)


def test_a_machine_that_saw_the_winner_of_a_better_measured_one_lose_is_not_the_answer(
    tmp_path: Path,
) -> None:
    """Eight lucky requests of one stack alone do not outweigh forty that held both against each other."""
    cudnn = COMPILED.model_copy(update={"row": "6", "attention": "cudnn"})
    both = ((REFERENCE, 5.2), (COMPILED, 3.0), (cudnn, 2.8))
    for host, requests, stacks in ((0, 40, both), (1, 8, ((REFERENCE, 5.2), (COMPILED, 2.6)))):
        for minutes in (0, 30):
            for row, seconds in stacks:
                of_host = {"host": host, "minutes": minutes, "n": requests}
                write_attempt(tmp_path, fake_result(row, median_seconds=seconds, **of_host))
    (best,) = world_of(tmp_path).bests
    assert (best.answer.winner.row.row, best.view.section.devices) == ("6", "GPU-00000000")


def test_without_a_certain_gain_the_machine_that_compared_more_stacks_decides(tmp_path: Path) -> None:
    write_attempt(tmp_path, fake_result(REFERENCE, median_seconds=5.2, host=0))
    write_attempt(tmp_path, fake_result(COMPILED, median_seconds=3.9, host=0))
    write_attempt(tmp_path, fake_result(COMPILED, median_seconds=3.5, host=1, n=72))
    (best,) = world_of(tmp_path).bests
    assert best.view.section.devices == "GPU-00000000"
    assert best.answer.gain is not None, "one process a side: 1.33 times, without an interval"


def test_of_machines_with_one_stack_each_the_one_with_more_requests_decides_and_then_the_newest(
    tmp_path: Path,
) -> None:
    write_attempt(tmp_path, fake_result(REFERENCE, median_seconds=5.4, host=0, n=40))
    write_attempt(tmp_path, fake_result(REFERENCE, median_seconds=5.2, host=1, n=20))
    write_attempt(tmp_path, fake_result(REFERENCE, median_seconds=5.3, host=2, n=40, minutes=60))
    (best,) = world_of(tmp_path).bests
    assert best.view.section.devices == "GPU-00000002"


def test_an_answer_says_what_it_was_compared_with(tmp_path: Path) -> None:
    measured(tmp_path, REFERENCE, 5.2, host=0)
    (alone,) = world_of(tmp_path).bests
    assert alone.answer.compared == "the only stack that may win here"
    assert alone.answer.beside_the_reference == "the reference itself"
    measured(tmp_path, REFERENCE.model_copy(update={"row": "7", "cache": "replay-65"}), 2.0, host=0)
    measured(tmp_path, QUANTISED, 6.0, host=0)
    best = world_of(tmp_path).bests[-1]
    assert best.answer.compared == "the only stack that may win here; 1 replay with a schedule of skipped" + (
        " steps may not win"
    )
    measured(tmp_path, COMPILED, 3.9, host=0)
    (best,) = world_of(tmp_path).bests
    assert best.answer.compared.startswith("fastest of 2 stacks here; 1 replay")


def test_a_promised_quality_is_called_promised_and_another_not_measured(tmp_path: Path) -> None:
    for row, seconds in ((REFERENCE, 5.2), (COMPILED, 3.9), (QUANTISED, 2.9)):
        measured(tmp_path, row, seconds, host=0)
    promised, unknown = world_of(tmp_path).bests
    assert promised.answer.quality == "lossless, promised by its options"
    assert unknown.answer.quality == "not measured"


def judged(results: Path, row: Row, seconds: float, noise: float) -> None:
    for minutes in (0, 30):
        result = fake_result(row, median_seconds=seconds, minutes=minutes, shapes=[(1, 1)])
        write_attempt(results, result, images=True, noise=noise)


def test_a_floor_between_lossless_and_any_stands_where_it_has_an_answer_of_its_own(tmp_path: Path) -> None:
    tiny = [
        fake_row(row=str(number + 2), hardware="cpu", quantization=option)
        for number, option in enumerate(("none", "quanto-int8", "bnb-nf4", "quanto-int4"))
    ]
    reference, lossless, near, lossy = tiny
    judged(tmp_path, reference, 5.2, 0.0)
    judged(tmp_path, near, 3.0, 0.08)
    judged(tmp_path, lossless, 4.0, 0.001)
    assert CliRunner().invoke(main, ["quality", str(tmp_path)]).exit_code == 0
    assert answers(tmp_path) == [("lossless", lossless.row), ("near", near.row)]
    judged(tmp_path, lossy, 2.0, 0.9)
    assert CliRunner().invoke(main, ["quality", str(tmp_path)]).exit_code == 0
    assert answers(tmp_path) == [("lossless", lossless.row), ("near", near.row), ("any", lossy.row)]


def test_a_use_case_without_an_answer_keeps_its_line(tmp_path: Path) -> None:
    write_attempt(tmp_path, fake_result(REFERENCE, n=3, shapes=[(1, 1)]))
    (line,) = overall.table(world_of(tmp_path)).lines
    assert [entry.text for entry in line.entries][:3] == [
        "Text-to-Image",
        "any",
        "no stack with a supported median yet",
    ]


def test_machines_with_an_answer_come_first_and_worlds_with_most_rows(tmp_path: Path) -> None:
    for number, row in enumerate((COMPILED, QUANTISED)):
        measured(tmp_path, row.model_copy(update={"steps": 50, "row": str(number + 20)}), 9.0, host=0)
    measured(tmp_path, REFERENCE, 5.2, host=0)
    measured(tmp_path, REFERENCE, 5.3, host=1)
    measured(tmp_path, COMPILED, 3.9, host=1)
    (page,) = report(load(tmp_path)).pages
    many, few = overall.worlds(page.sections)
    assert [view.section.devices for view in many.machines] == ["GPU-00000001", "GPU-00000000"]
    assert many.told_of(many.machines[0]) == "2 rows, 2026-11-22; fastest for Text-to-Image"
    assert many.told_of(many.machines[1]) == "1 row, 2026-11-22"
    assert [label for _, label in navigation(page)] == ["28 steps", "50 steps"]
    assert few.facts[-2:] == ("50 steps", "synthetic weights")


@pytest.mark.parametrize(("hardware", "gpus"), [("h100x1", 1), ("h200x2", 2)])
def test_an_answer_says_what_1000_images_take_of_all_its_gpus(
    tmp_path: Path, hardware: str, gpus: int
) -> None:
    parallel = "ulysses2" if gpus == 2 else "none"
    made = fake_result(fake_row(row="7", hardware=hardware, parallel=parallel), shapes=[(1, 1)])
    images_per_s, joules = made.cells[0].throughput_images_per_s, made.cells[0].power.energy_per_image_j
    assert images_per_s
    assert joules
    write_attempt(tmp_path, made)
    world = world_of(tmp_path)
    hours = f"{gpus * 1000 / images_per_s / 3600:.2f}"
    (best,) = world.bests
    assert best.answer.cost == f"1000 images: {hours}\u00a0GPU-hours, {joules / 3600:.3f}\u00a0kWh"
    table = overall.table(world)
    column = [each.title for each in table.columns].index("GPU-hours per 1000 images")
    assert [line.entries[column].text for line in table.lines] == [hours]


def test_without_a_gpu_nothing_costs_gpu_hours(tmp_path: Path) -> None:
    write_attempt(tmp_path, fake_result(fake_row(row="7", hardware="cpu"), shapes=[(1, 1)]))
    (best,) = world_of(tmp_path).bests
    assert best.answer.cost == ""
