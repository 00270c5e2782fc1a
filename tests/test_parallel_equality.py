"""Ranks that share a request give the picture of one process; ranks that fail cost one case."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import correctness, equality, tryout
from bench.correctness import Case, Compared
from bench.matrix import BASELINE
from bench.rules import refusal
from bench.tryout_report import Correct


def case(task: str = "txt2img", control: str = "none", why: str = "", **changes: str) -> Case:
    row = tryout.tiny_row("cpu", BASELINE | changes, task, control, steps=6)
    axis = "vae" if "vae" in changes else "parallel"
    return axis, row.stack[axis], row.model_copy(update={"why": why})


TWO = (
    case(parallel="ulysses2", cache="fbcache-0.2"),
    case("inpaint", "canny", parallel="ulysses2", cache="teacache-0.25"),
    case("img2img", parallel="ring2", attention="native-flash"),
    case("txt2img", "canny", parallel="ring2", attention="native-flash"),
    case("img2img", "canny", parallel="tp2", cache="fbcache-0.2"),
    case("txt2img", "canny", parallel="fsdp2", cache="teacache-0.25"),
    case("inpaint", parallel="fsdp2"),
    case(parallel="ulysses2", vae="parallel"),
    case("txt2img", "canny", parallel="ulysses2", compilation="inductor-fused"),
)
"""Each method, each pipeline, both probes of caches; `fluxbench correctness --ranks 2` takes them all."""
FOUR = (
    case("txt2img", "canny", parallel="ulysses4", cache="fbcache-0.2"),
    case(parallel="ulysses2xring2", attention="native-flash"),
    case("inpaint", parallel="tp4"),
    case("img2img", parallel="fsdp4"),
)
"""What two ranks cannot show: two ways at once, one head a rank."""


@pytest.mark.parametrize(("ranks", "cases"), [(2, TWO), (4, FOUR)])
def test_ranks_give_the_latents_of_one_process(ranks: int, cases: tuple[Case, ...]) -> None:
    answers = list(equality.compare(cases, ranks, seconds_a_case=120))
    assert [(found.ended, found.reason) for found in answers] == [("constructed", "")] * len(cases)
    for found in answers:
        assert found.tolerance == correctness.EQUAL == 1e-5
        assert found.error is not None
        assert found.error <= 1e-5, found


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ranks that import nothing slow; none of them is left when the test ends."""
    monkeypatch.setattr(equality, "RANKS", "standin_ranks")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}")
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert left == []


@pytest.mark.parametrize(
    ("how", "ended", "reason"),
    [
        ("hangs", "timeout", "no answer in 3 s"),
        ("dies", "error", "rank 1: exit code 7: it cannot go on"),
        ("refuses", "unavailable", "rank 1: Unavailable: no such thing here"),
    ],
)
def test_a_rank_that_is_lost_costs_one_case_and_the_rest_get_new_ranks(
    standin: None, monkeypatch: pytest.MonkeyPatch, how: str, ended: str, reason: str
) -> None:
    monkeypatch.setattr(equality, "START_SECONDS", 60.0)
    asked = [
        case(parallel="ulysses2", why="answers"),
        case("img2img", parallel="ulysses2", why=how),
        case("inpaint", parallel="ulysses2", why="answers"),
        case("inpaint", "canny", parallel="ulysses8", why="answers"),
    ]
    found = list(equality.compare(asked, 2, seconds_a_case=3))
    assert [(each.task, each.ended) for each in found] == [
        ("txt2img", "constructed"),
        ("img2img", ended),
        ("inpaint", "constructed"),
        ("inpaint", "refused"),
    ]
    assert reason in found[1].reason
    assert found[3].reason.startswith("uneven-shares: 8 ranks do not divide the 4 attention heads")


def test_each_method_of_xdit_gets_ranks_of_its_own() -> None:
    cases = [case for case in equality.cases("h200x2", 2) if not refusal(case[2])]
    starts = {equality._start_of(case) for case in cases}
    xdit = {row.parallel for _, _, row in cases if row.parallel.startswith("xdit-")}
    assert len(xdit) == 4
    assert starts == {"diffusers"} | xdit


def test_a_whole_tree_of_processes_ends() -> None:
    shell = subprocess.Popen(["sh", "-c", "sleep 300 & sleep 300 & wait"])
    deadline = time.monotonic() + 10
    while len(tree := psutil.Process(shell.pid).children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    equality.end_tree(shell)
    assert not any(child.is_running() and child.status() != "zombie" for child in tree)
    equality.end_tree(shell)


def compared(**changes: Any) -> Compared:
    values = {
        "axis": "parallel",
        "option": "ulysses2",
        "task": "txt2img",
        "control": "none",
        "precision": "fp32",
        "ranks": 2,
        "ended": "constructed",
        "error": 2e-7,
        "tolerance": 1e-5,
        "held": True,
    }
    return Compared.model_validate(values | changes)


def test_the_table_has_a_line_a_method_and_marks_what_is_over_its_tolerance() -> None:
    table = equality.table(
        [
            compared(),
            compared(control="canny", error=0.3, held=False),
            compared(beside={"cache": "fbcache-0.2"}, ended="timeout", error=None, held=None, reason="late"),
        ]
    )
    assert table.splitlines() == [
        "| ranks | method | with | dtype | txt2img | txt2img+canny |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 2 | ulysses2 | - | fp32 | 2.0e-07 | **3.0e-01** (over 1e-05) |",
        "| 2 | ulysses2 | fbcache-0.2 | fp32 | timeout |  |",
        "",
        "- ulysses2, txt2img: timeout: late",
    ]


def test_the_page_says_what_its_numbers_are_how_many_hold_and_what_writes_it() -> None:
    found = Correct(
        hardware="cpu",
        packages={"torch": "2.13.0", "diffusers": "0.42.1", "numpy": "2.4.6"},
        compared=[compared(), compared(control="canny", error=0.3, held=False)],
    )
    text = equality.page(found)
    assert text.startswith("# Several ranks against one process: cpu\n")
    assert "1 of 2 comparisons within tolerance; packages: torch 2.13.0, diffusers 0.42.1." in text
    assert "`fluxbench correctness --ranks N --out FILE.json`" in text
    assert text.endswith("\n\n" + equality.table(found.compared))


def test_the_committed_table_is_what_its_json_says_and_all_of_it_holds() -> None:
    path = Path(__file__).parents[1] / "results" / "correctness" / "ranks-cpu.json"
    found = Correct.model_validate_json(path.read_bytes())
    assert path.with_suffix(".md").read_text() == equality.page(found)
    assert found.compared
    assert not found.failures()
