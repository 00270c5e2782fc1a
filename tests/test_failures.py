"""Hard to hurt: the real runner on the tiny FLUX, killed, starved, hung and fed nonsense. Whatever happens,
what is on disk is whole and true, and no finished cell is lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_row
from host_faults import small_disk
from rich.console import Console
from warm_runner import WarmExecutor, WarmServer

from bench import identity, layout, record
from bench.config import PROBE, SINGLE, Shape
from bench.host.campaign import Campaign
from bench.host.fanout import Settings, Wanting, make_plan
from bench.host.leases import Lease
from bench.host.outcome import Summary
from bench.host.progress import PlainDisplay
from bench.host.supervise import Stop
from bench.matrix import Row
from bench.record import Code, Result

__all__ = ["small_disk"]  # a fixture

ROW = fake_row(hardware="cpu", precision="fp32", steps=2)
CELLS = (SINGLE, Shape(1, 4))
SEED = 20261122
RANDOM_KILLS = 20

PHASES = (
    "idle",
    "imports",
    "load",
    "quantise",
    "apply",
    "warm-up x1",
    "verify",
    "cell 1x1",
    "warm-up x4",
    "cell 1x4",
    "quality",
)


SAVINGS = ("saving 1", "saving 2", "saving 3", "saving 4")
"""The opening, one for each cell, the last word."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    with WarmServer(tmp_path_factory.mktemp("warm")) as running:
        yield running


