"""What an image is built from: the Dockerfiles of the base and of itself, and every file that they copy.

The runner's code is none of it: it is mounted, and editing it makes no image stale.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from bench.host import locks

SHOWN = 12
"""Hexadecimal digits of a hash that stand in a label and in a registry's tag."""


def files(image: str, docker: Path = locks.DOCKER) -> list[Path]:
    """As the Dockerfiles name them, so that nothing can be copied and forgotten here."""
    found: dict[Path, None] = {}
    for name in ("base", image):
        dockerfile = docker / name / "Dockerfile"
        found[dockerfile] = None
        for operands in re.findall(r"^COPY ((?!--from).+)$", dockerfile.read_text(), re.MULTILINE):
            found.update(dict.fromkeys(docker.parent / source for source in operands.split()[:-1]))
    return list(found)


def recipe(image: str, docker: Path = locks.DOCKER) -> str:
    """``docker/base/Dockerfile=<hash> docker/torch/Dockerfile=<hash> ...``, as the image's label holds it."""
    hashes = (
        (path.relative_to(docker.parent).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files(image, docker)
    )
    return " ".join(f"{name}={sha256[:SHOWN]}" for name, sha256 in hashes)


def sha256(image: str, docker: Path = locks.DOCKER) -> str:
    """Of the whole recipe."""
    return hashlib.sha256(recipe(image, docker).encode()).hexdigest()


def changed(image: str, built_from: str, docker: Path = locks.DOCKER) -> tuple[str, ...]:
    """The files that differ between the checkout and the recipe that an image was built from, also those
    that only one of the two has."""
    then = dict(part.split("=") for part in built_from.split())
    now = dict(part.split("=") for part in recipe(image, docker).split())
    return tuple(name for name in {**now, **then} if now.get(name) != then.get(name))


def base_image(docker: Path = locks.DOCKER) -> str:
    """What images stand on unless the user names another: pinned in the Dockerfile of ``base``."""
    lines = (docker / "base" / "Dockerfile").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("ARG BASE_IMAGE="))


def is_base_image(name: str) -> bool:
    """Whether it is the pinned one, or a mirror's copy of it."""
    return name.endswith(base_image())
