"""``fluxbench sync``: results leave the machine while they come."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench import layout, record
from bench.cli import main
from bench.host import leases
from bench.host.sync import copy
from bench.record import Code, Status

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for number in (1, 2):
        write_attempt(folder, fake_result(fake_row(row=str(number)), n=13, budget="quick"), telemetry=False)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_everything_is_copied_once_and_what_changes_later_again(results: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    assert copy(results, str(away)) == len(tree(results))
    assert tree(away) == tree(results)
    assert copy(results, str(away)) == 0
    (folder, _) = layout.attempts(results)
    marked = record.load(folder / layout.RESULT).model_copy(
        update={"status": Status(code=Code.SUSPECT, reason="the reference drifted")}
    )
    record.save(marked, folder)
    with (folder / layout.REQUESTS).open("a") as requests:
        requests.write("{}\n")
    assert copy(results, str(away)) == 2
    assert tree(away) == tree(results)


def test_neither_half_written_files_nor_the_demo_are_copied_and_nothing_is_deleted_there(
    results: Path, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    (away / "of-another-host").mkdir(parents=True)
    (away / "of-another-host" / "result.json").write_text("{}")
    (folder, _) = layout.attempts(results)
    (folder / ".result.json.7.tmp").write_text('{"half')
    (results / "demo").mkdir()
    (results / "demo" / "result.json").write_text("{}")
    copy(results, str(away))
    names = set(tree(away))
    assert "of-another-host/result.json" in names
    assert not [name for name in names if name.endswith(".tmp") or name.startswith("demo")]


def test_a_reader_of_the_copy_never_sees_a_result_without_the_files_it_speaks_of(
    results: Path, tmp_path: Path
) -> None:
    away, seen = tmp_path / "away", []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for path in away.rglob(layout.RESULT):
                seen.append((path.parent / layout.REQUESTS).exists() and record.load(path) is not None)

    reader = threading.Thread(target=read)
    reader.start()
    copy(results, str(away))
    while not seen:
        time.sleep(0.01)
    stop.set()
    reader.join()
    assert all(seen)


def test_it_goes_on_while_rows_run_and_brings_their_last_word_home_when_the_machine_is_taken(
    own_leases: None, results: Path, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    campaign = leases.take(["GPU-a"], 1, "the campaign beside it")
    command = [sys.executable, "-m", "bench", "sync", str(away), "--results", str(results), "--every", "0.2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (away.exists() and tree(away) == tree(results)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # the campaign was asked to stop at the same moment, and writes its verdict
    (folder, _) = layout.attempts(results)
    stopped = record.load(folder / layout.RESULT)
    stopped.status = Status(code=Code.INTERRUPTED, reason="preempted")
    record.save(stopped, folder)
    campaign.release()
    assert process.wait(timeout=30) == 0
    assert tree(away) == tree(results)


def test_another_machine_is_reached_by_rsync(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ssh`` is a script that runs the far side here."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed: apt-get install rsync")
    shell = tmp_path / "ssh"
    shell.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    shell.chmod(0o755)
    monkeypatch.setenv("RSYNC_RSH", str(shell))
    away = tmp_path / "away"
    assert copy(results, f"elsewhere:{away}") == len(tree(results))
    assert tree(away) == tree(results)
    assert copy(results, f"elsewhere:{away}") == 0


def test_a_destination_that_cannot_be_written_is_named_with_what_to_do(results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = CliRunner().invoke(main, ["sync", str(tmp_path / "file"), "--results", str(results)])
    assert ran.exit_code == 1
    assert "name another place" in ran.output
    ran = CliRunner().invoke(main, ["sync", str(tmp_path), "--results", str(tmp_path / "none")])
    assert "no row has run" in ran.output
    assert os.listdir(results)
