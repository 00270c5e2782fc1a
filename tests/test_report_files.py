"""What ``fluxbench report`` writes: Markdown in the plan's structure, charts, offline pages, README."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from fake_attempts import write_attempt
from fakes import fake_cell, fake_result, fake_row

from bench import config, identity, layout
from bench.axes import AXES
from bench.cli import main
from bench.matrix import REFERENCE
from bench.quality import FILE
from bench.record import Code
from bench.report import timeline
from bench.report.load import load
from bench.report.samples import STACKS
from bench.tryout import Tried
from bench.tryout_report import Constructed

KERNELS = ("cudnn", "native-flash", "flash2")
REPOSITORY = Path(__file__).parent.parent
PLAN_HEADING = (
    "| Concurrent Users | Images | p25 (s) | p50 (s) | p90 (s) | p99 (s) | Avg (s) "
    "| GPU Util (%) | Memory Usage (GB) |"
)


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and a compiled row in two use cases, and a baseline that ran out of memory."""
    results = tmp_path_factory.mktemp("results")
    for number, (task, control) in enumerate((("txt2img", "none"), ("txt2img", "canny"))):
        first = 10 * number
        reference = fake_row(row=str(first + 2), task=task, control=control, parent=str(first + 1))
        compiled = reference.model_copy(
            update={"row": str(first + 4), "compilation": "inductor", "parent": reference.row}
        )
        baseline = fake_row(row=str(first + 1), task=task, control=control, precision="fp32")
        for seed in (1, 2):
            write_attempt(results, fake_result(reference, seed=seed, minutes=seed))
            write_attempt(results, fake_result(compiled, seed=seed, minutes=seed, median_seconds=3.9))
        cells = [
            fake_cell(1, 1, n=3, median_seconds=38.0),
            fake_cell(1, 4, code=Code.OOM, reason="CUDA out of memory <script>"),
        ]
        write_attempt(results, fake_result(baseline, cells=cells, budget="probe"))
    return results


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
    for row, noise in (
        (fake_row(row="2", hardware="cpu"), 0.0),
        (fake_row(row="3", hardware="cpu", vae="tiled"), 0.03),
    ):
        write_attempt(tmp_path, fake_result(row), images=True, noise=noise)
    done = CliRunner().invoke(main, ["quality", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(list(tmp_path.rglob(FILE))) == 1
    command(tmp_path)
    html = (tmp_path / "analysis" / "cpu.html").read_text()
    assert html.count("data:image/webp") == 4  # two prompts, two stacks
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
    lines = readme_block(tmp_path / "results", "options", tmp_path, monkeypatch)
    (line,) = (line for line in lines if "`xdit-pipefusion2`" in line)
    assert "| crashed on H200 |" in line


def readme_block(results: Path, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    (folder / "README.md").write_text(f"<!-- fluxbench: {name} -->\n<!-- /fluxbench -->\n")
    assert command(results, "--readme").exit_code == 0
    return [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("|")]


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
    lines = readme_block(tmp_path, "options", tmp_path, monkeypatch)
    (flash3,) = (line for line in lines if line.startswith("| `flash3`"))
    (flash2,) = (line for line in lines if line.startswith("| `flash2`"))
    assert "| H100 (tiny model) |" in flash3
    assert "| not on H100: needs flash-attn |" in flash2


def test_a_broken_file_of_constructed_stacks_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "constructed" / "h100x1.json"
    broken.parent.mkdir()
    broken.write_text("{}")
    assert "left out: constructed/h100x1.json" in command(tmp_path).output


def test_a_cache_that_follows_a_schedule_is_listed_as_such_and_is_never_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = fake_row(row="2")
    compiled = reference.model_copy(update={"row": "4", "compilation": "inductor", "attention": "cudnn"})
    replayed = compiled.model_copy(update={"row": "5", "cache": "replay-65"})
    for row, seconds in ((reference, 5.2), (compiled, 3.9), (replayed, 1.7)):
        write_attempt(tmp_path, fake_result(row, median_seconds=seconds))
    _, _, *combinations = readme_block(tmp_path, "combinations", tmp_path, monkeypatch)
    assert [line.split("|")[2].strip() for line in combinations] == ["5", "4"], "fastest first"
    assert "(speed only: skips by schedule)" in combinations[0]
    *_, fastest = readme_block(tmp_path, "fastest", tmp_path, monkeypatch)
    assert "| bf16 + cudnn + inductor |" in fastest


def test_a_marker_of_no_table_is_an_error_with_its_line(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("one\n\n<!-- fluxbench: slowest -->\n<!-- /fluxbench -->\n")
    done = command(tree, "--readme")
    assert done.exit_code == 1
    assert "line 3: no table 'slowest'; there are: fastest, options" in done.output


def test_the_tables_of_our_readme_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    committed = REPOSITORY / "results"
    done = command(committed if committed.exists() else tmp_path, "--readme", "--check")
    assert done.exit_code == 0, done.output


def test_an_option_that_two_machines_measured_shows_the_one_whose_speed_up_has_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = fake_row(row="2")
    compiled = reference.model_copy(update={"row": "4", "compilation": "inductor"})
    for row in (reference, compiled):
        write_attempt(tmp_path, fake_result(row, shapes=[(1, 1)], n=40))  # the reference once
        for minutes in (0, 30):
            write_attempt(tmp_path, fake_result(row, shapes=[(1, 1)], n=8, host=1, minutes=minutes))
    lines = readme_block(tmp_path, "options", tmp_path, monkeypatch)
    (line,) = (line for line in lines if line.startswith("| `inductor`"))
    assert "n=16 against 16" in line
    assert "(CI " in line
