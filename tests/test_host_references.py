"""The reference between the rows of a campaign: when it runs again, and what its drift does to others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaigns import saved, start_driver
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench import layout
from bench.config import COMPARISON, QUICK, SINGLE
from bench.host import packing
from bench.host.fanout import Plan, Settings, Wanting, make_plan
from bench.host.gpus import Gpu
from bench.host.references import References
from bench.host.words import plan_lines
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


def test_the_plan_counts_the_references_that_will_run_between_the_rows(tmp_path: Path) -> None:
    gpus = [Gpu(n, "NVIDIA H100 80GB HBM3", f"GPU-{n}", int(85e9)) for n in range(2)]
    settings = Settings(tmp_path, "synthetic", QUICK, (SINGLE,), price_per_gpu_hour=2.5)
    chosen = rows(COMPARISON.reference_every + 2)
    plan = make_plan(chosen, Wanting(settings, gpus))
    (between,) = packing.repeats(plan, settings, gpus[:1])
    assert (between.row.row, between.attempts) == ("1", 2), "as in the test above"
    (between,) = packing.repeats(plan, settings, gpus)
    assert between.attempts == 3, "two GPUs open and close; one opening is the row itself"
    text = "\n".join(plan_lines(plan, settings, gpus[:1], every_row=False))
    work = [*plan.to_run, *packing.repeats(plan, settings, gpus[:1])]
    hours = sum(plan.seconds(item, QUICK) for item in work) / 3600
    assert f"{hours:.2f} GPU-hours (estimates)" in text
    assert f"at 2.5 a GPU-hour: about {hours * 2.5:.2f}" in text
    assert "row 1 (bf16 on h100x1, txt2img) again between the rows and after them" in text


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


# --- References that nobody chose --------------------------------------------------------------------

MATRIX = [
    fake_row(row="1"),
    *(fake_row(row=str(n), attention=name) for n, name in enumerate(("cudnn", "native-flash", "flash3"), 2)),
    fake_row(row="11", task="img2img"),
    fake_row(row="12", task="img2img", vae="tiled"),
]
ONE_GPU = [Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-0", int(85e9))]


def planned(results: Path, chosen: list[Row], matrix: list[Row] = MATRIX, **asked: Any) -> Plan:
    settings = Settings(results, "synthetic", QUICK, (SINGLE,), **asked)
    return make_plan(chosen, Wanting(settings, ONE_GPU), matrix)


def test_rows_without_their_reference_get_it_first_and_last(tmp_path: Path) -> None:
    results = tmp_path / "results"
    driver = start_driver(results, MATRIX[1:4], MATRIX, gpus=1)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, said
    assert "3 rows chosen and 1 reference added, 4 to run" in said
    assert ran(results) == ["1", "4", "2", "3", "1"]
    said, _ = start_driver(results, MATRIX[1:4], MATRIX, gpus=1).communicate(timeout=60)
    assert "3 rows chosen and 1 reference added, 0 to run" in said
    assert len(ran(results)) == 5, "the same command runs nothing again"


def test_the_plan_names_the_added_references_with_their_hours_and_price(tmp_path: Path) -> None:
    plan = planned(tmp_path, [MATRIX[1], MATRIX[5]])
    assert [item.row.row for item in plan.to_run] == ["1", "2", "11", "12"]
    settings = Settings(tmp_path, "synthetic", QUICK, (SINGLE,), price_per_gpu_hour=100)
    text = "\n".join(plan_lines(plan, settings, ONE_GPU, every_row=True))
    hours = sum(plan.seconds(item, QUICK) for item in plan.to_run if item.row.is_reference) / 3600
    assert "2 rows chosen and 2 references added, 4 to run" in text
    assert "references added, as the chosen rows lack theirs: rows 1, 11, about " in text
    assert f"{hours:.2f} GPU-hours, {hours * 100:.2f} at 100 each" in text
    assert "1. row 1 (bf16 on h100x1, txt2img) 1x1: about" in text


@pytest.mark.parametrize(
    "chosen",
    [
        [MATRIX[0], MATRIX[1]],
        [fake_row(row="2", hardware="cpu", vae="tiled")],
        [fake_row(row="2", hardware="a100x1", vae="tiled")],
        [fake_row(row="2", steps=4, vae="tiled")],
    ],
    ids=["chosen already", "on the CPU", "of hardware that is not here", "not in the matrix"],
)
def test_no_reference_is_added(tmp_path: Path, chosen: list[Row]) -> None:
    others = [fake_row(row="21", hardware="cpu"), fake_row(row="22", hardware="a100x1")]
    plan = planned(tmp_path, chosen, [*MATRIX, *others])
    assert plan.added == frozenset()
    assert len(plan.decisions) == len(chosen)


def test_rows_of_several_gpus_get_the_reference_of_one(tmp_path: Path) -> None:
    several = fake_row(row="9", hardware="h100x2", parallel="ulysses2")
    gpus = [replace(ONE_GPU[0], index=n, uuid=f"GPU-{n}") for n in range(2)]
    settings = Settings(tmp_path, "synthetic", QUICK, None)
    plan = make_plan([several], Wanting(settings, gpus), MATRIX)
    assert [item.row.row for item in plan.to_run] == ["1", "9"]


def test_what_another_machine_has_done_asks_for_no_reference_here(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "synthetic", QUICK, (SINGLE,), elsewhere=True)
    for row in (MATRIX[1], MATRIX[5]):
        fingerprint = Wanting(settings, ONE_GPU).fingerprint(row)
        done = fake_result(row, fingerprint=fingerprint, budget="quick", host=1, shapes=(SINGLE,))
        write_attempt(tmp_path, done, telemetry=False)
    plan = planned(tmp_path, [MATRIX[1], MATRIX[2], MATRIX[5]], elsewhere=True)
    assert [item.row.row for item in plan.to_run] == ["1", "3"]


def test_each_gpu_runs_the_added_reference_of_the_use_cases_that_it_takes(tmp_path: Path) -> None:
    results = tmp_path / "results"
    driver = start_driver(results, [*MATRIX[1:4], MATRIX[5]], MATRIX, gpus=2, pack=True)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, said
    hosts: dict[str, set[str]] = {}
    for result in saved(results):
        assert result.environment is not None
        hosts.setdefault(result.environment.host_id, set()).add(str(result.row["row"]))
    for there in hosts.values():
        assert there.isdisjoint({"2", "3", "4"}) or "1" in there
        assert "12" not in there or "11" in there


@pytest.mark.parametrize(
    ("gpu", "order"),
    [("GPU-2", ["1", "11", "13", "2", "12", "1"]), ("GPU-1", ["1", "13", "2", "11", "12", "1"])],
    ids=["of none of the rows", "of the wide row only"],
)
def test_gpus_run_the_reference_that_another_gpu_of_the_machine_has_done(
    tmp_path: Path, gpu: str, order: list[str]
) -> None:
    results = tmp_path / "results"
    wide = fake_row(row="13", hardware="h100x2", task="img2img", parallel="ulysses2")
    settings = Settings(results, "synthetic", QUICK, (SINGLE,))
    for row in (MATRIX[0], MATRIX[4]):
        fingerprint = Wanting(settings, ONE_GPU).fingerprint(row)
        done = fake_result(row, fingerprint=fingerprint, budget="quick", shapes=(SINGLE,), n=13)
        assert done.environment is not None
        there = done.environment.model_copy(update={"host_id": gpu})
        write_attempt(results, done.model_copy(update={"environment": there}), images=True, telemetry=False)
    chosen = [MATRIX[1], MATRIX[5], wide]
    driver = start_driver(results, chosen, MATRIX, gpus=3)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, said
    assert "3 rows chosen and 2 references added, 3 to run" in said
    assert ran(results)[2:] == order, "the first two were there before"


def test_finalists_run_their_reference_as_often_as_the_budget_asks(tmp_path: Path) -> None:
    wide = fake_row(row="9", hardware="h100x2", parallel="ulysses2")
    driver = start_driver(tmp_path / "results", [wide], MATRIX, gpus=2, budget="standard")
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, said
    assert ran(tmp_path / "results") == ["1", "9", "1", "9", "1"]
    assert "left out" not in said


def test_an_added_reference_comes_first_under_a_time_limit(tmp_path: Path) -> None:
    plan = planned(tmp_path, MATRIX[1:4])
    reference, *others = (plan.seconds(item, QUICK) for item in plan.to_run)
    limit = (reference + min(others) / 2) / 3600
    driver = start_driver(tmp_path / "results", MATRIX[1:4], MATRIX, gpus=1, max_hours=limit)
    said, _ = driver.communicate(timeout=60)
    assert f"--max-hours {limit:g}: about 1 of 4 rows fit" in said
    assert ran(tmp_path / "results")[0] == "1"


def test_a_reference_whose_pictures_are_gone_runs_once_more_where_rows_need_them(tmp_path: Path) -> None:
    results = tmp_path / "results"
    start_driver(results, MATRIX[:1], gpus=1).communicate(timeout=60)
    (folder,) = layout.attempts(results)
    assert planned(results, MATRIX[:2]).to_run[0].row.row == "2"
    shutil.rmtree(folder / layout.IMAGES)
    assert planned(results, MATRIX[:1]).to_run == [], "nobody needs them"
    again = planned(results, MATRIX[:2]).to_run[0]
    assert (again.row.row, again.cells) == ("1", (SINGLE,))
    said, _ = start_driver(results, MATRIX[:2], gpus=1).communicate(timeout=60)
    assert ran(results) == ["1", "1", "2", "1"], said
    assert planned(results, MATRIX[:2]).to_run == []
