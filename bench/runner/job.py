"""What one attempt at one row is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.config import Budget, Shape
from bench.matrix import Row
from bench.runner.load import Load


@dataclass(frozen=True)
class Job:
    row: Row
    weights: str
    budget: Budget
    cells: tuple[Shape, ...]
    """In the order in which they are measured."""
    attempt_dir: Path
    load: Load = field(default_factory=Load)
    requests: int | None = None
    """Steady requests a cell, exactly; None: as the budget says."""
    quality: bool = True
    """Whether the images of the quality prompts are generated and kept."""
    profile: bool | None = None
    """Whether one more request is profiled; None: as the budget says."""

    @property
    def n(self) -> int:
        return self.requests or self.budget.n_per_process

    @property
    def profiled(self) -> bool:
        return self.budget.profile if self.profile is None else self.profile

    @property
    def cap(self) -> int:
        """The budget's, spread over its processes like its n."""
        return self.requests or -(-self.budget.cap // self.budget.processes)
