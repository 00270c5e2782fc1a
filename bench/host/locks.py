"""What the packages of each image are locked to: ``docker/<image>/requirements.in`` -> ``requirements.txt``.

One lock fills the image and the virtual environment of the same name, so a row measured in either was
measured with the same packages, and the lock's hash stands for all of them in a fingerprint.

The lock's first line holds the hash of what it was made from, so that anyone can see offline, and without
uv, whether it is still the lock of its input.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

from bench.images import IMAGES

DOCKER = Path(__file__).parents[2] / "docker"
LOCKED = ("base", *IMAGES, "nvcc")
"""In the order of locking: ``base`` constrains all others, so that no gain mixes library versions. ``nvcc``
is no image: builds of some use it and leave it behind."""

HEADER = """\
# input-sha256: {sha256}
# Written by `make lock`; edit requirements.in instead. Python 3.11 and 3.12, Linux on x86-64.
"""
PYTHONS = ("3.11", "3.12")
"""For which a lock is made, the oldest first; docker/pyproject.toml tells uv the newest."""


class LockError(Exception):
    """A lock could not be made; the message says what uv said and what to do."""


def input_path(image: str, docker: Path = DOCKER) -> Path:
    return docker / image / "requirements.in"


def lock_path(image: str, docker: Path = DOCKER) -> Path:
    return docker / image / "requirements.txt"


@cache
def lock_sha256(image: str, docker: Path = DOCKER) -> str:
    return hashlib.sha256(lock_path(image, docker).read_bytes()).hexdigest()


def locked_version(image: str, package: str, docker: Path = DOCKER) -> str:
    """Raises LockError when the lock does not hold the package."""
    found = versions(image, docker).get(package)
    if found is None:
        raise LockError(f"{lock_path(image, docker)} does not lock {package}")
    return found[0]


@cache
def versions(image: str, docker: Path = DOCKER) -> dict[str, tuple[str, ...]]:
    """Package -> its locked versions; more than one where they depend on Python's."""
    found: dict[str, tuple[str, ...]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock_path(image, docker).read_text(), re.MULTILINE):
        found[name] = (*found.get(name, ()), version)
    return found


def inputs(image: str, docker: Path = DOCKER) -> list[Path]:
    """Every file that the lock follows from: the requirements, what they include, uv's settings, and for
    all but ``base`` the lock of ``base``."""
    files = [docker / "pyproject.toml"]
    if image != "base":
        files.append(lock_path("base", docker))
    waiting = [input_path(image, docker)]
    while waiting:
        path = waiting.pop()
        files.append(path)
        included = re.findall(r"^-r (\S+)", path.read_text(), re.MULTILINE)
        waiting += [(path.parent / name).resolve() for name in included]
    return files


def inputs_sha256(image: str, docker: Path = DOCKER) -> str:
    digest = hashlib.sha256()
    for path in inputs(image, docker):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_current(image: str, docker: Path = DOCKER) -> bool:
    """Whether the lock was made from the input as it stands."""
    path = lock_path(image, docker)
    return path.exists() and path.read_text().startswith(f"# input-sha256: {inputs_sha256(image, docker)}\n")


def write(image: str, *, upgrade: bool = False, docker: Path = DOCKER) -> bool:
    """Resolves the input and writes the lock; versions that still fit are kept unless ``upgrade``. Returns
    whether anything changed. Asks the package registry that uv is set up for."""
    path = lock_path(image, docker)
    before = path.read_bytes() if path.exists() else b""
    body = resolve(image, upgrade=upgrade, docker=docker)
    path.write_text(HEADER.format(sha256=inputs_sha256(image, docker)) + body)
    return path.read_bytes() != before


def resolve(image: str, *, upgrade: bool = False, docker: Path = DOCKER) -> str:
    """The lock's lines, by uv. Raises LockError."""
    path = lock_path(image, docker)
    arguments = [
        *("pip", "compile", "--quiet", "--universal", "--python-version", PYTHONS[0]),
        *("--generate-hashes", "--no-header", "--no-annotate"),
        *([] if image == "base" else ["--constraint", str(lock_path("base", docker).relative_to(docker))]),
        *(["--upgrade"] if upgrade else []),
        str(input_path(image, docker).relative_to(docker)),
    ]
    # A wheel of this machine alone (a local build of torch) must not become everybody's lock.
    environment = {name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"}
    kept = path.read_text() if path.exists() else ""
    scratch = path.with_name(".requirements.tmp")
    scratch.write_text(kept)
    try:
        done = subprocess.run(
            [_uv(), *arguments, "--output-file", str(scratch.relative_to(docker))],
            cwd=docker,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LockError(f"{path}: uv found no lock\n{done.stderr.strip()}")
        return scratch.read_text()
    finally:
        scratch.unlink()


def _uv() -> str:
    """Beside this Python, where `make lock` puts it, or wherever the shell finds it."""
    here = Path(sysconfig.get_path("scripts"))
    found = shutil.which("uv", path=os.pathsep.join([str(here), os.environ.get("PATH", "")]))
    if found is None:
        raise LockError("uv is not installed; `make lock` installs it, or `pip install uv`")
    return found
