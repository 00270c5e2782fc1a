"""Names of sections, for files and anchors: as much as tells each from the others, no more."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

MOST_GPUS_NAMED = 2
"""More GPUs would make a file name that nobody reads: a hash stands for them."""


@dataclass(frozen=True)
class World:
    """What a section is of."""

    hardware: str
    weights: str
    size: int
    steps: int
    host_id: str

    @property
    def base(self) -> str:
        return f"{self.hardware}-{self.weights}"

    @property
    def workload(self) -> str:
        return f"{self.size}px-{self.steps}steps"

    @property
    def machine(self) -> str:
        """``d34945ce``, as tables name the GPU, or of two ``c68b4c20-dff3982f``."""
        devices = [device.partition("-")[2][:8] for device in self.host_id.split("+")]
        return "-".join(devices) if len(devices) <= MOST_GPUS_NAMED else self.hash

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.host_id.encode()).hexdigest()[:6]


def slugs(worlds: Sequence[World]) -> list[str]:
    """One each, all different: ``h100x1-synthetic``; where several have that hardware and those weights, with
    the workload, the machine or both behind, whichever tells these apart."""
    return [_slug(world, [other for other in worlds if other.base == world.base]) for world in worlds]


def _slug(world: World, namesakes: Sequence[World]) -> str:
    forms = (
        lambda each: (each.base,),
        lambda each: (each.base, each.machine),
        lambda each: (each.base, each.workload),
        lambda each: (each.base, each.workload, each.machine),
        lambda each: (each.base, each.workload, each.hash),
    )
    telling = next(
        (form for form in forms if len({form(each) for each in namesakes}) == len(namesakes)), forms[-1]
    )
    return "-".join(telling(world))
