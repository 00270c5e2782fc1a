"""``fan-out`` and ``bench`` as they are typed: what does not fit, what is mistyped, what is only planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import fake_row

from bench import layout
from bench.cli import main as cli
from bench.config import CELLS
from bench.host.gpus import imagined
from bench.matrix import Row
from bench.matrix_file import dump

pytestmark = pytest.mark.usefixtures("own_leases")


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.csv"
    rows = [
        fake_row(row="1", hardware="h100x1", parent=None, why=""),
        fake_row(row="2", hardware="cpu", parent=None, why=""),
        fake_row(row="3", hardware="h100x1", parent="1", why="", quantization="gguf-q8_0"),
    ]
    path.write_text(dump(rows))
    return path


def test_bench_on_a_machine_without_the_hardware_says_what_is_missing_and_what_to_do(
    matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked = ["--weights", "synthetic", "--budget", "probe", "--processes", "2", "--cells", "1x1,4x1"]
    place = ["--results", "elsewhere", "--executor", "venv", "--registry", "here", "--matrix", str(matrix)]
    ran = CliRunner().invoke(cli, ["bench", "1", *asked, *place])
    assert ran.exit_code == 1
    assert "it wants 1 x h100, and this machine has no GPU" in ran.output
    rest = "BUDGET=probe PROCESSES=2 CELLS=1x1,4x1 RESULTS=elsewhere EXECUTOR=venv REGISTRY=here"
    assert f"`make bench ROW=1 WEIGHTS=synthetic {rest}`" in ran.output
    assert f"`make bench ROW=2 {rest}`" in ran.output


def test_a_campaign_brings_along_the_references_of_its_rows_and_their_images_and_a_row_alone_does_not(
    matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[list[str]] = []
    asked: list[list[str]] = []

    def get_images(_: object, rows: list[Row], *__: object) -> None:
        images.append([row.row for row in rows])

    def fan_out(rows: list[Row], *_: object, **named: Any) -> int:
        asked.append([row.row for row in rows])
        assert [row.row for row in named["matrix"]] == ["1", "2", "3"]
        return 0

    monkeypatch.setattr("bench.host.executors.get_images", get_images)
    monkeypatch.setattr("bench.host.command.fan_out", fan_out)
    monkeypatch.setattr("bench.host.command.here", lambda: imagined("h100", 1))
    for command in (["fan-out", "--where", "row=3"], ["fan-out", "--where", "hardware=cpu"], ["bench", "3"]):
        ran = CliRunner().invoke(cli, [*command, "--matrix", str(matrix), "--executor", "local"])
        assert ran.exit_code == 0, ran.output
    assert asked == [["3"], ["2"], ["3"]]
    assert images == [["3", "1"], ["2"], ["3"]]


def test_bench_of_an_unknown_row_names_the_file(matrix: Path) -> None:
    ran = CliRunner().invoke(cli, ["bench", "99", "--matrix", str(matrix)])
    assert ran.exit_code == 2
    assert "99" in ran.output
    assert str(matrix) in ran.output


def test_fan_out_of_rows_that_all_need_other_hardware_fails_and_runs_nothing(
    matrix: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = ["fan-out", "--where", "hardware=h100x1", "--matrix", str(matrix), "--results", str(results)]
    ran = CliRunner().invoke(cli, arguments)
    assert ran.exit_code == 1
    assert "do not fit this machine: rows 1, 3" in ran.output
    assert not list(results.rglob(layout.RESULT))


def test_a_fan_out_of_everything_is_planned_but_not_started(matrix: Path, results: Path) -> None:
    everything = ["fan-out", "--matrix", str(matrix), "--results", str(results), "--executor", "local"]
    refused = CliRunner().invoke(cli, everything)
    assert refused.exit_code == 2
    assert "nothing was run: say which rows" in refused.output
    assert not list(results.rglob(layout.RESULT))
    planned = CliRunner().invoke(cli, [*everything, "--dry-run"])
    assert planned.exit_code == 0
    assert "3 rows chosen" in planned.output


def test_weights_that_are_not_a_rows_are_refused_and_not_replaced(matrix: Path) -> None:
    ran = CliRunner().invoke(cli, ["bench", "2", "--matrix", str(matrix), "--weights", "synthetic"])
    assert ran.exit_code == 2
    assert "--weights: nothing was run: row 2" in ran.output
    assert "brings weights of its own" in ran.output


@pytest.mark.parametrize("cells", ["1x", "0x1", "1x1,1x1", "1*4", ""])
def test_cells_that_are_none_are_refused(matrix: Path, cells: str) -> None:
    ran = CliRunner().invoke(cli, ["fan-out", "--matrix", str(matrix), "--dry-run", "--cells", cells])
    assert ran.exit_code == 2
    assert "--cells" in ran.output


def test_the_default_cells_are_the_plans(matrix: Path) -> None:
    ran = CliRunner().invoke(
        cli, ["fan-out", "--matrix", str(matrix), "--dry-run", "--where", "hardware=cpu"]
    )
    assert ran.exit_code == 0, ran.output
    assert ",".join(map(str, CELLS)) in ran.output


@pytest.mark.parametrize(
    ("budget", "asked", "planned"), [("probe", "2", 2), ("standard", "1", 2), ("standard", "3", 3)]
)
def test_a_row_runs_in_as_many_processes_as_asked_but_never_in_fewer_than_its_budgets(
    matrix: Path, budget: str, asked: str, planned: int
) -> None:
    plan = ["fan-out", "--matrix", str(matrix), "--dry-run", "--where", "hardware=cpu", "--executor", "local"]
    ran = CliRunner().invoke(cli, [*plan, "--budget", budget, "--processes", asked])
    assert ran.exit_code == 0, ran.output
    assert f"in {planned} processes" in ran.output


def test_a_plan_for_hardware_that_is_still_to_be_rented_is_made_on_any_machine(matrix: Path) -> None:
    asked = ["fan-out", "--matrix", str(matrix), "--where", "hardware=h100x1", "--executor", "local"]
    planned = CliRunner().invoke(cli, [*asked, "--dry-run", "--on", "h100x1", "--price-per-gpu-hour", "2"])
    assert planned.exit_code == 0
    assert "2 rows chosen, 2 to run" in planned.output
    assert "at 2 a GPU-hour" in planned.output
    smaller = CliRunner().invoke(cli, [*asked, "--dry-run", "--on", "a100x1"])
    assert "it wants 1 x h100" in smaller.output
    for refused, why in (
        (["--on", "h100x1"], "add --dry-run"),
        (["--dry-run", "--on", "cpu"], "h100x1 or a100x8"),
    ):
        ran = CliRunner().invoke(cli, [*asked, *refused])
        assert ran.exit_code == 2
        assert why in ran.output
