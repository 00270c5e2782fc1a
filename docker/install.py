"""Installs a lock into the Python that runs this: in an image's build, and for ``fluxbench env``.

    python docker/install.py docker/cpu/requirements.txt
    python docker/install.py docker/cpu/requirements.txt --torch "torch==2.13.0 --index-url https://..."

``--torch`` puts another build of torch in the place of the locked one and of the CUDA libraries that only
that one needs: a driver that is too old for it, or no GPU. Everything else stays as locked.

What was installed is written to ``fluxbench-lock`` in the environment's folder. The runner reads it there,
so a result says what it was measured with, and nobody has to pass it along.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

OF_TORCH = re.compile(r"(torch|triton|cuda-[a-z-]+|nvidia-(?!ml-py)[a-z0-9-]+)==")
"""Requirements that only the locked build of torch has. NVML's binding is the bench's own."""


def lock_id(lock: bytes, torch: str | None) -> str:
    """The lock's hash; with another torch that too, without the address it came from."""
    sha256 = hashlib.sha256(lock).hexdigest()
    return f"{sha256} with {shlex.split(torch)[0]}" if torch else sha256


def without_torch(lock: str) -> str:
    """The lock without torch and what comes with it. A requirement is a line and its indented hashes."""
    kept, keep = [], True
    for line in lock.splitlines(keepends=True):
        if not line.startswith(" "):
            keep = not OF_TORCH.match(line)
        if keep:
            kept.append(line)
    return "".join(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lock", type=Path)
    parser.add_argument("--torch", default="", help="arguments of `pip install` for another torch")
    asked = parser.parse_args()
    lock = asked.lock.read_bytes()
    pip = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--progress-bar=off"]
    if asked.torch:
        subprocess.run([*pip, *shlex.split(asked.torch)], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.write(without_torch(lock.decode()) if asked.torch else lock.decode())
        listed.flush()
        # The lock holds every dependency: nothing is resolved, nothing comes in unhashed.
        subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", listed.name], check=True)
    Path(sys.prefix, "fluxbench-lock").write_text(lock_id(lock, asked.torch) + "\n")


if __name__ == "__main__":
    main()
