"""The answer for one hardware that several machines measured."""

from __future__ import annotations

from pathlib import Path

from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench.matrix import Row
from bench.report import overall
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
