"""Rows side by side, one per GPU, with real processes: a stand-in runner, GPUs that are names."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaigns import codes, is_alive, saved, start_driver, wait_for
from fakes import fake_row

from bench import layout
from bench.config import FULL, PROBE, SINGLE
from bench.host import packing
from bench.host.fanout import Settings
from bench.host.plan import Action, Decision
from bench.matrix import Row
from bench.record import Code

LAYERS = ("cudnn", "native-flash", "flash2", "flash3")


pytestmark = pytest.mark.usefixtures("apart")


def rows(count: int, first: int = 1, **use_case: str) -> list[Row]:
    """A reference and others on one GPU."""
    numbers = range(first + 1, first + count)
    others = (fake_row(row=str(n), attention=LAYERS[n - first - 1], **use_case) for n in numbers)
    return [fake_row(row=str(first), **use_case), *others]


def campaign(results: Path, wanted: list[Row], **asked: Any) -> str:
    driver = start_driver(results, wanted, **{"gpus": 3, "pack": True, **asked})
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    return said


def gpus_of(folder: Path) -> str:
    found = re.search(r"gpus (\S+)", (folder / layout.LOG).read_text())
    assert found is not None
    return found[1]


def spans(results: Path) -> dict[Path, tuple[float, float]]:
    """attempt folder -> when its cell began and ended"""
    found = {}
    for folder in layout.attempts(results):
        events = [json.loads(line) for line in (folder / layout.EVENTS).read_text().splitlines()]
        found[folder] = (events[0]["t"], events[-1]["t"])
    return found


def in_order(results: Path) -> list[Path]:
    times = spans(results)
    return sorted(times, key=lambda folder: times[folder])


def at_once(results: Path) -> int:
    """The most attempts that were at work at one moment."""
    times = spans(results).values()
    return max(sum(begun <= moment < ended for begun, ended in times) for moment, _ in times)


def test_screening_rows_run_side_by_side_beside_their_reference_and_wide_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_SECONDS", "2")
    monkeypatch.setenv("STANDIN_REFERENCE", "5.0,5.05")
    results = tmp_path / "results"
    wide = fake_row(row="9", hardware="h100x2", parallel="ulysses2")
    said = campaign(results, [*rows(3), *rows(2, first=5, task="img2img"), wide])
    assert "rows of one GPU run side by side, 3 at once" in said
    assert at_once(results) > 1, "three where the machine is not busy with other things"
    *narrow, alone, closing = in_order(results)
    assert (alone.parent.parent.name, gpus_of(alone)) == ("row-0009", "GPU-0,GPU-1")
    assert all(spans(results)[folder][1] <= spans(results)[alone][0] for folder in narrow)
    assert closing.parent.parent.name == "row-0001", "wide rows stand between references of one such GPU"
    assert spans(results)[alone][1] <= spans(results)[closing][0]
    ran: dict[str, list[str]] = {}
    for folder in narrow:
        before = ran.setdefault(gpus_of(folder), [])
        row = folder.parent.parent.name
        references = {"row-0002": "row-0001", "row-0003": "row-0001", "row-0006": "row-0005"}
        assert references.get(row, row) in [*before, row], f"{row} has no reference on its GPU: {ran}"
        before.append(row)
    assert sorted(ran) == ["GPU-0", "GPU-1", "GPU-2"]
    # What packing costs: the very first attempt was alone, the next of this GPU beside those of the others.
    (path,) = results.glob("hosts/*/packing.json")
    cost = packing.read(path)
    assert cost is not None
    assert (cost.alone_seconds, cost.packed_seconds) == (5.0, 5.05)
    assert "takes 5.000 s alone and 5.050 s while 2 other GPUs work (+1.0%)" in said
    first, *later = narrow
    assert first.name == cost.alone_attempt
    assert all(spans(results)[folder][0] >= spans(results)[first][1] for folder in later)


def test_what_packing_costs_is_measured_once_for_these_gpus(tmp_path: Path) -> None:
    results = tmp_path / "results"
    path = layout.packing_path(results, ["GPU-0", "GPU-1"])
    known = packing.PackingCost(
        gpu="GPU-0",
        gpus=2,
        row="1",
        fingerprint="f",
        alone_seconds=5.0,
        packed_seconds=5.2,
        alone_attempt="a",
        packed_attempt="b",
        measured_at="2026-11-23T00:00:00+00:00",
    )
    packing.write(path, known)
    said = campaign(results, rows(2), gpus=2)
    assert packing.read(path) == known
    assert "(+4.0%); more than 2%: --no-pack measures one row at a time" in said
    first, second, *_ = in_order(results)
    assert gpus_of(first) != gpus_of(second), "no reference ran alone before"


def test_finalists_run_alone_on_one_gpu(tmp_path: Path) -> None:
    results = tmp_path / "results"
    campaign(results, rows(2)[1:], budget="standard")
    assert [gpus_of(folder) for folder in spans(results)] == ["GPU-0"] * 2
    assert not list(results.glob("hosts/*"))


def wanted(*chosen: Row) -> list[Decision]:
    return [Decision(row, Action.RUN, "new") for row in chosen]


def test_a_gpu_keeps_to_the_use_case_whose_reference_it_has_and_helps_out_at_the_end() -> None:
    text, image = rows(3), rows(3, first=11, task="img2img")
    queue = wanted(text[0], image[0], text[1], image[1])
    of_text, of_image = text[0].group, image[0].group
    assert packing.pick(queue, own=[], begun=[]) == queue[0]
    assert packing.pick(queue[1:], own=[], begun=[of_text]) == queue[1]
    assert packing.pick(queue[1:], own=[of_text], begun=[of_text]) == queue[2]
    assert packing.pick(queue[3:], own=[of_text], begun=[of_text, of_image]) == queue[3]
    assert packing.pick([], own=[of_text], begun=[]) is None


def test_only_screening_rows_of_one_gpu_are_packed(tmp_path: Path) -> None:
    one, wide, cpu = fake_row(), fake_row(hardware="h100x2", parallel="ulysses2"), fake_row(hardware="cpu")
    settings = Settings(tmp_path, "synthetic", PROBE, (SINGLE,))
    assert packing.packed(wanted(one, wide, cpu), settings) == [wanted(one)]
    assert packing.packed(wanted(one), replace(settings, budget=FULL)) == []
    assert packing.packed(wanted(one), replace(settings, pack=False)) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_fan_out_leaves_no_runner_and_every_row_at_work_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("STANDIN", "1x4=hang")
    results = tmp_path / "results"
    driver = start_driver(results, rows(4)[1:], gpus=3, pack=True, cells=[(1, 1), (1, 4)])

    def at_work() -> list[int]:
        texts = [
            (folder / layout.LOG).read_text()
            for folder in layout.attempts(results)
            if (folder / layout.EVENTS).exists() and '"cell 1x4"' in (folder / layout.EVENTS).read_text()
        ]
        return [int(match[1]) for text in texts if (match := re.search(r"pid (\d+)", text))]

    pids = wait_for(lambda: len(at_work()) == 3 and at_work())
    driver.send_signal(number)
    driver.communicate(timeout=30)
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
    assert driver.returncode == (143 if number is signal.SIGTERM else -9)
    assert [result.status.code for result in saved(results)] == [Code.INTERRUPTED] * 3
    assert [codes(result)["1x1"] for result in saved(results)] == ["ok"] * 3
