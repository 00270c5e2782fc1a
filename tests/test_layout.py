"""Which results tree a path belongs to, whatever the folders are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench import layout

HARDWARE = ("cpu", "h100x1", "h100x2")
NAMES = ("results", "cpu", "single_gpu", "multi_gpu", "2gpu")


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_a_tree_belongs_to_it_whatever_the_tree_is_called(
    tmp_path: Path, name: str, hardware: str
) -> None:
    root = tmp_path / name
    attempt = write_attempt(root, fake_result(fake_row(hardware=hardware), shapes=[(1, 1)], n=6))
    parts = [attempt / layout.RESULT, attempt, *attempt.parents]
    assert {layout.root_of(part) for part in parts[: parts.index(root) + 1]} == {root}


@pytest.mark.parametrize("above", NAMES)
def test_the_name_of_a_folder_above_a_tree_says_nothing(tmp_path: Path, above: str) -> None:
    root = tmp_path / above / "results"
    write_attempt(root, fake_result(fake_row(hardware="cpu"), shapes=[(1, 1)], n=6))
    assert layout.root_of(root) == root
    assert layout.root_of(root / "cpu") == root


def test_the_tree_of_the_demo_inside_another_is_one_of_its_own(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "demo"):
        write_attempt(root, fake_result(fake_row(hardware="cpu"), shapes=[(1, 1)], n=6))
    assert layout.root_of(tmp_path / "cpu") == tmp_path
    assert layout.root_of(tmp_path / "demo" / "cpu") == tmp_path / "demo"


def test_a_path_without_an_attempt_is_its_own_tree(tmp_path: Path) -> None:
    empty = tmp_path / "cpu" / "row-0001"
    empty.mkdir(parents=True)
    assert layout.root_of(empty) == empty
