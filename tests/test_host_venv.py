"""Rows in virtual environments that stand for images, and which executor a machine gets."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fakes import SAME_ROWS, SAME_ROWS_IDS, fake_row

from bench import layout, record
from bench.config import SINGLE
from bench.host import locks
from bench.host.attempt import execute, first_result
from bench.host.daemon import Daemon
from bench.host.docker import DockerExecutor
from bench.host.executors import choose, executor
from bench.host.local import Job, LocalExecutor
from bench.host.supervise import Stop, supervise
from bench.host.venv import VenvError, VenvExecutor, build
from bench.identity import fingerprint_of, ingredients
from bench.record import Code, Environment
from bench.runner.environment import collect

ROW = fake_row(row="73", hardware="cpu", precision="fp32", steps=2)
LOCK = locks.lock_sha256("cpu")


class NoDaemon(Daemon):
    def answers(self) -> bool:
        return False


class SomeDaemon(Daemon):
    def answers(self) -> bool:
        return True


@pytest.fixture
def venvs(tmp_path: Path) -> Path:
    """A real environment in the place of the CPU's, that finds this one's packages instead of its own."""
    folder = tmp_path / "venvs"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "cpu"], check=True)
    (site,) = (folder / "cpu" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    (folder / "cpu" / "fluxbench-lock").write_text(f"{LOCK} with torch==2.13.0\n")
    return folder


@pytest.mark.parametrize("changes", SAME_ROWS, ids=SAME_ROWS_IDS)
def test_a_row_runs_in_the_environment_and_its_result_names_the_lock(
    venvs: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    venv = VenvExecutor(venvs)
    row = fake_row(**{**ROW.model_dump(), **changes})
    folder = layout.attempt_dir(tmp_path / "results", row, "tiny", layout.new_attempt())
    job = Job(row, "tiny", "probe", (SINGLE,), folder)
    lock = venv.lock(row)
    assert lock == f"{LOCK} with torch==2.13.0"
    started = first_result(job, ingredients(row, "tiny", lock), Environment.model_validate(collect([])))
    execute(venv, job, started, lambda handle: supervise(handle, 300, Stop(), lambda: None))
    result = record.load(folder / layout.RESULT)
    assert result.status.code is Code.OK, result.status
    assert result.ingredients is not None
    assert result.ingredients.versions == lock
    # So that the fan-out, which does not run there itself, finds the row done.
    assert result.fingerprint == fingerprint_of(row, ingredients(row, "tiny", lock))


def test_an_environment_that_is_missing_half_built_or_stale_is_named_with_its_command(
    tmp_path: Path, venvs: Path
) -> None:
    assert VenvExecutor(venvs).lacks(ROW) is None
    assert "`fluxbench env cpu`" in (VenvExecutor(tmp_path / "nothing").lacks(ROW) or "")
    (venvs / "cpu" / "fluxbench-lock").write_text("0" * 64 + "\n")
    assert "another lock" in (VenvExecutor(venvs).lacks(ROW) or "")
    (venvs / "cpu" / "fluxbench-lock").unlink()
    assert "is not built" in (VenvExecutor(venvs).lacks(ROW) or "")


def test_an_environment_is_not_built_from_a_python_that_the_locks_are_not_for(tmp_path: Path) -> None:
    newer = tmp_path / "python"
    newer.write_text("#!/bin/sh\necho 3.13\n")
    newer.chmod(0o755)
    for python, says in (
        (newer, "is Python 3.13, .* 3.11 and 3.12; .* --python"),
        (tmp_path / "no", "answer"),
    ):
        with pytest.raises(VenvError, match=says):
            build("cpu", python=str(python), torch="", say=print, venvs=tmp_path / "venvs")
    assert not (tmp_path / "venvs").exists(), "nothing was begun"


def test_docker_is_chosen_where_a_daemon_answers_else_what_is_built(venvs: Path, tmp_path: Path) -> None:
    built, nothing = VenvExecutor(venvs), VenvExecutor(tmp_path / "nothing")
    assert choose([ROW], SomeDaemon(), built)[0] == "docker"
    assert choose([ROW], NoDaemon(), built)[0] == "venv"
    assert choose([ROW], NoDaemon(), nothing)[0] == "local"


def test_the_choice_is_said_aloud_and_an_order_is_followed_silently() -> None:
    said: list[str] = []
    assert isinstance(executor("docker", [ROW], said.append), DockerExecutor)
    assert isinstance(executor("local", [ROW], said.append), LocalExecutor)
    assert said == []
    executor(None, [ROW], said.append)
    assert said[0].startswith("executor: ")
    assert "--executor" in said[0]
