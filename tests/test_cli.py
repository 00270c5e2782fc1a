"""The command line, as a person uses it: real processes, real files, errors that say what to do."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def fluxbench(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    return Path(shutil.copy(REPOSITORY / "matrix.csv", tmp_path / "matrix.csv"))


def test_help_answers_at_once() -> None:
    """Counted in CPU seconds, which a busy machine does not stretch; make bench-self prints wall seconds."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        fluxbench("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["rows"], ["matrix", "--check"], ["schema"]])
def test_the_host_side_imports_neither_torch_nor_numpy(arguments: list[str]) -> None:
    """Torch costs seconds and gigabytes, and a machine that only plans or reads has none."""
    code = (
        "import sys; from bench.cli import main; main(sys.argv[1:], standalone_mode=False);"
        "print([name for name in ('torch', 'diffusers', 'numpy', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_rows_shows_use_case_stack_phase_and_image_on_one_line() -> None:
    shown = fluxbench("rows", "--where", "row=42").stdout.splitlines()
    assert shown[0].split()[:4] == ["row", "hardware", "model", "pixels"]
    fields = shown[1].split()
    assert fields[:6] == ["42", "h100x1", "flux.1-dev", "1024", "28", "txt2img"]
    assert "torch" in fields
    assert shown[-1] == "1 row"


def test_rows_as_json_holds_every_column_and_what_is_derived() -> None:
    (row,) = json.loads(fluxbench("rows", "--where", "row=42", "--json").stdout)
    assert (row["row"], row["hardware"], row["phase"], row["image"], row["refused_by"]) == (
        "42",
        "h100x1",
        1,
        "torch",
        None,
    )


def test_tier_widens_the_selection() -> None:
    core, everything = (
        json.loads(fluxbench("rows", "--json", "--tier", tier).stdout) for tier in ("core", "all")
    )
    assert {row["tier"] for row in core} == {"core"}
    assert len(everything) > len(core)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows", "--where", "hardwre=cpu"], "did you mean 'hardware'?"),
        (
            ["rows", "--where", "hardware=h100x7"],
            "no row has the hardware 'h100x7'; did you mean 'h100x1', 'h100x2', 'h100x4' or 'h100x8'?",
        ),
        (["rows", "--where", "cache=none attention=cudnn phase=1"], "no row matches --where 'cache=none"),
        (["rows", "--where", "hardware=h200x1 parallel=tp2"], "with another hardware "),
        (
            ["rows", "--where", "hardware=h200x1 parallel=tp2"],
            " would (h200x2, h100x2, a100x2); with another",
        ),
        (["rows", "--where", "control=depth"], "in other tiers (--tier all)"),
        (["rows", "--matrix", "nowhere.csv"], "nowhere.csv does not exist; run in the repository"),
        (["rows", "--tier", "cor"], "'cor' is not one of"),
        (["correctness", "--ranks", "3"], "no method is declared for 3; there are some for 2, 4, 8"),
        (["row"], "No such command 'row'"),
    ],
)
def test_a_wrong_question_is_answered_with_what_to_do(arguments: list[str], message: str) -> None:
    done = fluxbench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_row_that_does_not_fit_has_no_overhead_but_a_sentence() -> None:
    done = fluxbench("overhead", "1")
    assert done.returncode == 1
    assert "nothing was measured: row 1 (fp32 on a100x1, txt2img): it wants 1 x a100" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_row_needs_and_this_machine_lacks_is_said_without_a_traceback(tmp_path: Path) -> None:
    done = fluxbench("run", "39", "--weights", "synthetic", "--results", str(tmp_path))
    assert done.returncode == 3
    assert "row 39 (bf16 on h100x1, txt2img): it wants 1 x h100" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_place_that_cannot_be_used_is_named_without_a_traceback(tmp_path: Path) -> None:
    results = tmp_path / "file" / "results"
    results.parent.touch()
    done = fluxbench("fan-out", "--where", "row=277", "--executor", "local", "--results", str(results))
    assert done.returncode == 1
    assert f"{results}: Not a directory; give it room and permission, or name another place" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_results_folder_that_is_a_link_to_nowhere_is_named_without_a_traceback(tmp_path: Path) -> None:
    (results := tmp_path / "results").symlink_to(tmp_path / "unmounted" / "results")
    done = fluxbench("fan-out", "--where", "row=277", "--executor", "local", "--results", str(results))
    assert done.returncode == 1
    assert f"{results}: File exists; give it room and permission, or name another place" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_under_a_command_is_a_sentence() -> None:
    """The system names no file when a write fails, only when an open does."""
    command = [sys.executable, "-m", "bench", "schema"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "Error: the disk that this writes to: No space left on device; give it room" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_matrix_is_refused_with_every_mistake(matrix: Path) -> None:
    text = matrix.read_text().replace("canny", "cany", 1).replace("inpaint", "impaint", 1)
    matrix.write_text(text)
    for command in (["rows"], ["matrix"], ["matrix", "--check"]):
        done = fluxbench(*command, "--matrix", str(matrix))
        assert done.returncode == 2
        assert "has 2 mistakes; nothing was run" in done.stderr
        assert "did you mean 'canny'?" in done.stderr
        assert "did you mean 'inpaint'?" in done.stderr
    assert matrix.read_text() == text


def test_matrix_writes_what_is_missing_and_check_tells(matrix: Path) -> None:
    whole = matrix.read_text()
    lines = whole.splitlines(keepends=True)
    matrix.write_text("".join(lines[:-2]))
    check = fluxbench("matrix", "--check", "--matrix", str(matrix))
    assert check.returncode == 1
    assert check.stderr.count("missing: row") == 2
    assert "2 new" in fluxbench("matrix", "--matrix", str(matrix)).stdout
    assert matrix.read_text() == whole
    assert fluxbench("matrix", "--check", "--matrix", str(matrix)).returncode == 0


def test_a_file_that_was_cut_off_is_told_in_a_screenful(matrix: Path) -> None:
    lines = matrix.read_text().splitlines(keepends=True)
    matrix.write_text("".join(lines[:40]))
    check = fluxbench("matrix", "--check", "--matrix", str(matrix))
    assert check.returncode == 1
    assert check.stderr.count("missing: row") == 20
    assert f"and {len(lines) - 40 - 20} more" in check.stderr
    assert "`fluxbench matrix` appends what is missing" in check.stderr


def test_matrix_starts_a_file_where_there_is_none(tmp_path: Path) -> None:
    assert fluxbench("matrix", cwd=tmp_path).returncode == 0
    assert (tmp_path / "matrix.csv").read_text() == (REPOSITORY / "matrix.csv").read_text()


def test_the_schema_describes_result_json() -> None:
    schema = json.loads(fluxbench("schema").stdout)
    assert schema["additionalProperties"] is False
    assert {"status", "row", "fingerprint", "cells"} <= set(schema["properties"])
