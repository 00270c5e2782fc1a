"""What a GPU's kernels paint with the tiny model, beside the speed of the same stack at full size."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_result, fake_row
from report_tree import TINY_ON_GPU, command

from bench import layout
from bench.axes import AXES
from bench.cli import main
from bench.report.samples import STACKS

FAST = {"quantization": "scaledmm-fp8-row", "attention": "flash3", "compilation": "inductor"}
QUANTISATIONS = [option for option in AXES["quantization"] if option != "none"][:STACKS]


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fast stack at full size, and on the tiny model, where more rows ran and were faster."""
    results = tmp_path_factory.mktemp("results")
    for row, seconds in ((fake_row(row="2"), 5.2), (fake_row(row="4", **FAST), 2.9)):
        write_attempt(results, fake_result(row, median_seconds=seconds))
    for number, change in enumerate(({}, FAST, {"attention": "cudnn"}), 5):
        row = fake_row(row=str(number), **TINY_ON_GPU, **change)
        write_attempt(results, fake_result(row, median_seconds=0.2), images=True)
    judged = CliRunner().invoke(main, ["quality", str(results)])
    assert judged.exit_code == 0, judged.output
    assert command(results).exit_code == 0
    return results / "analysis"


def test_a_stack_that_has_no_picture_of_its_own_shows_what_the_tiny_model_painted(analysis: Path) -> None:
    matrix = (analysis / "summaries" / "h100x1-synthetic-txt2img.md").read_text()
    (fast, *_) = (line for line in matrix.splitlines() if line.startswith("| bf16 + scaledmm-fp8-row"))
    assert "| – (tiny model: lossless, identical) |" in fast
    index = (analysis / "index.html").read_text()
    assert "not measured; tiny model: lossless, identical" in index


def test_the_speed_of_the_tiny_model_on_a_gpu_answers_nothing_and_stands_last(analysis: Path) -> None:
    assert "tiny weights</strong>" not in (analysis / "index.html").read_text()
    page = (analysis / "h100x1.html").read_text()
    assert page.index("synthetic weights</h2>") < page.index("tiny weights</h2>")
    assert page.count("<strong>Fastest stack of each use case<") == 1
    assert "Fastest stack" not in (analysis / "summaries" / "h100x1-tiny.md").read_text()


def test_of_the_tiny_model_on_a_gpu_the_pictures_that_differ_most_are_shown(tmp_path: Path) -> None:
    """Their speed says nothing; a picture like the reference's has nothing to show."""
    changes = [{}, *({"quantization": option} for option in QUANTISATIONS)]
    for number, change in enumerate(changes):
        row = fake_row(row=str(number + 2), **TINY_ON_GPU, **change)
        result = fake_result(row, median_seconds=1 + number, shapes=[(1, 1)])
        write_attempt(tmp_path, result, images=True, noise=number / 100)
    assert CliRunner().invoke(main, ["quality", str(tmp_path)]).exit_code == 0
    command(tmp_path)
    page = (tmp_path / "analysis" / "h100x1.html").read_text()
    nearest, *others = QUANTISATIONS
    assert f"Closer to the reference, and not pictured here: bf16 + {nearest}." in page
    shown = re.findall(r"<figcaption>([^<]+)", page)
    first_strip = [name.strip() for name in shown[:STACKS]]
    assert first_strip == ["bf16", *(f"bf16 + {option}" for option in reversed(others))]


def test_prompts_that_reach_different_tiers_are_counted_beside_the_tier(tmp_path: Path) -> None:
    reference = write_attempt(tmp_path, fake_result(fake_row(row="2", **TINY_ON_GPU)), images=True)
    row = fake_row(row="3", quantization="bnb-nf4", **TINY_ON_GPU)
    attempt = write_attempt(tmp_path, fake_result(row), images=True, noise=0.1)
    latents = "p0.latents.safetensors"
    shutil.copy(reference / layout.IMAGES / latents, attempt / layout.IMAGES / latents)
    shutil.copy(reference / layout.IMAGES / "p0.png", attempt / layout.IMAGES / "p0.png")
    assert CliRunner().invoke(main, ["quality", str(tmp_path)]).exit_code == 0
    command(tmp_path)
    summary = (tmp_path / "analysis" / "summaries" / "h100x1-tiny-txt2img.md").read_text()
    assert re.search(r"\| bf16 \+ bnb-nf4[^|]*\| (near|lossy) \(lossless on 1, \1 on \d\) \|", summary)
