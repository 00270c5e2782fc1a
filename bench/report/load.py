"""From a results tree to attempts in memory. Nothing here decides. What cannot be read is kept as a
problem and printed in the report, never skipped in silence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from bench import layout, quality, record
from bench.matrix import Row
from bench.quality import Quality
from bench.tryout_report import Constructed

LOG_EXCERPT_LINES = 12


@dataclass(frozen=True)
class Attempt:
    """One folder of the tree with a readable ``result.json``."""

    folder: Path
    row: Row
    result: record.Result
    quality: Quality | None

    @property
    def weights(self) -> str:
        """``hub``, ``synthetic`` or ``tiny``: of the result, or of the folder where none were loaded."""
        return self.result.weights.source if self.result.weights else self.folder.parent.name

    @property
    def host_id(self) -> str | None:
        """None where the attempt ended before it looked at its machine."""
        return self.result.environment.host_id if self.result.environment else None

    def log_excerpt(self) -> list[str]:
        """The last lines of the log, as the result quotes them or else from the log itself."""
        if self.result.status.log_tail:
            return self.result.status.log_tail[-LOG_EXCERPT_LINES:]
        try:
            text = (self.folder / layout.LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.splitlines()[-LOG_EXCERPT_LINES:]


@dataclass(frozen=True)
class Problem:
    """Something in the tree that the report had to leave out, and why."""

    path: str
    reason: str


@dataclass
class Loaded:
    attempts: list[Attempt] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    constructed: list[Constructed] = field(default_factory=list)
    """What was built and verified on the tiny model, one a hardware."""


def load(results: Path) -> Loaded:
    """Every attempt under ``results``, in path order."""
    loaded = Loaded()
    for file in layout.constructed(results):
        try:
            loaded.constructed.append(Constructed.model_validate_json(file.read_bytes()))
        except (OSError, ValueError) as error:
            loaded.problems.append(Problem(str(file.relative_to(results)), str(error)))
    for folder in layout.attempts(results):
        place = str(folder.relative_to(results))
        try:
            row, result = _result(folder)
        except (OSError, ValueError) as error:
            loaded.problems.append(Problem(place, _why(folder, error)))
            continue
        try:
            closeness = _quality(folder, result)
        except (OSError, ValueError) as error:
            loaded.problems.append(Problem(f"{place}/{quality.FILE}", _why(folder, error)))
            closeness = None
        loaded.attempts.append(Attempt(folder, row, result, closeness))
    return loaded


def _result(folder: Path) -> tuple[Row, record.Result]:
    """Raises OSError or ValueError (pydantic's included) for a folder that holds no valid result."""
    result = record.load(folder / layout.RESULT)
    if result.weights and result.weights.source != folder.parent.name:
        raise ValueError(
            f"measured with {result.weights.source} weights but stored under {folder.parent.name}"
        )
    return Row.model_validate(result.row), result


def _quality(folder: Path, result: record.Result) -> Quality | None:
    found = quality.load(folder)
    if found and (found.attempt, found.fingerprint) != (result.attempt, result.fingerprint):
        raise ValueError(f"about attempt {found.attempt}, not this one; run `fluxbench quality` again")
    return found


def _why(folder: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        finished = folder / layout.REQUESTS
        count = len(finished.read_text(encoding="utf-8").splitlines()) if finished.exists() else 0
        return f"no {layout.RESULT}: still running, or killed; {count} finished requests in {layout.REQUESTS}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}; `fluxbench check` lists every fault".removeprefix(": ")
    return str(error)
