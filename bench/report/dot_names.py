"""Where the short names of dots stand in a scatter plot: beside their dot, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

DOT_RADIUS = 5.0
NAME_HEIGHT = 11.0
GAP = 2.0


@dataclass(frozen=True)
class Dot:
    """Pixels, from the plot's upper left corner."""

    x: float
    y: float
    name_width: float
    """0: it has no name."""


@dataclass(frozen=True)
class Box:
    x: float
    """Of its middle, as ``y``."""
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Square pixels."""
        return _shared(self.x, self.width, other.x, other.width) * _shared(
            self.y, self.height, other.y, other.height
        )

    def outside(self, width: float, height: float) -> float:
        """Square pixels of it that are not on a plot of this size."""
        return self.width * self.height - self.overlap(Box(width / 2, height / 2, width, height))


def _shared(one: float, length: float, other: float, other_length: float) -> float:
    """Of two stretches, each given by its middle and its length."""
    end = min(one + length / 2, other + other_length / 2)
    return max(0.0, end - max(one - length / 2, other - other_length / 2))


def offsets(dots: Sequence[Dot], width: float, height: float) -> list[tuple[float, float]]:
    """From each dot to the middle of its name, in pixels; (0, 0) without one. The first dots choose first; a
    dot without a free place takes the one that hides least."""
    taken = [Box(dot.x, dot.y, 2 * DOT_RADIUS, 2 * DOT_RADIUS) for dot in dots]
    found = []

    def hidden(box: Box) -> int:
        return round(sum(map(box.overlap, taken)) + box.outside(width, height))

    for dot in dots:
        if not dot.name_width:
            found.append((0.0, 0.0))
            continue
        places = [Box(dot.x + dx, dot.y + dy, dot.name_width, NAME_HEIGHT) for dx, dy in _around(dot)]
        best = min(places, key=hidden)
        taken.append(best)
        found.append((best.x - dot.x, best.y - dot.y))
    return found


def _around(dot: Dot) -> Iterator[tuple[float, float]]:
    """Right, left, above and below, then the corners, then the same a line farther away."""
    beside, above = DOT_RADIUS + GAP + dot.name_width / 2, DOT_RADIUS + GAP + NAME_HEIGHT / 2
    for line in (0.0, NAME_HEIGHT):
        yield from ((beside + line, 0.0), (-beside - line, 0.0), (0.0, -above - line), (0.0, above + line))
        for dx in (beside, -beside):
            yield from ((dx, -above / 2 - line), (dx, above / 2 + line))
