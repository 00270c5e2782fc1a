"""From a results tree to attempts in memory. Nothing here decides. What cannot be read is kept as a
problem and printed in the report, never skipped in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from bench import attempts, layout, quality
from bench.attempts import Unreadable, first_complaint
from bench.check import figure_faults
from bench.matrix import Row
from bench.quality import Quality
from bench.report import names
from bench.tryout_report import Constructed

LOG_EXCERPT_LINES = 12


@dataclass(frozen=True)
class Attempt(attempts.Attempt):
    """With what was judged of its pictures, and the end of its log."""

    quality: Quality | None

    @property
    def machine(self) -> str:
        """As a reader tells it from others; empty where the attempt ended before it looked."""
        return names.machine(self.result.environment) if self.result.environment else ""

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
    rows: Sequence[Row] = ()
    """Of matrix.csv: what could be measured, and what a row is held against."""


def load(results: Path, rows: Sequence[Row] = ()) -> Loaded:
    """Every attempt under ``results``, in path order."""
    loaded = Loaded(rows=rows)
    for file in layout.constructed(results):
        try:
            loaded.constructed.append(Constructed.model_validate_json(file.read_bytes()))
        except (OSError, ValueError) as error:
            loaded.problems.append(Problem(str(file.relative_to(results)), str(error)))
    for folder in layout.attempts(results):
        place = str(folder.relative_to(results))
        try:
            found = attempts.read(folder)
        except FileNotFoundError:
            loaded.problems.append(Problem(place, _unfinished(folder)))
            continue
        except (OSError, Unreadable) as error:
            loaded.problems.append(Problem(place, f"{error}; `fluxbench check` lists every fault"))
            continue
        if fault := next(figure_faults(folder, found.result), None):
            loaded.problems.append(Problem(place, f"{fault}; `fluxbench check` lists every fault"))
            continue
        try:
            closeness = _quality(found)
        except (OSError, ValueError) as error:
            why = first_complaint(error) if isinstance(error, ValidationError) else str(error)
            loaded.problems.append(Problem(f"{place}/{quality.FILE}", why))
            closeness = None
        loaded.attempts.append(Attempt(folder, found.row, found.result, closeness))
    return loaded


def _quality(found: attempts.Attempt) -> Quality | None:
    """Raises OSError or ValueError (pydantic's included)."""
    judged = quality.load(found.folder)
    if judged and (judged.attempt, judged.fingerprint) != (found.result.attempt, found.result.fingerprint):
        raise ValueError(f"about attempt {judged.attempt}, not this one; run `fluxbench quality` again")
    return judged


def _unfinished(folder: Path) -> str:
    finished = folder / layout.REQUESTS
    count = len(finished.read_text(encoding="utf-8").splitlines()) if finished.exists() else 0
    return f"no {layout.RESULT}: still running, or killed; {count} finished requests in {layout.REQUESTS}"
