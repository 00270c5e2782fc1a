"""The Dockerfiles: what linters say of them, and what every image promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from docker_engine import daemon, standin_image

from bench.axes.quantization import with_quanto
from bench.host import locks
from bench.host.image import BUILT_FIRST
from bench.images import IMAGES

__all__ = ["daemon", "standin_image"]  # fixtures

REPOSITORY = locks.DOCKER.parent
DOCKERFILES = [locks.DOCKER / name / "Dockerfile" for name in (BUILT_FIRST, *IMAGES)]


def tool(name: str) -> str:
    """A development tool of this environment; the test is skipped where it is not installed."""
    paths = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    found = shutil.which(name, path=paths)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install --editable '.[dev]'")
    return found


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = subprocess.run([tool("hadolint"), str(dockerfile)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


@pytest.mark.docker
@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_buildkit_checks_find_nothing(dockerfile: Path, standin_image: str) -> None:
    """The check looks the base up, so it is given one that is on this machine."""
    arguments = [f"--build-arg=BASE_IMAGE={standin_image}", f"--build-arg=BASE={standin_image}"]
    done = subprocess.run(
        ["docker", "buildx", "build", "--check", *arguments, "--file", str(dockerfile), str(REPOSITORY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no warnings found" in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize("image", [BUILT_FIRST, *IMAGES])
def test_an_image_says_why_it_is_one_of_its_own_and_ends_as_nobody(image: str) -> None:
    folder = locks.DOCKER / image
    assert (folder / "README.md").read_text().startswith(f"# {image}\n")
    text = (folder / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)$", text, re.MULTILINE)[-1] == "10001"
    assert "# syntax=" not in text  # it would be pulled from a registry


@pytest.mark.parametrize("image", IMAGES)
def test_a_build_ends_with_an_import_check_and_labels_its_lock(image: str) -> None:
    text = (locks.DOCKER / image / "Dockerfile").read_text()
    assert re.search(r"&& python /opt/lock/check_imports.py /opt/lock/imports.txt\n", text)
    assert "fluxbench.lock=$LOCK_SHA256" in text
    assert "fluxbench.recipe=$RECIPE" in text
    assert f"docker/{image}/requirements.txt docker/{image}/imports.txt" in text
    assert (locks.DOCKER / image / "imports.txt").read_text().split()


def test_every_gpu_image_with_quanto_holds_its_extension() -> None:
    builds = "RUN python /opt/nvcc/build_quanto.py /opt/nvcc/requirements.txt\n"
    holding = {name for name in IMAGES if builds in (locks.DOCKER / name / "Dockerfile").read_text()}
    assert holding == with_quanto.IMAGES - {"cpu"}


def test_nothing_but_locks_and_scripts_enters_a_build() -> None:
    kept = re.findall(r"^!(.*)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    assert kept
    assert [pattern for pattern in kept if not pattern.startswith("docker/")] == []
    assert (REPOSITORY / ".dockerignore").read_text().splitlines().count("*") == 1
