"""What the conductor of a row (``ranks.Ranks``) and its ranks (``rank``) say to each other, pickled."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bench import config, record
from bench.axes.option import Counts
from bench.matrix import Row
from bench.runner.outputs import Output
from bench.runner.window import Facts

LOCALHOST = "127.0.0.1"
GRID = 8
"""Cells of a sketch, each way."""


@dataclass(frozen=True)
class Place:
    """The first message: who this rank is and what it serves."""

    rank: int
    ranks: int
    store_port: int
    store_fd: int | None
    """The listening socket behind ``store_port``, on rank 0: bound before any rank ran, so no port is
    guessed and none can be taken."""
    collective_seconds: float
    together: bool
    """Whether all ranks compute each request, instead of each its own."""
    row: Row
    weights: str
    device: str
    image_digest: str | None


@dataclass(frozen=True)
class Sketch:
    """What tells whether two ranks made the same picture in the same way."""

    sha256: str
    means: tuple[float, ...]
    """Of a grid over each image and channel, 0 to 255."""
    steps: int
    counts: dict[str, Counts]
    """axis -> what its option counted; but for ``parallel``, which may count what this rank did."""

    @classmethod
    def of(cls, output: Output, facts: Facts) -> Sketch:
        pixels = output.images
        images, height, width, channels = pixels.shape
        rows, columns = height // GRID, width // GRID
        cropped = pixels[:, : rows * GRID, : columns * GRID]
        means = cropped.reshape(images, GRID, rows, GRID, columns, channels).mean(axis=(2, 4))
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        counts = {axis: each for axis, each in facts.counts.items() if axis != "parallel"}
        return cls(digest, tuple(means.ravel().tolist()), output.steps, counts)

    def differs(self, other: Sketch) -> str | None:
        """What ``other``, of the same request, did not do alike; None where only rounding differs."""
        if other.steps != self.steps:
            return f"{other.steps} denoising steps, not {self.steps}"
        if other.counts != self.counts:
            return f"its options counted {other.counts}, not {self.counts}"
        if len(other.means) != len(self.means):
            return "its pictures have another shape"
        levels = max(abs(a - b) for a, b in zip(self.means, other.means, strict=True))
        if levels > config.RANKS.picture_levels:
            return f"its picture is up to {levels:.1f} of 255 levels away"
        return None


@dataclass(frozen=True)
class Done:
    """A request: ``finished`` is ``time.perf_counter()``, which all processes of a machine share."""

    finished: float
    facts: Facts
    sketch: Sketch


@dataclass(frozen=True)
class Failed:
    """The answer to an order that raised."""

    status: record.Status
    of_a_peer: bool
    """Whether the error only says that another rank is gone or late."""
