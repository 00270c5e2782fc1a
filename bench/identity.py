"""What makes two measurements one: the fingerprint of what ran, and the host it ran on.

The runner writes both into the result and the fan-out computes both again to ask "is this row done
here?", so they must agree to the byte, and neither may need torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from bench import contract, sources
from bench.axes import AXES
from bench.matrix import Row
from bench.record import Ingredients
from bench.tiny import WEIGHTS

MEASURED_PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "torchao",
    "bitsandbytes",
    "optimum-quanto",
    "gguf",
    "kernels",
    "fa3-fwd",
    "flash-attn",
    "sageattention",
    "xfuser",
    "distvae",
    "torch-tensorrt",
)
"""Packages whose version can move a latency or an image. A change of any other (pytest, altair) must
not make a night of GPU results stale."""

TINY_WEIGHTS = WEIGHTS
"""What ``--weights tiny`` means; a test may point it elsewhere."""


@cache
def packages() -> dict[str, str]:
    """Name -> version of what is installed out of ``MEASURED_PACKAGES``."""
    found = {}
    for name in MEASURED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_sha256(row: Row) -> str:
    """Hash of the code that measures this row: the runner, and the row's own options."""
    return _stack_sha256(tuple(row.stack.items()))


@cache
def _stack_sha256(stack: sources.Stack) -> str:
    return files_sha256(tuple(sources.of_stack(stack)), sources.PACKAGE)


def files_sha256(files: tuple[Path, ...], root: Path) -> str:
    """By name below ``root`` and content."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def lock_in(prefix: Path) -> str | None:
    """The lock that the packages of a Python environment were installed from: its hash, and the build of
    torch that took the place of the locked one, if any. ``docker/install.py`` leaves it there when it is
    done, in images and in virtual environments. None where packages were installed by hand, so that their
    versions stand for them, or where an environment is not whole."""
    try:
        return (prefix / "fluxbench-lock").read_text().strip()
    except FileNotFoundError:
        return None


@cache
def installed_lock() -> str | None:
    """``lock_in`` this Python's own environment."""
    return lock_in(Path(sys.prefix))


@cache
def weights_sha256(folder: Path) -> str:
    """Hash of every file of a diffusers directory, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def callers_files(row: Row) -> dict[str, Path]:
    """Environment variable -> the file of the caller's own that an option of the row runs; those that are
    there."""
    options = (AXES[axis].get(option) for axis, option in row.stack.items())
    named = {
        option.callers_file: os.environ.get(option.callers_file, "")
        for option in options
        if option and option.callers_file
    }
    return {variable: Path(path) for variable, path in named.items() if Path(path).is_file()}


def _data_sha256(row: Row, weights: str) -> str:
    """Of the tiny model's files and of the caller's own; empty where neither is read."""
    hashes = [weights_sha256(TINY_WEIGHTS)] if weights == "tiny" else []
    for path in callers_files(row).values():
        written = path.stat()
        hashes.append(_file_sha256(path.resolve(), written.st_size, written.st_mtime_ns))
    return " ".join(hashes)


@cache
def _file_sha256(path: Path, _size_bytes: int, _written_ns: int) -> str:
    """Read once while it stays as it is: such a file has gigabytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ingredients(row: Row, weights: str, lock: str | None = None) -> Ingredients:
    """What a fingerprint is made of beside the row, as it is here and now.

    ``weights`` is the source: revision of ``hub`` and seed of ``synthetic`` are constants of the runner's
    code, which is hashed; ``tiny`` and files of the caller's own are data. ``lock`` is what
    ``installed_lock`` says where the row will run; None: here.
    """
    lock = lock or installed_lock()
    return Ingredients(
        weights=weights,
        data=_data_sha256(row, weights),
        code=code_sha256(row),
        versions=lock or " ".join(f"{name}=={version}" for name, version in sorted(packages().items())),
    )


def fingerprint_of(row: Row, made_of: Ingredients) -> str:
    """What a result is a measurement of. Anyone can compute it again from what the result holds."""
    parts = (*row.identity, made_of.weights, made_of.data, made_of.code, made_of.versions)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def host_id(gpu_uuids: Iterable[str]) -> str:
    """Stands for 'the same host': the UUIDs of the GPUs that took part, or for a row without GPU a hash
    of CPU model and machine id."""
    uuids = sorted(gpu_uuids)
    return "+".join(uuids) if uuids else cpu_host_id()


@cache
def cpu_host_id() -> str:
    return "cpu-" + hashlib.sha256(f"{cpu_model()}\0{machine_id()}".encode()).hexdigest()[:16]


@cache
def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine_id() -> str:
    """A container has none of its own, or its image's: whoever started it says which machine it is on.
    Where nobody does, the host name is the best that there is."""
    if told := os.environ.get(contract.MACHINE_ID):
        return told
    try:
        return Path("/etc/machine-id").read_text().strip() or platform.node()
    except OSError:
        return platform.node()
