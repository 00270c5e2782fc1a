"""How long rows will take, said before anything runs and refined by what has run.

Earlier attempts answer where there are any; else the guess below, whose constants are measured ones
(FACTS.md section 1). Estimates decide what a time limit cuts off and when a row counts as hung; they are
never printed as results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench import tiny
from bench.config import BUDGETS, WARMUP, BudgetName, Shape
from bench.flux import MODELS
from bench.hardware import GPUS
from bench.host.history import Key, Past, wall_seconds
from bench.host.plan import promise
from bench.matrix import Row

OTHER_GPU_SECONDS = 10.0
"""``GpuKind.image_seconds`` of a GPU that is not known."""
TINY_IMAGE_SECONDS = 1.0
"""128 x 128, 28 steps, on 2 CPU cores in fp32; a GPU is no slower."""
TINY_HALF_FACTOR = 6.0
"""How much longer bf16 and fp16 take on a CPU without arithmetic for them."""
START_SECONDS = {"flux.1-dev": 60.0, "tiny": 12.0}
"""Start, load, verify and bookkeeping."""
COMPILE_SECONDS = 60.0
"""Extra for each batch size of a compiled row."""
REFERENCE_WORK = 1024 * 1024 * 28
"""Pixels x steps that ``GpuKind.image_seconds`` holds for."""

HUNG_FACTOR = 4.0
HUNG_SECONDS = 600.0
"""A row that takes longer than factor x estimate + seconds is stopped: one hung row must not cost the
night, and a bad guess must not cost the row."""


@dataclass
class Estimates:
    known: dict[Key, list[float]] = field(default_factory=dict)
    """Wall seconds of finished attempts."""

    @classmethod
    def from_pasts(cls, pasts: Mapping[str, Past]) -> Estimates:
        return cls(wall_seconds(pasts.values()))

    def seconds(self, row: Row, budget: BudgetName, cells: Sequence[Shape]) -> float:
        """Wall time of one attempt."""
        if measured := self.known.get((row.row, budget, tuple(cells))):
            return median(measured)
        return guess_seconds(row, budget, cells)

    def learn(self, row: Row, budget: BudgetName, cells: Sequence[Shape], wall: float) -> None:
        self.known.setdefault((row.row, budget, tuple(cells)), []).append(wall)


def guess_seconds(row: Row, budget: BudgetName, cells: Sequence[Shape]) -> float:
    """Images to make times the time that one should take, and the row's start."""
    if row.model == "tiny":
        emulated = row.gpu is None and row.precision not in ("fp32", "tf32")
        image_seconds = TINY_IMAGE_SECONDS * row.steps / tiny.STEPS * (TINY_HALF_FACTOR if emulated else 1)
    else:
        kind = GPUS.get(row.gpu or "")
        reference = kind.image_seconds if kind else OTHER_GPU_SECONDS
        image_seconds = reference * row.size * row.size * row.steps / REFERENCE_WORK / promise(row)
    images = sum((BUDGETS[budget].n_per_process + WARMUP.minimum + users) * batch for users, batch in cells)
    images += MODELS[row.model].settings.quality_prompts
    batch_sizes = len({batch for _, batch in cells})
    compiling = COMPILE_SECONDS * batch_sizes if row.compilation != "none" else 0.0
    return START_SECONDS[row.model] + compiling + images * image_seconds


def timeout_seconds(estimate_seconds: float) -> float:
    return HUNG_FACTOR * estimate_seconds + HUNG_SECONDS


def gpu_hours(row: Row, seconds: float) -> float:
    return row.gpu_count * seconds / 3600
