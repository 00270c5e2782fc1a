"""What the bench knows of hardware: how it is written, and what no row of a GPU can find out by itself.

Rows of another GPU can be written and run all the same: no rule refuses them beforehand, any memory will do,
and their time is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HARDWARE = re.compile(r"cpu|[a-z][a-z0-9]*x[1-9][0-9]*")


def gpus_of(hardware: str) -> tuple[str | None, int]:
    """``h100`` and 8 of ``h100x8``; None and 0 of ``cpu``."""
    gpu, _, count = hardware.rpartition("x")
    return (gpu, int(count)) if gpu else (None, 0)


@dataclass(frozen=True)
class GpuKind:
    sm: int
    """10 x compute capability (NVIDIA's table), as ``Option.needs_sm``."""
    least_memory_gb: int
    """The plan means the 80 GB models, and of the H200 there is one of 141. A smaller one of the same name
    would run out of memory where those do not, so it does not stand in for them."""
    image_seconds: float
    """One 1024 x 1024 image in 28 steps, bf16 eager."""
    says_sxm: bool = True
    """Whether the SXM build has that in its name; if not, it is the one whose name says no build."""


GPUS = {
    "a100": GpuKind(80, least_memory_gb=75, image_seconds=11.0),
    "h100": GpuKind(90, least_memory_gb=75, image_seconds=5.3, says_sxm=False),
    "h200": GpuKind(90, least_memory_gb=135, image_seconds=5.0, says_sxm=False),
}
