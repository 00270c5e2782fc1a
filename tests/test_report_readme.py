"""The tables of README, which ``fluxbench report --readme`` renews from results."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_result, fake_row
from report_tree import TINY_ON_GPU, command, tree

from bench.axes import AXES
from bench.cli import main
from bench.matrix import REFERENCE
from bench.record import Code
from bench.tryout import Tried
from bench.tryout_report import Constructed

__all__ = ["tree"]  # a fixture


def readme_block(results: Path, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    (folder / "README.md").write_text(f"<!-- fluxbench: {name} -->\n<!-- /fluxbench -->\n")
    assert command(results, "--readme").exit_code == 0
    return [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("|")]


def option_line(results: Path, option: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    lines = readme_block(results, "options", folder, monkeypatch)
    (line,) = (line for line in lines if line.startswith(f"| `{option}`"))
    return line


def row_ids(combinations: list[str]) -> list[str]:
    return [line.split("|")[2].strip() for line in combinations]


def test_readme_tables_are_renewed_between_their_markers(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- fluxbench: fastest -->\nold\n<!-- /fluxbench -->\nafter\n")
    assert command(tree, "--readme", "--check").exit_code == 1
    assert command(tree, "--readme").exit_code == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- fluxbench: fastest -->\n**1 × H100 · synthetic weights")
    assert text.endswith("\n<!-- /fluxbench -->\nafter\n")
    assert "| Text-to-Image | lossless (promised by its options) | bf16 + inductor | 4 | 2 | 3.9" in text, (
        "row 4"
    )
    assert "old" not in text
    assert command(tree, "--readme", "--check").exit_code == 0


def test_the_options_of_readme_say_what_ran_where_and_what_it_alone_is_worth(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- fluxbench: options -->\n<!-- /fluxbench -->\n")
    assert command(tree, "--readme").exit_code == 0
    lines = {line.split("|")[1].strip(): line for line in readme.read_text().splitlines() if "|" in line}
    assert "| H100 | 4 | 3.9" in lines["`inductor`"], "row 4"
    assert "against" in lines["`inductor`"]
    assert "× " in lines["`inductor`"], "a speed-up with its verdict"
    assert "| not run yet | – | – | – | – |" in lines["`flash3`"]
    listed = {f"`{option}`" for options in AXES.values() for option in options if option != "none"}
    assert listed <= set(lines)


def test_the_options_of_readme_say_of_one_that_only_failed_how_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = fake_row(hardware="h200x2", parallel="xdit-pipefusion2")
    write_attempt(tmp_path / "results", fake_result(row, code=Code.CRASHED))
    line = option_line(tmp_path / "results", "xdit-pipefusion2", tmp_path, monkeypatch)
    assert "| crashed on H200 |" in line


def test_the_options_of_readme_name_the_tiny_model_that_had_one_beside_the_row_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = fake_row(row="4", quantization="bnb-int8")
    write_attempt(tmp_path / "results", fake_result(row, code=Code.INTERRUPTED))
    assert "| interrupted on H100 |" in option_line(tmp_path / "results", "bnb-int8", tmp_path, monkeypatch)
    tiny = fake_row(row="5", quantization="bnb-int8", **TINY_ON_GPU)
    write_attempt(tmp_path / "results", fake_result(tiny))
    line = option_line(tmp_path / "results", "bnb-int8", tmp_path, monkeypatch)
    assert "| interrupted on H100, H100 (tiny model) |" in line


def test_an_option_says_where_it_was_built_on_the_tiny_model_and_where_it_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constructed = Constructed(
        hardware="h100x1",
        packages={},
        stacks=[
            Tried(stack={**REFERENCE, "attention": "flash3"}, ended="constructed"),
            Tried(
                stack={**REFERENCE, "attention": "flash2"},
                ended="unavailable",
                reason=(
                    "Unavailable: row 1 (bf16+flash2 on h100x1, txt2img): attention flash2 needs flash-attn;"
                    " pip install it"
                ),
            ),
        ],
    )
    constructed.write(tmp_path / "constructed" / "h100x1.json")
    flash3, flash2 = (option_line(tmp_path, name, tmp_path, monkeypatch) for name in ("flash3", "flash2"))
    assert "| H100 (tiny model) |" in flash3
    assert "| not on H100: needs flash-attn |" in flash2


def test_a_cache_that_follows_a_schedule_is_listed_as_such_and_is_never_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = fake_row(row="2")
    compiled = reference.model_copy(update={"row": "4", "compilation": "inductor", "attention": "cudnn"})
    replayed = compiled.model_copy(update={"row": "5", "cache": "replay-65"})
    for row, seconds in ((reference, 5.2), (compiled, 3.9), (replayed, 1.7)):
        write_attempt(tmp_path, fake_result(row, median_seconds=seconds))
    _, _, *combinations = readme_block(tmp_path, "combinations", tmp_path, monkeypatch)
    assert row_ids(combinations) == ["5", "4"], "fastest first"
    assert "(speed only: skips by schedule)" in combinations[0]
    assert all("h100x1, GPU-00000000, synthetic weights, n=" in line for line in combinations)
    *_, fastest = readme_block(tmp_path, "fastest", tmp_path, monkeypatch)
    assert "| bf16 + cudnn + inductor |" in fastest


def test_combinations_of_several_machines_are_in_the_order_of_their_gains_and_not_of_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = fake_row(row="2")
    cudnn = reference.model_copy(update={"row": "4", "compilation": "inductor", "attention": "cudnn"})
    flash3 = cudnn.model_copy(update={"row": "5", "attention": "flash3"})
    for host, row, seconds in ((0, cudnn, 4.0), (1, flash3, 3.9)):
        write_attempt(tmp_path, fake_result(reference, host=host, median_seconds=8.0 if host == 0 else 4.0))
        write_attempt(tmp_path, fake_result(row, host=host, median_seconds=seconds))
    _, _, *combinations = readme_block(tmp_path, "combinations", tmp_path, monkeypatch)
    assert row_ids(combinations) == ["4", "5"]


def test_what_every_plain_stack_has_is_not_given_the_quality_of_another_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 without any option differs from its parent, fp32, in the precision and not by attention sdpa."""
    for row, noise, changes in (
        ("1", 0.0, {}),
        ("2", 0.1, {"precision": "fp32"}),
        ("3", 0.1, {"precision": "fp16", "parent": "2"}),
        ("4", 0.1, {"precision": "fp32", "vae": "sliced", "parent": "2"}),
    ):
        painted = fake_result(fake_row(row=row, hardware="cpu", **changes))
        write_attempt(tmp_path, painted, images=True, noise=noise, telemetry=False)
    assert CliRunner().invoke(main, ["quality", str(tmp_path)]).exit_code == 0
    of = {name: option_line(tmp_path, name, tmp_path, monkeypatch) for name in ("sdpa", "full", "sliced")}
    assert of["sdpa"].endswith("| – |")
    assert of["full"].endswith("| – |")
    assert "tiny weights on CPU) |" in of["sliced"]


