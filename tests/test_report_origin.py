"""From a number to its data: attempts, evidence, and the command that measures a row again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_cell, fake_result, fake_row

from bench import matrix_file
from bench.cli import main
from bench.matrix import Row
from bench.record import Code
from bench.report.evidence import counted, proofs, said
from bench.report.load import load
from bench.report.origin import Matrix, Origin, origin
from bench.report.page import report
from bench.report.write import write

REPOSITORY = Path(__file__).parent.parent
MATRIX = matrix_file.read(REPOSITORY / "matrix.csv")


def origins(results: Path, matrix: list[Row] = MATRIX) -> dict[str, Origin]:
    """By row."""
    (page, *_) = report(load(results)).pages
    return {each.row.row: origin(each, Matrix(matrix)) for each in page.measurements}


def row(**wanted: Any) -> Row:
    """Of the real matrix: bf16 eager txt2img but for what is wanted."""
    plain = fake_row(**wanted)
    return next(each for each in MATRIX if each.identity == plain.identity)


# --- Evidence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("graphs", 6, "6"),
        ("parameters", 11901408320, "11,901,408,320"),
        ("bytes_before", 23802816640, "23.8 GB"),
        ("input_bytes", 262144, "262 kB"),
        ("overlap", 0.25, "0.250"),
        ("cache_enabled", False, "no"),
        ("missing", None, "–"),
        ("misfits", {}, "none"),
        ("left_plain", [], "none"),
        ("processors", {"transformer": 57, "controlnet": 15}, "transformer 57, controlnet 15"),
        ("replays", {"a": 5, "b": 60}, "b 60, a 5"),
        ("latents", [1, 16, 128, 128], "1, 16, 128, 128"),
        ("distances", [None, *(0.1 * each for each in range(1, 21))], "20 values, 0.100 to 2.00"),
        ("changed", {"tuning": ["False", "True"]}, "tuning (False, True)"),
        ("by_rank", [{"heads": 12}, {"heads": 12}], "each of 2: heads 12"),
        ("by_rank", [{"heads": 12}, {"heads": 11}], "(heads 12), (heads 11)"),
    ],
)
def test_evidence_is_said_in_few_words(name: str, value: object, expected: str) -> None:
    assert said(value, name) == expected


def test_kernels_are_told_from_the_most_called_down_and_the_rest_is_counted() -> None:
    kernels = {f"kernel_{number}": number for number in range(1, 8)}
    assert said(kernels) == "kernel_7 7, kernel_6 6, kernel_5 5, kernel_4 4, and 3 more"
    assert len(said({"void cutlass::device_kernel<" + "cute::tuple<" * 40: 57})) < 80


def test_evidence_of_an_axis_that_nobody_knows_yet_is_shown_too() -> None:
    (proof,) = proofs({"attention": "sage9"}, {"attention": {"never_seen_before": {"deep": {"er": 3}}}}, {})
    assert proof.of == "Attention sage9"
    assert proof.text == "never seen before: deep (er 3)"


def test_what_options_counted_is_added_up_over_cells() -> None:
    counts = counted([{"cache": {"skipped": 8, "computed": 20}}, {}, {"cache": {"skipped": 9}}])
    (proof,) = proofs({"precision": "bf16", "cache": "fbcache-0.12"}, {}, counts)
    assert proof.items == (("in all requests", "computed 20, skipped 17"),)


# --- Attempts ------------------------------------------------------------------------------------------


def test_each_pooled_attempt_is_named_with_place_commit_gpu_and_requests(tmp_path: Path) -> None:
    for minutes in (0, 30):
        write_attempt(tmp_path, fake_result(row(), n=36, minutes=minutes, shapes=[(1, 1)]))
    found = origins(tmp_path)[row().row]
    assert len(found.sources) == 2
    for source in found.sources:
        assert (tmp_path / source.place / "result.json").exists()
        assert re.search(r"^2026-11-22, commit \w{8}, GPU-00000000, \w+: 1x1 n=36 ok$", source.facts)


def test_a_cell_without_numbers_stands_in_its_attempt_with_its_status(tmp_path: Path) -> None:
    cells = [fake_cell(1, 1, n=13), fake_cell(1, 4, code=Code.OOM)]
    write_attempt(tmp_path, fake_result(row(), cells=cells))
    assert origins(tmp_path)[row().row].sources[0].facts.endswith(": 1x1 n=13 ok; 1x4 oom")


# --- The command ---------------------------------------------------------------------------------------


def planned(command: str, *more: str) -> list[str]:
    """The lines of the plan that ``fan-out --dry-run`` makes of the command."""
    program, *arguments = shlex.split(command)
    assert program == "fluxbench"
    asked = [
        *arguments,
        *more,
        "--dry-run",
        "--executor",
        "local",
        "--matrix",
        str(REPOSITORY / "matrix.csv"),
    ]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return re.findall(r"^ +\d+\. (row \d+) .* (\d+x\d+(?:,\d+x\d+)*): about", done.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("stack", "reference", "on"),
    [
        ({"attention": "flash3"}, {}, "h100x1"),
        (
            {"hardware": "h200x2", "parallel": "ulysses2", "compilation": "inductor"},
            {"hardware": "h200x1"},
            "h200x2",
        ),
        ({}, {}, "h100x1"),
    ],
)
def test_the_command_plans_the_row_and_its_reference(
    stack: dict[str, str], reference: dict[str, str], on: str, tmp_path: Path, own_leases: None
) -> None:
    wanted = row(**stack)
    write_attempt(tmp_path / "measured", fake_result(wanted, shapes=[(1, 1), (1, 4)], n=13, budget="quick"))
    command = origins(tmp_path / "measured")[wanted.row].command
    assert command is not None
    assert "--weights synthetic --cells 1x1,1x4" in command
    plan = planned(command, "--on", on, "--results", str(tmp_path / "empty"))
    assert {name for name, _ in plan} == {f"row {wanted.row}", f"row {row(**reference).row}"}
    assert {cells for name, cells in plan if name == f"row {wanted.row}"} == {"1x1,1x4"}


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([3], "--budget probe"),
        ([6], ""),
        ([36], "--budget standard"),
        ([6, 6], "--processes 2"),
        ([6, 6, 6, 6], "--processes 2"),
        ([13, 13], "--budget standard"),
        ([3, 3], "--processes 2"),
    ],
    ids=str,
)
def test_the_command_asks_for_no_fewer_requests_and_processes_than_an_interval_needs(
    requests: list[int], expected: str, tmp_path: Path
) -> None:
    for number, n in enumerate(requests):
        cells = [fake_cell(1, 1, n=n, seed=number)]
        write_attempt(tmp_path, fake_result(row(), cells=cells, budget="probe", minutes=10 * number))
    command = origins(tmp_path)[row().row].command or ""
    asked = re.search(r"--weights synthetic(.*) --cells 1x1$", command)
    assert asked is not None
    assert asked[1].strip() == expected


def test_rows_of_the_tiny_model_name_no_weights_and_a_row_outside_the_matrix_no_command(
    tmp_path: Path,
) -> None:
    cpu = row(hardware="cpu")
    write_attempt(tmp_path, fake_result(cpu))
    assert "--weights" not in (origins(tmp_path)[cpu.row].command or "--weights")
    assert origins(tmp_path, matrix=[])[cpu.row].command is None
    renumbered = [each.model_copy(update={"row": "99999"}) for each in MATRIX]
    assert origins(tmp_path, matrix=renumbered)[cpu.row].command is None, "its id means another row there"


# --- On the page ---------------------------------------------------------------------------------------


def test_page_and_markdown_hold_attempt_evidence_and_command(tmp_path: Path) -> None:
    result = fake_result(row(attention="flash3"), shapes=[(1, 1)])
    evidence = result.effective | {
        "attention": {"kernels_in_one_step": {"FlashAttnFwdSm90<3>": 57}},
        "vae": {"decoder_calls": 1},
    }
    write_attempt(tmp_path, result.model_copy(update={"effective": evidence}))
    write(tmp_path, tmp_path / "analysis", MATRIX)
    number = result.row["row"]
    html = (tmp_path / "analysis" / "h100x1.html").read_text()
    assert f'<div id="h100x1-synthetic-txt2img-row-{number}">' in html
    assert "FlashAttnFwdSm90&lt;3&gt; 57" in html
    summary = tmp_path / "analysis" / "summaries" / "h100x1-synthetic-txt2img.md"
    text = summary.read_text()
    assert "- Attention flash3: `kernels in one step: FlashAttnFwdSm90<3> 57`" in text
    assert "decoder calls" in html
    assert "decoder calls" not in text, "only options that are no absence of one"
    command = f'fluxbench fan-out --where "row={row().row},{number}" --weights synthetic'
    assert command in html.replace("&#34;", '"')
    assert command in text
    (link,) = re.findall(r"\]\((\.\./.*)\)", text)
    assert (summary.parent / link / "result.json").exists()
