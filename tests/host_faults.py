"""Real shortages, as fixtures: a small disk and a small memory. Both need root; elsewhere their tests are
skipped and say so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.host.attempt import BALLAST_BYTES
from bench.host.campaign import FREE_DISK_BYTES


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with little more room than an attempt may start with."""
    if os.getuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    size = FREE_DISK_BYTES + 10 * BALLAST_BYTES
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if mount.returncode:
        pytest.skip("this container may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of 300 MB. The kernel kills what grows beyond it."""
    version1 = Path("/sys/fs/cgroup/memory")
    version2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = (Path("/sys/fs/cgroup") if version2 else version1) / f"fluxbench-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if version2 else "memory.limit_in_bytes")).write_text("300000000")
        swap = group / ("memory.swap.max" if version2 else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text("0" if version2 else "300000000")
    except OSError as error:
        pytest.skip(f"this container may not make control groups: {error}")
    yield group
    group.rmdir()
