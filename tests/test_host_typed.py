"""``fan-out`` and ``bench`` as they are typed: what does not fit, what is mistyped, what is only planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import fake_row

from bench import layout
from bench.cli import main as cli
from bench.config import CELLS
from bench.matrix_file import dump

pytestmark = pytest.mark.usefixtures("own_leases")


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.csv"
    rows = [
        fake_row(row="1", hardware="h100x1", parent=None, why=""),
        fake_row(row="2", hardware="cpu", parent=None, why=""),
    ]
    path.write_text(dump(rows))
    return path


def test_bench_on_a_machine_without_the_hardware_says_what_is_missing_and_what_to_do(
    matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ran = CliRunner().invoke(cli, ["bench", "1", "--matrix", str(matrix)])
    assert ran.exit_code == 1
    assert "it wants 1 x h100, and this machine has no GPU" in ran.output
    assert "make bench ROW=2" in ran.output


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
    assert "do not fit this machine: row 1" in ran.output
    assert not list(results.rglob(layout.RESULT))


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
    assert ",".join(f"{users}x{images}" for users, images in CELLS) in ran.output


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
    assert "1 row chosen, 1 to run" in planned.output
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
