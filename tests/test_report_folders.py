"""What the report's folders are called and say of themselves, to who browses the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench.report.slugs import World, slugs
from bench.report.write import write

ONE = World("h100x1", "synthetic", 1024, 28, "GPU-d34945ce-cff7-224f")
OTHER = World("h100x1", "synthetic", 1024, 28, "GPU-2774e1e6-5519-c748")
LARGE = World("h100x1", "synthetic", 2048, 28, "GPU-d34945ce-cff7-224f")
ALIKE = World("h100x1", "synthetic", 1024, 28, "GPU-d34945ce-0000-0000")
EIGHT = "+".join(f"GPU-{number}{number}{number}945ce-cff7" for number in range(8))


@pytest.mark.parametrize(
    ("worlds", "expected"),
    [
        ([ONE], ["h100x1-synthetic"]),
        ([ONE, OTHER], ["h100x1-synthetic-d34945ce", "h100x1-synthetic-2774e1e6"]),
        ([ONE, LARGE], ["h100x1-synthetic-1024px-28steps", "h100x1-synthetic-2048px-28steps"]),
        (
            [ONE, OTHER, LARGE],
            [
                "h100x1-synthetic-1024px-28steps-d34945ce",
                "h100x1-synthetic-1024px-28steps-2774e1e6",
                "h100x1-synthetic-2048px-28steps-d34945ce",
            ],
        ),
    ],
)
def test_a_name_holds_what_tells_it_from_the_others(worlds: list[World], expected: list[str]) -> None:
    assert slugs(worlds) == expected


def test_names_are_different_and_short_where_devices_look_alike_or_are_many() -> None:
    many = [World("h100x8", "hub", 1024, 28, EIGHT), World("h100x8", "hub", 1024, 28, f"{EIGHT}+GPU-9")]
    for worlds in ([ONE, ALIKE], many):
        first, second = slugs(worlds)
        assert first != second
        assert len(first) < 60


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines; on one of them two use cases, two rows in one of these."""
    results = tmp_path_factory.mktemp("results")
    reference = fake_row(row="39")
    for row in (reference, fake_row(row="1407", compilation="inductor"), fake_row(row="42", control="canny")):
        write_attempt(results, fake_result(row))
    write_attempt(results, fake_result(reference, host=1, minutes=60 * 24))
    write(results, results / "analysis")
    return results / "analysis"


@pytest.mark.parametrize(("folder", "ending"), [("summaries", "md"), ("charts", "svg")])
def test_the_index_of_a_folder_links_every_file_of_it(rendered: Path, folder: str, ending: str) -> None:
    linked = re.findall(r"\]\(([^)]+)\)", (rendered / folder / "README.md").read_text())
    files = {path.name for path in (rendered / folder).glob(f"*.{ending}")} - {"README.md"}
    assert files
    assert sorted(linked) == sorted(files)


def test_the_index_of_summaries_tells_machine_rows_and_days(rendered: Path) -> None:
    lines = (rendered / "summaries" / "README.md").read_text().splitlines()
    (first,) = (line for line in lines if "GPU-00000000" in line)
    (second,) = (line for line in lines if "GPU-00000001" in line)
    assert "| 1 × H100 | NVIDIA H100 80GB HBM3 (GPU-00000000) | synthetic weights, FLUX.1-dev" in first
    assert first.endswith("| 39, 42, 1407 | 2026-11-22 |"), "by number, not by letter"
    assert second.endswith("| 39 | 2026-11-23 |")


def test_the_indexes_go_with_what_they_index(rendered: Path) -> None:
    assert {"summaries/README.md", "charts/README.md"} <= set((rendered / "written.txt").read_text().split())
