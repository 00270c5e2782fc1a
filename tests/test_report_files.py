"""What ``fluxbench report`` writes: Markdown in the plan's structure, charts, offline pages, README."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_result, fake_row
from report_tree import command, tree

from bench import config, identity, layout
from bench.cli import main
from bench.quality import FILE
from bench.record import Code
from bench.report import timeline
from bench.report.load import load
from bench.report.samples import STACKS

__all__ = ["tree"]  # a fixture

KERNELS = ("cudnn", "native-flash", "flash2")
REPOSITORY = Path(__file__).parent.parent
PLAN_HEADING = (
    "| Concurrent Users | Images | p25 (s) | p50 (s) | p90 (s) | p99 (s) | Avg (s) "
    "| GPU Util (%) | Memory Usage (GB) |"
)


@pytest.fixture(scope="module")
def rendered(tree: Path) -> Path:
    done = command(tree)
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == str(tree / "analysis" / "index.html")
    return tree / "analysis"


def test_markdown_keeps_the_plans_headings_and_columns(rendered: Path) -> None:
    text = (rendered / "summaries" / "h100x1-synthetic.md").read_text()
    for heading in (
        "#### Configuration: 1 × H100, bf16 + inductor",
        "- Hardware: NVIDIA H100",
        "- Optimization Stack: Precision: bf16; Compilation: inductor",
        "##### Text-to-Image Results",
        "##### ControlNet Variants",
    ):
        assert heading in text
    assert text.count(PLAN_HEADING[:-1]) == 6  # three stacks in two use cases
    after = text.split("#### Configuration: 1 × H100, bf16 + inductor")[1]
    cells = re.findall(r"^\| (\d) \| (\d) \| ", after, re.M)[:4]
    assert cells == [("1", "1"), ("1", "4"), ("4", "1"), ("4", "4")]


def test_markdown_tables_are_rectangular_and_name_their_weights(rendered: Path) -> None:
    for path in (rendered / "summaries").glob("*.md"):
        text = path.read_text()
        assert "synthetic weights" in text
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, f"{path.name}: {block}"


def test_every_chart_is_a_whole_svg_and_a_small_png(rendered: Path) -> None:
    names = {path.stem for path in (rendered / "charts").glob("*.svg")}
    assert {f"h100x1-synthetic-txt2img-{kind}" for kind in ("latency", "life", "memory", "gains")} <= names
    for name in names:
        ElementTree.parse(rendered / "charts" / f"{name}.svg")
        png = (rendered / "charts" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) < 60_000


def test_pages_hold_everything_and_point_nowhere_outside(rendered: Path) -> None:
    for path in rendered.glob("*.html"):
        html = path.read_text()
        assert not re.findall(r"""(?:src|href)=["'](?!#|data:|[\w-]+\.html)[^"']*""", html)
        assert "Content-Security-Policy" in html


def test_a_report_depends_on_the_results_and_the_checkout_alone(
    tree: Path, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "packages", lambda: {"torch": "9.9"})
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    command(tree, "--out", tmp_path)
    files = [path.relative_to(rendered) for path in rendered.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if (tmp_path / path).read_bytes() != (rendered / path).read_bytes()] == []


def test_text_of_a_result_cannot_become_markup(rendered: Path) -> None:
    html = (rendered / "h100x1.html").read_text()
    assert "CUDA out of memory &lt;script&gt;" in html


def test_a_report_removes_what_it_no_longer_writes_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command(tree, "--out", out)
    (out / "charts" / "mine.svg").write_text("kept")
    begun = tmp_path / "begun"
    (begun / "cpu" / "row-0001" / "tiny" / "20261122T120000Z-0000").mkdir(parents=True)
    done = command(begun, "--out", out)
    assert "0 attempts read" in done.output
    assert "left out: cpu/row-0001/tiny/20261122T120000Z-0000: no result.json" in done.output
    assert {path.name for path in (out / "charts").iterdir()} == {"mine.svg", "README.md"}
    assert [path.name for path in out.glob("*.html")] == ["index.html"]


def test_an_attempt_copied_to_another_row_is_a_problem_and_counts_once(tmp_path: Path) -> None:
    row, other = fake_row(row="2", compilation="inductor"), fake_row(row="7", attention="cudnn")
    folder = write_attempt(tmp_path, fake_result(row, n=16))
    copy = layout.attempt_dir(tmp_path, other, folder.parent.name, folder.name)
    shutil.copytree(folder, copy)
    found = load(tmp_path)
    assert [attempt.row.row for attempt in found.attempts] == ["2"]
    (problem,) = found.problems
    assert problem.path == str(copy.relative_to(tmp_path))
    assert "belong in single_gpu/h100/row-0002/" in problem.reason


@pytest.mark.parametrize("place", ["single_gpu", "single_gpu/h100/row-0002", "notes", ".."])
@pytest.mark.parametrize("asked", [[], ["--readme"]], ids=["report", "readme"])
def test_a_path_that_is_not_the_root_of_a_tree_is_refused_with_the_root_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, asked: list[str]
) -> None:
    results = tmp_path / "results"
    write_attempt(results, fake_result(fake_row(row="2")))
    (results / "notes").mkdir()
    (tmp_path / "README.md").write_text("<!-- fluxbench: fastest -->\n<!-- /fluxbench -->\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = command(f"results/{place}", *asked)
    assert done.exit_code == 2
    assert "not the root of a results tree; results is: `fluxbench report results`" in done.output
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "README.md").read_text().count("\n") == 2


