"""Attempts as they lie on disk: one reader for all who ask what was measured.

A result that was copied or moved by hand speaks of something else than its folder. It would count a second
time, or for another row, so it cannot be read any more than one whose JSON is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bench import layout, record
from bench.matrix import Row


class Unreadable(Exception):
    """Says why in one line, without the file's name."""


@dataclass(frozen=True)
class Attempt:
    """One folder of a results tree with a readable ``result.json``."""

    folder: Path
    row: Row
    result: record.Result

    @property
    def weights(self) -> str:
        """``hub``, ``synthetic`` or ``tiny``."""
        return self.folder.parent.name

    @property
    def host_id(self) -> str | None:
        """None where the attempt ended before it looked at its machine."""
        return self.result.environment.host_id if self.result.environment else None


def read(folder: Path) -> Attempt:
    """Raises Unreadable; FileNotFoundError where there is no ``result.json`` (yet), or another OSError."""
    try:
        result = record.load(folder / layout.RESULT)
    except ValidationError as error:
        raise Unreadable(first_complaint(error)) from error
    try:
        row = Row.model_validate(result.row)
    except ValidationError as error:
        raise Unreadable(f"row.{first_complaint(error)}") from error
    if elsewhere := _misplaced(folder, row, result):
        raise Unreadable(elsewhere)
    return Attempt(folder, row, result)


def first_complaint(error: ValidationError) -> str:
    """``cells.0.n: Input should be a valid integer``."""
    return next(complaints(error))


def complaints(error: ValidationError) -> Iterator[str]:
    """``field: what is wrong with it``, each on one line; of a file of another version that alone."""
    found = error.errors(include_url=False)
    for each in found:
        if each["loc"] == ("schema_version",):
            yield (
                f"schema_version: {each['input']!r}, of another version of fluxbench; this one reads "
                f"{each['ctx']['expected']}"
            )
            return
    for each in found:
        yield f"{'.'.join(map(str, each['loc'])) or 'the whole file'}: {each['msg']}"


def _misplaced(folder: Path, row: Row, result: record.Result) -> str | None:
    weights = result.weights.source if result.weights else folder.parent.name
    belongs = layout.attempt_dir(Path(), row, weights, result.attempt)
    here = folder.parts[-len(belongs.parts) :] == belongs.parts
    return None if here else f"row, weights, attempt: belong in {belongs}"
