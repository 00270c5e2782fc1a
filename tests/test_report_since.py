"""What the report says of rows that other code, weights or packages measured than this checkout's."""

from __future__ import annotations

from pathlib import Path

from fake_attempts import write_attempt
from fakes import fake_result, fake_row
from reports import COMPILED, REFERENCE, attempt, banner, tags

from bench import identity
from bench.host import locks


def test_a_section_says_once_that_all_its_rows_are_of_other_code(tmp_path: Path) -> None:
    write_attempt(tmp_path, fake_result(REFERENCE))
    write_attempt(tmp_path, fake_result(COMPILED, median_seconds=3.9))
    assert "2026-11-22, commit 00000000" in banner(tmp_path)
    assert "In this checkout the code that measures has changed since." in banner(tmp_path)
    assert tags(tmp_path) == [(), ("reference",)]


def test_a_section_of_old_and_current_rows_tags_the_old_ones(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE)
    write_attempt(tmp_path, fake_result(COMPILED, median_seconds=3.9))
    assert "changed since for 1 of 2 rows, tagged stale" in banner(tmp_path)
    assert tags(tmp_path) == [("stale",), ("reference",)]


def test_changed_weights_of_the_tiny_model_are_said_apart_from_changed_code(tmp_path: Path) -> None:
    row = fake_row(row="2", hardware="cpu")
    _, result = attempt(tmp_path, row)
    assert "changed" not in banner(tmp_path)
    made_of = result.ingredients
    assert made_of is not None
    older = made_of.model_copy(update={"data": "other"})
    update = {
        "ingredients": older,
        "fingerprint": identity.fingerprint_of(row, older),
        "attempt": "20270101T000000Z-0000",
    }
    write_attempt(tmp_path, result.model_copy(update=update))
    assert "In this checkout the tiny weights have changed since." in banner(tmp_path)


def test_packages_other_than_the_locked_ones_are_named_with_both_versions(tmp_path: Path) -> None:
    made = fake_result(REFERENCE)
    assert made.environment is not None
    locked = locks.locked_version("torch", "torch")
    made.environment.packages = {"torch": f"{locked}+cu130", "numpy": "1.0", "pytest": "1.0"}
    write_attempt(tmp_path, made)
    assert "packages than measured here: numpy 1.0 (locked " in banner(tmp_path)
    assert "torch" not in banner(tmp_path)
    assert "pytest" not in banner(tmp_path)


def test_current_results_are_not_called_stale(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE)
    assert tags(tmp_path) == [("reference",)]
    assert "changed" not in banner(tmp_path)
