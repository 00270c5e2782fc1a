"""``construct`` and ``correctness`` in several processes: how they share a machine, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.commands import tryout

PROCESSES = 2


def threads(_item: object) -> tuple[int, int]:
    """Of torch, and of inductor's compiling, in the process that was asked."""
    import torch
    from torch._inductor import config

    return torch.get_num_threads(), config.compile_threads


def test_processes_share_the_processors_out_instead_of_each_taking_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(PROCESSES))
    todo = tryout._Todo(list(range(PROCESSES)), None)
    assert list(tryout._each(threads, todo, PROCESSES, "cpu")) == [(1, 1)] * PROCESSES


def test_what_the_caller_says_of_threads_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(2 * PROCESSES))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "7")
    todo = tryout._Todo([0], None)
    assert list(tryout._each(threads, todo, PROCESSES, "cpu")) == [(1, 7)]


@pytest.mark.parametrize(
    "asked",
    [
        ["--only", "sliced", "--only", "quanto-int8", "--processes", str(PROCESSES)],
        ["--only", "ulysses2", "--ranks", str(PROCESSES)],
    ],
    ids=["processes", "ranks"],
)
def test_a_time_limit_that_ends_the_command_leaves_no_process_at_work(
    tmp_path: Path, asked: list[str]
) -> None:
    out = ["--out", str(tmp_path / "correct.json")]
    command = [sys.executable, "-m", "bench", "correctness", *asked, *out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        first = next(line for line in running.stdout if line.startswith("[1/"))
        workers = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGTERM)
        said = running.stdout.read()
    assert "held" in first
    assert len(workers) > PROCESSES  # and what multiprocessing keeps its count with
    assert running.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
