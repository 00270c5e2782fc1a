"""Two ranks, and one of them dies, hangs, raises or diverges: the row ends, says who and why, keeps what was
finished and leaves no process behind. Real ranks (gloo, Ulysses) on the tiny FLUX, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fakes import fake_row
from test_failures import assert_honest, campaign, codes, only_result
from warm_runner import WarmExecutor, WarmServer

from bench import identity, layout, record
from bench.config import SINGLE, Shape
from bench.host.local import Job
from bench.record import Code, Result

ULYSSES = fake_row(hardware="cpu", precision="fp32", steps=2, parallel="ulysses2")
REPLICAS = fake_row(hardware="cpu", precision="fp32", steps=2, parallel="replicas")
CELLS = (SINGLE, Shape(1, 2))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    with WarmServer(tmp_path_factory.mktemp("warm")) as running:
        yield running


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(identity, "code_sha256", lambda row: "frozen")


def ended(server: WarmServer, results: Path, fault: str, **variables: str) -> Result:
    """The row under a fault; nothing of it is left, and its files are whole."""
    executor = WarmExecutor(server, FAULT=fault, **variables)
    campaign(results, executor, row=ULYSSES, cells=CELLS)
    assert_honest(results, executor)
    return only_result(results)


@pytest.mark.parametrize(
    ("what", "code", "says", "log"),
    [
        ("kill", Code.CRASHED, "killed by SIGKILL", ""),
        ("segfault", Code.CRASHED, "killed by SIGSEGV", "in strike"),
        ("raise", Code.CRASHED, "is broken; rank-1.log holds the whole traceback", "this request is"),
        ("stop", Code.TIMEOUT, "was stopped for 2 s", "in strike"),
        ("hang", Code.TIMEOUT, "did not answer for", "in strike"),
        ("nan", Code.INVALID_OUTPUT, "NaN", ""),
        ("diverge", Code.INVALID_OUTPUT, "of 255 levels away", ""),
    ],
)
def test_a_rank_that_fails_ends_the_row_in_its_own_name_and_keeps_what_was_finished(
    server: WarmServer, tmp_path: Path, what: str, code: Code, says: str, log: str
) -> None:
    result = ended(server, tmp_path, f"{what}@request x2 on rank 1")
    assert result.status.code is code, result.status
    assert result.status.reason.startswith("rank 1 of 2")
    assert says in result.status.reason
    assert log in "\n".join(result.status.log_tail)
    assert codes(result) == {"1x1": "ok", "1x2": code.value}
    assert result.cells[0].latency is not None


def test_a_rank_that_hangs_is_named_and_asked_where_also_when_the_others_give_up_first(
    server: WarmServer, tmp_path: Path
) -> None:
    result = ended(server, tmp_path, "hang@request x2 on rank 1", ENDS_FIRST="collective_seconds")
    assert result.status.code is Code.TIMEOUT, result.status
    assert result.status.reason.startswith("rank 1 of 2 did not answer, and the others waited in vain")
    assert "in strike" in "\n".join(result.status.log_tail)
    assert codes(result) == {"1x1": "ok", "1x2": "timeout"}


def test_the_rank_that_others_wait_for_may_be_the_first(server: WarmServer, tmp_path: Path) -> None:
    result = ended(server, tmp_path, "kill@request x1 on rank 0")
    assert result.status.code is Code.CRASHED
    assert "rank 0 of 2: the runner was killed by SIGKILL" in result.status.reason
    assert codes(result) == {"1x1": "crashed", "1x2": "crashed"}


def test_ranks_that_hold_other_weights_never_measure(server: WarmServer, tmp_path: Path) -> None:
    result = ended(server, tmp_path, "differ@load on rank 1")
    assert result.status.code is Code.INVALID_OUTPUT
    assert "rank 1 of 2: it holds other weights" in result.status.reason
    assert all(cell.latency is None for cell in result.cells)


def test_ranks_that_agree_on_another_picture_than_one_process_paints_have_no_number(
    server: WarmServer, tmp_path: Path
) -> None:
    result = ended(server, tmp_path, "wrong@sharing")
    assert result.status.code is Code.INVALID_OUTPUT
    assert "the latents of 2 ranks together are" in result.status.reason
    assert result.agreement is not None
    assert result.agreement.latent_relative_error > result.agreement.tolerance
    assert codes(result) == {"1x1": "invalid_output", "1x2": "invalid_output"}


def test_a_rank_without_the_memory_to_paint_alone_costs_the_comparison_and_not_the_row(
    server: WarmServer, tmp_path: Path
) -> None:
    """On one of two, so that the other must not wait for it."""
    result = ended(server, tmp_path, "memory@alone on rank 1")
    assert result.status.code is Code.OK, result.status
    assert result.agreement is None
    assert codes(result) == {"1x1": "ok", "1x2": "ok"}


def test_a_package_that_ranks_lack_ends_the_row_before_weights_are_loaded(
    server: WarmServer, tmp_path: Path
) -> None:
    """Of an option that is applied last, when one rank has painted alone."""
    row = ULYSSES.model_copy(update={"vae": "parallel"})
    executor = WarmExecutor(server, FAULT="lack@distvae.vae.parallel")
    campaign(tmp_path, executor, row=row, cells=CELLS)
    result = only_result(tmp_path)
    assert result.status.code is Code.UNAVAILABLE
    assert "vae parallel needs DistVAE" in result.status.reason
    assert [phase.name for phase in result.phases] == ["idle", "imports"]


def test_a_replica_that_fails_a_request_costs_that_cell_alone(server: WarmServer, tmp_path: Path) -> None:
    executor = WarmExecutor(server, FAULT="memory@request x2 on rank 1")
    campaign(tmp_path, executor, row=REPLICAS, cells=(SINGLE, Shape(1, 2), Shape(4, 1)))
    assert_honest(tmp_path, executor)
    result = only_result(tmp_path)
    assert codes(result) == {"1x1": "ok", "1x2": "oom", "4x1": "ok"}
    assert "rank 1 of 2" in result.status.reason


def test_the_command_itself_starts_its_ranks_and_survives_the_death_of_one(tmp_path: Path) -> None:
    """Nothing forked, nothing patched: `fluxbench run`, its two processes, SIGKILL while they serve."""
    command = [sys.executable, "-m", "bench", "run", f"--row-json={ULYSSES.model_dump_json()}"]
    command += ["--budget=quick", "--cells=1x1", "--no-quality", f"--attempt-dir={tmp_path}"]
    with (tmp_path / layout.LOG).open("wb") as log:
        runner = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (tmp_path / layout.REQUESTS).exists() or not (tmp_path / layout.REQUESTS).read_text():
        assert runner.poll() is None, (tmp_path / layout.LOG).read_text()
        time.sleep(0.05)
    ranks = [each for each in psutil.Process(runner.pid).children() if "bench.runner.rank" in each.cmdline()]
    assert len(ranks) == 2
    ranks[1].kill()
    assert runner.wait(60) == 3
    assert not psutil.wait_procs(ranks, timeout=5)[1]
    result = record.load(tmp_path / layout.RESULT)
    assert result.status.code is Code.CRASHED
    assert "killed by SIGKILL" in result.status.reason
    assert result.status.log_tail
    said = (tmp_path / layout.LOG).read_text()
    assert "\n".join([result.status.reason, *result.status.log_tail]) in said
    assert "Traceback" not in said, "where the conductor noticed it is no help"


# --- The conductor ends ------------------------------------------------------------------------------


def started(server: WarmServer, folder: Path, fault: str = "") -> tuple[WarmExecutor, list[psutil.Process]]:
    """A runner, and its ranks, once they serve."""
    executor = WarmExecutor(server, FAULT=fault)
    attempt = folder / "attempt"
    attempt.mkdir()
    executor.start(Job(ULYSSES, "tiny", "probe", CELLS, attempt))
    requests = attempt / layout.REQUESTS
    deadline = time.monotonic() + 120
    while not (requests.exists() and requests.read_text()):
        assert time.monotonic() < deadline, (attempt / layout.LOG).read_text()
        time.sleep(0.05)
    group = executor.handles[0].pid
    ranks = [each for each in psutil.Process(group).children() if "sampler" not in " ".join(each.cmdline())]
    assert len(ranks) == 2
    return executor, ranks


def test_ranks_die_with_a_conductor_that_is_killed(server: WarmServer, tmp_path: Path) -> None:
    executor, ranks = started(server, tmp_path, fault="hang@request x2 on rank 1")
    os.kill(executor.handles[0].pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


def test_a_row_of_ranks_that_is_asked_to_stop_keeps_its_cells_and_ends_them(
    server: WarmServer, tmp_path: Path
) -> None:
    executor, ranks = started(server, tmp_path, fault="hang@request x2 on rank 1")
    attempt = tmp_path / "attempt"
    while '"warm-up x2"' not in (attempt / layout.EVENTS).read_text():
        time.sleep(0.05)
    executor.handles[0].stop()
    exit_ = executor.handles[0].wait(60)
    assert exit_ is not None
    assert exit_.code == 3
    assert not psutil.wait_procs(ranks, timeout=5)[1]
    result = record.load(attempt / layout.RESULT)
    assert result.status.code is Code.INTERRUPTED
    assert codes(result) == {"1x1": "ok", "1x2": "interrupted"}
