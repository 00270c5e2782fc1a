"""The venv executor: rows in virtual environments that hold what the images hold, from the same locks.

Most rented machines are containers themselves and have no Docker daemon: there this is the road.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench.host import locks
from bench.host.local import Handle, Job, LocalExecutor
from bench.identity import lock_in
from bench.images import image_of
from bench.matrix import Row

REPOSITORY = Path(__file__).parents[2]
VENVS = REPOSITORY / ".venvs"


class VenvError(Exception):
    """The environment could not be built."""


def python_of(name: str, venvs: Path = VENVS) -> Path:
    return venvs / name / "bin" / "python"


def build(name: str, *, python: str, torch: str, say: Callable[[str], None], venvs: Path = VENVS) -> None:
    """Makes the environment anew, and imports what it is for. Raises VenvError."""
    _require_locked(python)
    inside, docker = str(python_of(name, venvs)), locks.DOCKER
    for arguments in (
        [python, "-m", "venv", "--clear", str(venvs / name)],
        [inside, str(docker / "install.py"), str(locks.lock_path(name)), "--torch", torch],
        [inside, str(docker / "check_imports.py"), str(docker / name / "imports.txt")],
    ):
        say(f"$ {' '.join(arguments)}")
        if subprocess.run(arguments, check=False).returncode:
            raise VenvError(f"environment {name} could not be built; the lines above say why")


def _require_locked(python: str) -> None:
    """For any other Python pip passes over every line of a lock, and calls the empty environment done."""
    ask = "import sys; print('{}.{}'.format(*sys.version_info))"
    try:
        version = subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise VenvError(f"{python} does not answer: {error}") from None
    if version not in locks.PYTHONS:
        raise VenvError(
            f"{python} is Python {version}, and the locks are for {' and '.join(locks.PYTHONS)};"
            " name one with --python"
        )


class VenvExecutor:
    def __init__(self, venvs: Path = VENVS) -> None:
        self.venvs = venvs

    def lock(self, row: Row) -> str | None:
        name = image_of(row)
        return lock_in(self.venvs / name) if name else None

    def lacks(self, row: Row) -> str | None:
        name = image_of(row)
        if name is None:
            return "no image, and so no environment, holds every option of its stack"
        built = lock_in(self.venvs / name)
        if built is None:
            return f"environment {name} is not built; `fluxbench env {name}` builds it"
        if built.split()[0] != locks.lock_sha256(name):
            return (
                f"environment {name} was built from another lock than docker/{name}/requirements.txt; "
                f"`fluxbench env {name}` renews it"
            )
        return None

    def command(self, job: Job) -> list[str]:
        return self._local(job.row).command(job)

    def start(self, job: Job) -> Handle:
        return self._local(job.row).start(job)

    def _local(self, row: Row) -> LocalExecutor:
        name = image_of(row)
        assert name, f"{row.label}: {self.lacks(row)}"
        # The bench itself is not installed there: its code is this checkout's, as it is in the images.
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return LocalExecutor(
            [str(python_of(name, self.venvs)), "-m", "bench", "run"], variables={"PYTHONPATH": paths}
        )
