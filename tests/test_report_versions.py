"""Versions of packages, CUDA and the driver: what may stand in one ratio, and what is stale."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_attempts import write_attempt
from fakes import fake_result, fake_row
from reports import COMPILED, REFERENCE, attempt, banner, comparison, rendered, tags, texts

from bench import identity
from bench.host import locks
from bench.matrix import Row
from bench.record import Result
from bench.report import markdown


def with_packages(result: Result, **versions: str) -> Result:
    environment = result.environment
    assert environment is not None
    packages = environment.packages | versions
    return result.model_copy(update={"environment": environment.model_copy(update={"packages": packages})})


def as_installed_by_hand(result: Result) -> Result:
    """By this checkout's code."""
    assert result.environment is not None
    assert result.ingredients is not None
    versions = " ".join(f"{name}=={version}" for name, version in result.environment.packages.items())
    row = Row.model_validate(result.row)
    here = identity.ingredients(row, result.ingredients.weights).model_copy(update={"versions": versions})
    update = {"ingredients": here, "fingerprint": identity.fingerprint_of(row, here)}
    return result.model_copy(update=update)


def test_rows_of_other_versions_stand_in_no_ratio_and_the_versions_stand_in_its_place(tmp_path: Path) -> None:
    for seed in (1, 2):
        attempt(tmp_path, REFERENCE, seed=seed, minutes=seed)
        newer = fake_result(COMPILED, seed=seed + 10, minutes=seed, median_seconds=3.9)
        write_attempt(tmp_path, as_installed_by_hand(with_packages(newer, torch="2.13.0")))
    case = rendered(tmp_path).pages[0].sections[0].cases[0]
    why = "not compared: torch 2.13.0 against 2.11.0"
    line = next(line for line in case.comparison.lines if line.best)
    entry = dict(zip((c.title for c in case.comparison.columns), line.entries, strict=True))["Speed-up"]
    assert (entry.text, entry.note) == ("–", why)
    assert case.gains.layers == ()
    (layers,) = (each for each in case.side if each.title.startswith("Gains by layer"))
    assert [entry.text for entry in layers.lines[0].entries[-2:]] == ["–", "–"]
    assert layers.lines[0].entries[-2].note == why
    assert case.answer is not None
    assert why in case.answer.beside_the_reference


def test_another_driver_is_no_gain_and_what_an_option_brings_along_is_no_difference(tmp_path: Path) -> None:
    for seed in (1, 2):
        attempt(tmp_path, REFERENCE, seed=seed, minutes=seed)
    write_attempt(tmp_path, with_packages(fake_result(COMPILED, median_seconds=3.9), **{"fa3-fwd": "0.0.3"}))
    assert texts(comparison(rendered(tmp_path)), "bf16 + inductor")["Speed-up"] == "1.35× FASTER"
    quantised = fake_result(fake_row(row="5", quantization="gguf-q8_0", parent="2"), median_seconds=3.0)
    assert quantised.environment is not None
    quantised.environment.driver = "590.1"
    write_attempt(tmp_path, quantised)
    table = comparison(rendered(tmp_path))
    assert texts(table, "bf16 + gguf-q8_0")["Speed-up"] == "–"
    assert any(
        "driver 590.1 against 580.65.06" in entry.note for line in table.lines for entry in line.entries
    )


def test_a_row_is_stale_by_the_packages_that_this_checkout_locks_and_not_by_those_installed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "packages", lambda: {"torch": "9.9"})
    attempt(tmp_path, REFERENCE)
    write_attempt(tmp_path, as_installed_by_hand(fake_result(fake_row(row="3", precision="fp16"))))
    older = with_packages(fake_result(COMPILED, median_seconds=3.9), torch="2.9.0")
    write_attempt(tmp_path, as_installed_by_hand(older))
    assert dict(zip(("inductor", "reference", "fp16"), tags(tmp_path), strict=True)) == {
        "inductor": ("stale",),
        "reference": ("reference",),
        "fp16": (),
    }
    assert "than measured here for 1 of 3 rows, tagged stale: torch 2.9.0 (locked 2.11.0)" in banner(tmp_path)


@pytest.mark.parametrize(("lock", "stale"), [("torch", False), (None, True)])
def test_a_row_measured_from_a_lock_is_stale_when_this_checkout_has_it_no_more(
    tmp_path: Path, lock: str | None, stale: bool
) -> None:
    versions = locks.lock_sha256(lock) if lock else "0" * 64
    here = identity.ingredients(REFERENCE, "synthetic", f"{versions} with torch==2.11.0")
    update = {"ingredients": here, "fingerprint": identity.fingerprint_of(REFERENCE, here)}
    write_attempt(tmp_path, fake_result(REFERENCE).model_copy(update=update))
    assert ("locks other packages than measured here" in banner(tmp_path)) is stale


def test_the_heading_of_a_configuration_names_the_versions_that_measured_it(tmp_path: Path) -> None:
    attempt(tmp_path, REFERENCE)
    newer = with_packages(fake_result(COMPILED, minutes=60), torch="2.13.0")
    write_attempt(tmp_path, newer)
    (page,) = rendered(tmp_path).pages
    lines = list(markdown.configurations(page, page.sections[0]))
    hardware = {
        heading.rpartition(", ")[2].strip(): lines[index + 1]
        for index, heading in enumerate(lines)
        if heading.startswith("#### Configuration")
    }
    assert "torch 2.11.0" in hardware["bf16"]
    assert "torch 2.13.0" in hardware["bf16 + inductor"]
