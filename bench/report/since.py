"""What numbers were measured with, and what of it this checkout has otherwise.

One policy for README, index and pages: an answer names the day and commit that measured it; a page says once
a section what has changed since, and tags rows only where a section holds both kinds. This checkout's own
commit is nowhere named, nor what is installed where the report is made: the same results and the same
checkout give the same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from bench.report.groups import Section
from bench.report.packages import lock_differences
from bench.report.pool import Measurement
from bench.report.text import plural

SAID = {
    "code": "In this checkout the code that measures has changed since",
    "weights": "In this checkout the tiny weights have changed since",
    "packages": "This checkout locks other packages than measured here",
}
"""Ingredient of a fingerprint -> what is said of it to a reader."""


def banner(section: Section) -> str:
    """A paragraph for the top of the section."""
    measured = [each for each in section.measurements if each.cells]
    return " ".join((*_measured(measured), *_changed(measured)))


def _measured(of: list[Measurement]) -> Iterator[str]:
    moments = Counter(each.measured for each in of)
    if len(moments) == 1:
        yield f"Measured {next(iter(moments))}."
    elif moments:
        told = (f"{moment} ({plural(count, 'row')})" for moment, count in sorted(moments.items()))
        yield f"Measured {'; '.join(told)}."


def _changed(of: list[Measurement]) -> Iterator[str]:
    for ingredient, said in SAID.items():
        count = sum(ingredient in each.changed for each in of)
        if count:
            which = "" if count == len(of) else f" for {count} of {len(of)} rows, tagged stale"
            told = _packages(of) if ingredient == "packages" else ""
            yield f"{said}{which}{told}."


def _packages(of: Iterable[Measurement]) -> str:
    """Measured and locked versions, where they differ; a lock may also differ in other packages only."""
    found = {difference for each in of for difference in lock_differences(each.attempts[-1])}
    return f": {', '.join(sorted(found))}" if found else ""