@pytest.fixture(autouse=True)
def _apart(own_leases: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # As in the warm runner: an edit of the code while these tests run makes no difference to them.
    monkeypatch.setattr(identity, "code_sha256", lambda row: "frozen")


def campaign(results: Path, executor: WarmExecutor, row: Row = ROW, **changes: Any) -> Summary:
    """A row, run by a campaign without leases or signal handlers, so that several fit into one process."""
    results.mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {"weights": "synthetic", "budget": PROBE, "cells": CELLS, "grace_seconds": 2.0}
    wanting = Wanting(Settings(results=results, **{**defaults, **changes}), [])
    display = PlainDisplay(Console(file=io.StringIO()))
    return Campaign(make_plan([row], wanting), wanting, executor, Lease((), ()), display, Stop()).run()


def only_result(results: Path) -> Result:
    (folder,) = layout.attempts(results)
    return record.load(folder / layout.RESULT)


def codes(result: Result) -> dict[str, str]:
    return {str(cell.shape): cell.status.code.value for cell in result.cells}


def assert_honest(results: Path, executor: WarmExecutor) -> None:
    """Whole files, every finished cell in them, no number without its requests, no process left."""
    for folder in layout.attempts(results):
        result = record.load(folder / layout.RESULT)
        assert not list(folder.glob(".*.tmp"))
        assert set(finished_cells(folder)) <= {cell for cell, code in codes(result).items() if code == "ok"}
        for cell in result.cells:
            if cell.latency is not None:
                requests = measured_requests(folder, str(cell.shape))
                assert len(cell.latency.raw) == cell.n <= requests
        if result.status.code is not Code.OK:
            assert result.status.reason
        assert result.environment is not None
    for handle in executor.handles:
        wait_until_gone(handle.pid)


def finished_cells(folder: Path) -> list[str]:
    """Cells after which another phase began: those the runner had put on record."""
    lines = (folder / layout.EVENTS).read_text().splitlines() if (folder / layout.EVENTS).exists() else []
    phases = list(dict.fromkeys(json.loads(line)["phase"] for line in lines if line.endswith("}")))
    return [phase.removeprefix("cell ") for phase in phases[:-1] if phase.startswith("cell ")]


def measured_requests(folder: Path, cell: str) -> int:
    lines = (folder / layout.REQUESTS).read_text().splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return sum(request["cell"] == cell for request in whole)


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 10
    while any_alive(group):
        assert time.monotonic() < deadline, f"a process of group {group} is left"
        time.sleep(0.02)


def any_alive(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def two_at_a_time(run: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Two cores; the first failure is raised."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, items))


# --- SIGKILL -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_seconds(server: WarmServer, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long the row takes when nothing goes wrong; that nothing does is asserted too."""
    results = tmp_path_factory.mktemp("whole")
    begun = time.monotonic()
    summary = campaign(results, WarmExecutor(server))
    result = only_result(results)
    assert result.status.code is Code.OK, result.status
    assert codes(result) == {"1x1": "ok", "1x4": "ok"}
    assert {phase.name for phase in result.phases} == set(PHASES), "a row is killed in each of them"
    assert summary.failed_rows() == []
    return time.monotonic() - begun


def test_sigkill_at_each_phase_and_each_write_leaves_an_honest_result(
    server: WarmServer, results: Path
) -> None:
    def kill_at(where: str) -> None:
        executor = WarmExecutor(server, FAULT=f"kill@{where}")
        folder = results / where.replace(" ", "-")
        summary = campaign(folder, executor)
        assert_honest(folder, executor)
        result = only_result(folder)
        assert result.status.code is Code.CRASHED, where
        assert "SIGKILL" in result.status.reason
        assert result.status.log_tail or where in ("idle", "saving 1")
        assert [row.row for row in summary.failed_rows()] == ["1"]
        after_first_cell = ("warm-up x4", "cell 1x4", "quality", "saving 3", "saving 4")
        assert codes(result)["1x1"] == ("ok" if where in after_first_cell else "crashed"), where

    two_at_a_time(kill_at, (*PHASES, *SAVINGS))


def test_sigkill_at_twenty_random_times_loses_no_finished_cell(
    server: WarmServer, results: Path, whole_seconds: float
) -> None:
    draw = random.Random(SEED)
    moments = [draw.uniform(0, whole_seconds) for _ in range(RANDOM_KILLS)]

    def kill_after(number: int) -> None:
        executor = WarmExecutor(server)
        folder = results / str(number)
        killer = threading.Thread(target=kill_first_runner, args=(executor, moments[number]))
        killer.start()
        campaign(folder, executor)
        killer.join()
        assert_honest(folder, executor)

    two_at_a_time(kill_after, range(RANDOM_KILLS))


def kill_first_runner(executor: WarmExecutor, seconds: float) -> None:
    while not executor.handles:
        time.sleep(0.005)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(executor.handles[0].pid, signal.SIGKILL)


def test_a_killed_row_goes_on_with_the_cells_that_are_missing(server: WarmServer, results: Path) -> None:
    campaign(results, WarmExecutor(server, FAULT="kill@cell 1x4"))
    executor = WarmExecutor(server)
    summary = campaign(results, executor, retry=True)
    assert summary.failed_rows() == []
    attempts = [codes(record.load(folder / layout.RESULT)) for folder in layout.attempts(results)]
    assert sorted(attempts, key=len) == [{"1x4": "ok"}, {"1x1": "ok", "1x4": "crashed"}]
    assert nothing_left(results)


def nothing_left(results: Path) -> bool:
    wanting = Wanting(Settings(results, "synthetic", PROBE, CELLS), [])
    return not make_plan([ROW], wanting).to_run


# --- Requests that go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("raise", Code.CRASHED, "this request is broken"),
        ("memory", Code.OOM, "memory"),
    ],
)
def test_a_request_that_raises_or_finds_no_memory_costs_its_cell(
    server: WarmServer, results: Path, fault: str, code: Code, says: str
) -> None:
    executor = WarmExecutor(server, FAULT=f"{fault}@request x4")
    summary = campaign(results, executor)
    assert_honest(results, executor)
    result = only_result(results)
    assert codes(result) == {"1x1": "ok", "1x4": code}
    assert result.status.code is code
    assert says in result.status.reason
    assert summary.failed_rows() == [ROW]


@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_a_hanging_request_ends_as_timeout_and_keeps_the_cells_before_it(
    server: WarmServer, results: Path, whole_seconds: float, fault: str
) -> None:
    executor = WarmExecutor(server, FAULT=f"{fault}@request x4")
    campaign(results, executor, timeout_seconds=2 * whole_seconds, grace_seconds=1.0)
    assert_honest(results, executor)
    result = only_result(results)
    assert result.status.code is Code.TIMEOUT
    assert codes(result) == {"1x1": "ok", "1x4": "timeout"}


def test_a_runner_asked_to_stop_keeps_its_cells_and_the_next_goes_on(
    server: WarmServer, results: Path
) -> None:
    executor = WarmExecutor(server, FAULT="hang@cell 1x4")
    stopper = threading.Thread(target=stop_at, args=(results, executor, "cell 1x4"))
    stopper.start()
    campaign(results, executor)
    stopper.join()
    assert_honest(results, executor)
    result = only_result(results)
    assert result.status.code is Code.INTERRUPTED
    assert codes(result) == {"1x1": "ok", "1x4": "interrupted"}
    campaign(results, WarmExecutor(server))
    assert nothing_left(results)


def stop_at(results: Path, executor: WarmExecutor, phase: str) -> None:
    while not any(f'"{phase}"' in path.read_text() for path in results.rglob(layout.EVENTS)):
        time.sleep(0.02)
    os.kill(executor.handles[0].pid, signal.SIGTERM)


@pytest.fixture(params=["NaN", "flat"])
def sick_weights(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The shipped weights, but that the decoder's last layer gives NaN, or the same for every pixel. The
    folder is called what the result should say."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / request.param
    shutil.copytree(identity.TINY_WEIGHTS, folder)
    (path,) = (folder / "vae").glob("*.safetensors")
    tensors = load_file(path)
    tensors["decoder.conv_out.weight"].fill_(float("nan") if request.param == "NaN" else 0.0)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_nan_and_constant_images_are_invalid_output_and_have_no_numbers(
    server: WarmServer, results: Path, sick_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "TINY_WEIGHTS", sick_weights)
    executor = WarmExecutor(server, TINY_WEIGHTS=str(sick_weights))
    summary = campaign(results, executor)
    assert_honest(results, executor)
    result = only_result(results)
    assert result.status.code is Code.INVALID_OUTPUT
    assert sick_weights.name in result.status.reason
    assert all(cell.latency is None for cell in result.cells)
    assert summary.failed_rows() == [ROW]


# --- A full disk -------------------------------------------------------------------------------------


def test_a_disk_that_fills_under_the_real_runner_loses_no_finished_cell(
    server: WarmServer, small_disk: Path
) -> None:
    executor = WarmExecutor(server, FAULT="fill@request x4")
    summary = campaign(small_disk / "results", executor)
    assert_honest(small_disk / "results", executor)
    result = only_result(small_disk / "results")
    assert result.status.code is Code.INFRA
    assert codes(result) == {"1x1": "ok", "1x4": "infra"}
    assert summary.broke_off is not None
    assert "free space" in summary.broke_off