def test_a_folder_without_any_result_is_refused_and_stays_empty(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.exit_code == 2
    assert "holds no result; `make demo`" in done.output
    assert list(tmp_path.iterdir()) == []


def test_pictures_stand_side_by_side_with_their_tier(tmp_path: Path) -> None:
    changes = ({}, {"vae": "tiled"}, {"vae": "sliced"}, {"compilation": "inductor"})
    for number, change in enumerate(changes):
        row = fake_row(row=str(number + 2), hardware="cpu", **change)
        write_attempt(tmp_path, fake_result(row), images=True, noise=0.03 * number)
    done = CliRunner().invoke(main, ["quality", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(list(tmp_path.rglob(FILE))) == 3
    command(tmp_path)
    html = (tmp_path / "analysis" / "cpu.html").read_text()
    assert html.count("data:image/webp") == 8  # two prompts, four stacks
    assert "“waves, p0” (p0, tiny weights)" in html
    assert re.search(r"PSNR \d\d\.\d dB", html)
    assert (tmp_path / "analysis" / "charts" / "cpu-tiny-txt2img-quality.svg").exists()


def test_a_summary_lists_the_failures_of_its_own_machine_and_those_that_never_saw_one(tmp_path: Path) -> None:
    reference = fake_row(row="2")
    for host in (1, 2):
        write_attempt(tmp_path, fake_result(reference, host=host, shapes=[(1, 1)], minutes=host))
    interrupted = fake_result(reference, host=2, code=Code.INTERRUPTED, reason="SIGTERM came", minutes=60)
    write_attempt(tmp_path, interrupted)
    lost = fake_result(reference, code=Code.INFRA, reason="no disk", minutes=90)
    write_attempt(tmp_path, lost.model_copy(update={"environment": None}))
    command(tmp_path)
    paths = (tmp_path / "analysis" / "summaries").glob("*.md")
    texts = [text for path in paths if "- Hardware:" in (text := path.read_text())]
    (first,) = (text for text in texts if "- Hardware: NVIDIA H100 80GB HBM3 (GPU-00000001)" in text)
    (second,) = (text for text in texts if text is not first)
    assert "no disk" in first
    assert "SIGTERM came" not in first
    assert "| GPU-00000002 | all | interrupted | here | SIGTERM came |" in second


def test_stacks_that_no_strip_of_pictures_has_room_for_are_named(tmp_path: Path) -> None:
    options = [
        {},
        *({"vae": vae, "attention": kernel} for vae in ("full", "tiled", "sliced") for kernel in KERNELS),
    ]
    for number, change in enumerate(options):
        row = fake_row(row=str(number + 2), hardware="cpu", **change)
        write_attempt(tmp_path, fake_result(row, median_seconds=1 + number, shapes=[(1, 1)]), images=True)
    command(tmp_path)
    html = (tmp_path / "analysis" / "cpu.html").read_text()
    assert html.count("data:image/webp") == 2 * STACKS
    assert (
        f"Slower, and not pictured here: bf16 + {KERNELS[-2]} + sliced, bf16 + {KERNELS[-1]} + sliced."
        in html
    )


def telemetry(folder: Path, values: Sequence[str]) -> Path:
    lines = [
        "t,gpu,gpu_busy_percent,memory_used_bytes,sm_clock_mhz,power_w,temperature_c,cpu_percent,rss_bytes"
    ]
    lines += [f"{index / 10:.1f},GPU-0,{value},,,,,," for index, value in enumerate(values)]
    (folder / layout.TELEMETRY).write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return folder


def test_a_curve_has_at_most_200_points_and_tells_the_true_peak(tmp_path: Path) -> None:
    values = ["10"] * 5000
    values[2345] = "97"
    found = timeline.read(telemetry(tmp_path, values))
    assert found is not None
    (curve,) = found.curves
    (points,) = curve.segments
    assert 100 < len(points.split()) <= config.TELEMETRY.curve_points
    assert curve.peak == 97


def test_a_gap_in_the_samples_is_a_gap_in_the_curve(tmp_path: Path) -> None:
    found = timeline.read(telemetry(tmp_path, ["50"] * 500 + [""] * 100 + ["50"] * 500))
    assert found is not None
    assert len(found.curves[0].segments) == 2
    assert len(found.curves) == 1  # nothing is drawn for what was never sampled


def test_a_killed_attempt_keeps_its_curves(tmp_path: Path) -> None:
    """Nobody compressed what was sampled, and the last line may be cut."""
    whole = telemetry(tmp_path, ["50"] * 500) / layout.TELEMETRY
    expected = timeline.read(tmp_path)
    (tmp_path / layout.GROWING_TELEMETRY).write_bytes(gzip.decompress(whole.read_bytes()) + b"50.0,GPU")
    whole.unlink()
    assert expected is not None
    assert timeline.read(tmp_path) == expected


def test_broken_telemetry_is_named_in_the_page_and_stops_nothing(tmp_path: Path) -> None:
    folder = write_attempt(tmp_path, fake_result(fake_row(row="2")))
    (folder / layout.TELEMETRY).write_bytes(b"not gzip")
    assert command(tmp_path).exit_code == 0
    assert (
        "telemetry.csv.gz or events.jsonl cannot be read"
        in (tmp_path / "analysis" / "h100x1.html").read_text()
    )


def test_a_broken_file_of_constructed_stacks_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "constructed" / "h100x1.json"
    broken.parent.mkdir()
    broken.write_text("{}")
    assert "left out: constructed/h100x1.json" in command(tmp_path).output
