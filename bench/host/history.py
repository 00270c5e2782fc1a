"""What earlier attempts left on disk: read once per campaign, and again for one row just before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bench import layout, record
from bench.matrix import Row
from bench.record import Result


@dataclass(frozen=True)
class Past:
    """The attempts at one row with one kind of weights, oldest first."""

    results: tuple[tuple[Path, Result], ...] = ()
    damaged: tuple[str, ...] = ()
    """One message for each result.json that is not what the bench writes."""


def read(results: Path, row: Row, weights: str) -> Past:
    found: list[tuple[Path, Result]] = []
    damaged: list[str] = []
    folder = layout.row_dir(results, row) / weights
    for attempt in sorted(folder.iterdir()) if folder.is_dir() else ():
        path = attempt / layout.RESULT
        try:
            result = record.load(path)
        except FileNotFoundError:
            continue
        except (ValidationError, ValueError) as error:
            damaged.append(f"{path}: {first_line(error)}")
            continue
        if problem := _misplaced(result, row, attempt.name):
            damaged.append(f"{path}: {problem}")
        else:
            found.append((path, result))
    return Past(tuple(found), tuple(damaged))


def first_line(error: Exception) -> str:
    """``cells.0.n: Input should be a valid integer``: pydantic's first complaint on one line."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        return f"{place}: {problem['msg']}"
    return str(error)


def _misplaced(result: Result, row: Row, attempt: str) -> str | None:
    """Whether the file was copied or edited so that it speaks of something else than its folder."""
    if result.attempt != attempt:
        return f"attempt: {result.attempt} stands in the folder of {attempt}"
    try:
        written = Row.model_validate(result.row)
    except ValidationError as error:
        return f"row.{first_line(error)}"
    if written.row != row.row:
        return f"row: {written.row} stands in the folder of row {row.row}"
    return None


def wall_seconds(pasts: Iterable[Past]) -> dict[tuple[str, str, str], list[float]]:
    """(row id, budget, cells) -> how long its finished attempts took in all."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for past in pasts:
        for _, result in past.results:
            if result.cost is not None and result.status.code in record.HAS_NUMBERS:
                cells = ",".join(f"{cell.users}x{cell.images}" for cell in result.cells)
                key = (str(result.row["row"]), result.budget, cells)
                seconds.setdefault(key, []).append(result.cost.wall_seconds)
    return seconds
