"""A real Docker daemon, as fixtures. Tests that want one are marked ``docker`` and skipped, with the reason,
where none answers; `make test-docker` starts one (docker/engine.sh) and runs them."""

from __future__ import annotations

import os

import pytest

from bench.host.daemon import Daemon
from bench.host.image import tag


@pytest.fixture(scope="session")
def daemon() -> Daemon:
    found = Daemon()
    if not found.answers():
        pytest.skip("no Docker daemon answers; `make test-docker` starts one")
    return found


@pytest.fixture(scope="session")
def standin_image(daemon: Daemon) -> str:
    """A small image with Python, in the place of the CUDA base."""
    name = os.environ.get("FLUXBENCH_STANDIN", "fluxbench-standin")
    if daemon.image(name) is None:
        pytest.skip(f"image {name} is not there; `make test-docker` makes it")
    return name


@pytest.fixture(scope="session")
def cpu_image(daemon: Daemon) -> str:
    if daemon.image(tag("cpu")) is None:
        pytest.skip(f"image {tag('cpu')} is not there; `make image IMAGE=cpu` builds it")
    return tag("cpu")
