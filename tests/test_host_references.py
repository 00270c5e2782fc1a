"""The reference between the rows of a campaign: when it runs again, and what its drift does to others."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaigns import saved, start_driver
from fakes import fake_row

from bench.config import COMPARISON
from bench.host.references import References
from bench.matrix import Row
from bench.record import Code

pytestmark = pytest.mark.usefixtures("apart")


def rows(count: int) -> list[Row]:
    """The reference, and rows of other attention steps beside it."""
    others = [fake_row(row=str(n), attention="cudnn", steps=n) for n in range(2, count + 2)]
    return [fake_row(row="1"), *others]


def ran(results: Path) -> list[str]:
    return [str(result.row["row"]) for result in saved(results)]


def test_the_reference_runs_at_both_ends_and_every_few_rows(tmp_path: Path) -> None:
    many = COMPARISON.reference_every + 2
    driver = start_driver(tmp_path / "results", rows(many), gpus=1)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, said
    order = ran(tmp_path / "results")
    assert [place for place, row in enumerate(order) if row == "1"] == [
        0,
        COMPARISON.reference_every + 1,
        many + 2,
    ]


def test_rows_between_references_that_disagree_are_suspect_and_run_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_REFERENCE", "5.0,5.2")
    results = tmp_path / "results"
    said, _ = start_driver(results, rows(2), gpus=1).communicate(timeout=60)
    assert ran(results).count("2") == 2
    first, second = [result for result in saved(results) if result.row["row"] == "2"]
    by_age = sorted((first, second), key=lambda result: result.attempt)
    assert by_age[0].status.code is Code.SUSPECT
    assert by_age[0].cells[0].latency is not None, "the values are kept"
    assert "took 5.000 s before and 5.200 s after (+4.0%)" in by_age[0].status.reason
    assert by_age[1].status.code is Code.OK, "measured again between references that agree"
    assert "suspect" in said


def test_references_that_agree_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_REFERENCE", "5.0,5.05")
    results = tmp_path / "results"
    start_driver(results, rows(2), gpus=1).communicate(timeout=60)
    assert {result.status.code for result in saved(results)} == {Code.OK}
    assert sorted(ran(results)) == ["1", "1", "2", "3"]


def test_a_campaign_that_begins_with_other_rows_runs_the_reference_first() -> None:
    reference, other = rows(1)
    watch = References([other, reference])
    due = watch.due(other)
    assert due is not None
    assert due.row == reference
    assert watch.due(other) is None, "asked for once: one that cannot run holds nothing up"


def test_rows_on_the_cpu_and_rows_without_a_reference_are_not_watched() -> None:
    _, other = rows(1)
    assert References([fake_row(hardware="cpu")]).due(fake_row(hardware="cpu", attention="cudnn")) is None
    assert References([other]).due(other) is None


def test_a_reference_that_begins_to_fail_is_not_run_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ran well first; at the end it is asked for once, fails, and the campaign is over."""
    monkeypatch.setenv("STANDIN_REFERENCE", "5.0,nan")
    results = tmp_path / "results"
    driver = start_driver(results, rows(2), gpus=1)
    said, _ = driver.communicate(timeout=60)
    assert ran(results).count("1") == 2, said
    assert driver.returncode == 1, "the failed reference is told"


def test_rows_of_several_gpus_stand_between_references_on_one_of_them() -> None:
    reference = fake_row(row="1", hardware="h200x1")
    several = fake_row(row="2", hardware="h200x2", parallel="ulysses2")
    watch = References([reference, several])
    due = watch.due(several)
    assert due is not None
    assert due.row == reference
    assert watch.due(fake_row(row="3", hardware="h100x2", parallel="ulysses2")) is None, "another GPU's"
