"""What earlier attempts left on disk: read once per campaign, and again for one row just before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import attempts, layout, pictures, record
from bench.attempts import Unreadable
from bench.config import BUDGETS, Shape
from bench.matrix import Row
from bench.record import CLOSED, Result

Key = tuple[str, str, tuple[Shape, ...]]
"""(row id, budget, cells)"""


@dataclass(frozen=True)
class Past:
    """The attempts at one row with one kind of weights, oldest first."""

    results: tuple[tuple[Path, Result], ...] = ()
    damaged: tuple[str, ...] = ()
    """One message for each result.json that is not what the bench writes."""

    def has_pictures(self) -> bool:
        """Whether the folder of an attempt still holds those that quality is measured with."""
        return any(pictures.prompts(path.parent) for path, _ in self.results)


def read(results: Path, row: Row, weights: str) -> Past:
    found: list[tuple[Path, Result]] = []
    damaged: list[str] = []
    folder = layout.row_dir(results, row) / weights
    for attempt in sorted(folder.iterdir()) if folder.is_dir() else ():
        path = attempt / layout.RESULT
        try:
            found.append((path, attempts.read(attempt).result))
        except FileNotFoundError:
            continue
        except Unreadable as why:
            damaged.append(f"{path}: {why}")
    return Past(tuple(found), tuple(damaged))


def wall_seconds(pasts: Iterable[Past]) -> dict[Key, list[float]]:
    """How long the finished attempts took in all. One that was asked for fewer requests than the budget's
    (``run --requests``) tells nothing of those that make them all, nor does one that waited for requests at a
    rate of their own (``--load poisson:RATE``)."""
    seconds: dict[Key, list[float]] = {}
    for past in pasts:
        for _, result in past.results:
            share = BUDGETS[result.budget].n_per_process
            whole = result.status.code in record.HAS_NUMBERS and all(cell.n >= share for cell in result.cells)
            if result.cost is not None and whole and result.load == CLOSED:
                key = str(result.row["row"]), result.budget, tuple(cell.shape for cell in result.cells)
                seconds.setdefault(key, []).append(result.cost.wall_seconds)
    return seconds
