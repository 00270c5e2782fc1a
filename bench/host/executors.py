"""Where rows run: in containers, in the virtual environments of their locks, or in this very environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from bench.config import ExecutorName
from bench.host.daemon import Daemon
from bench.host.docker import DockerExecutor, Place
from bench.host.image import Store, provide
from bench.host.local import Executor, LocalExecutor
from bench.host.venv import VenvExecutor
from bench.matrix import Row


def choose(rows: Iterable[Row], daemon: Daemon, venv: VenvExecutor) -> tuple[ExecutorName, str]:
    """The best that this machine offers, and why: containers where a daemon answers, else environments of
    the locks where one of the rows has its own, else this environment."""
    if daemon.answers():
        return "docker", "a Docker daemon answers"
    if any(venv.lacks(row) is None for row in rows):
        return "venv", "no Docker daemon answers, and the environment of the rows' image is built"
    return "local", "no Docker daemon answers, and no environment is built (`fluxbench env` builds one)"


def executor(asked: ExecutorName | None, rows: Iterable[Row], say: Callable[[str], None]) -> Executor:
    """The executor of this name; the best one when none is asked for, which is said aloud."""
    daemon, venv = Daemon(), VenvExecutor()
    name = asked
    if name is None:
        name, why = choose(rows, daemon, venv)
        say(f"executor: {name} ({why}; --executor chooses another)")
    if name == "venv":
        return venv
    if name == "docker":
        return DockerExecutor(Place.here(os.environ), daemon)
    return LocalExecutor()


def get_images(executor: Executor, rows: Iterable[Row], registry: str, say: Callable[[str], None]) -> None:
    """Pulls or builds the images that are not here at all. One that is here but stale is left to the user:
    to renew it changes what later results can be compared with. Raises ImageError, or Silent."""
    if not isinstance(executor, DockerExecutor):
        return
    store: Store = executor.store
    for name in store.missing(rows):
        provide(name, registry=registry, say=say)
    store.forget()