def test_a_marker_of_no_table_is_an_error_with_its_line(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("one\n\n<!-- fluxbench: slowest -->\n<!-- /fluxbench -->\n")
    done = command(tree, "--readme")
    assert done.exit_code == 1
    assert "line 3: no table 'slowest'; there are: fastest, options" in done.output


def test_an_option_that_two_machines_measured_shows_the_one_whose_speed_up_has_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = fake_row(row="2")
    compiled = reference.model_copy(update={"row": "4", "compilation": "inductor"})
    for row in (reference, compiled):
        write_attempt(tmp_path, fake_result(row, shapes=[(1, 1)], n=40))  # the reference once
        for minutes in (0, 30):
            write_attempt(tmp_path, fake_result(row, shapes=[(1, 1)], n=8, host=1, minutes=minutes))
    line = option_line(tmp_path, "inductor", tmp_path, monkeypatch)
    assert "h100x1, GPU-00000001, synthetic weights, n=16 against 16" in line, "whose figures they are"
    assert "(CI " in line


def test_of_the_tiny_model_on_a_gpu_readme_takes_pictures_and_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, change in enumerate(
        ({}, {"attention": "flash3"}, {"attention": "flash3", "vae": "tiled"}), 2
    ):
        write_attempt(tmp_path, fake_result(fake_row(row=str(number), **TINY_ON_GPU, **change)))
    line = option_line(tmp_path, "flash3", tmp_path, monkeypatch)
    assert "| H100 (tiny model) | – | – | – | – |" in line
    write_attempt(tmp_path, fake_result(fake_row(row="6", attention="flash3"), median_seconds=5.1))
    line = option_line(tmp_path, "flash3", tmp_path, monkeypatch)
    assert "| H100 | 6 | 5.1" in line
    assert not readme_block(tmp_path, "combinations", tmp_path, monkeypatch)
