"""What numbers were measured with, and what of it this checkout has otherwise.

One policy for README, index and pages: an answer names the day and commit that measured it; a page says once
a section what has changed since, and tags rows only where a section holds both kinds. This checkout's own
commit is nowhere named, nor what is installed where the report is made: the same results and the same
checkout give the same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from bench import identity
from bench.host import locks
from bench.images import image_of
from bench.report.groups import Section
from bench.report.pool import Measurement
from bench.report.text import plural

NAMES = {"code": "the code that measures", "weights": "the tiny weights"}
"""Ingredients of a fingerprint, as they are named to a reader."""


def banner(section: Section) -> str:
    """A paragraph for the top of the section."""
    measured = [each for each in section.measurements if each.cells]
    return " ".join((*_measured(measured), *_changed(measured), *_packages(measured)))


def _measured(of: list[Measurement]) -> Iterator[str]:
    moments = Counter(each.measured for each in of)
    if len(moments) == 1:
        yield f"Measured {next(iter(moments))}."
    elif moments:
        told = (f"{moment} ({plural(count, 'row')})" for moment, count in sorted(moments.items()))
        yield f"Measured {'; '.join(told)}."


def _changed(of: list[Measurement]) -> Iterator[str]:
    for ingredient, name in NAMES.items():
        count = sum(ingredient in each.changed for each in of)
        if count:
            which = "" if count == len(of) else f" for {count} of {len(of)} rows, tagged stale"
            yield f"In this checkout {name} {'has' if ingredient == 'code' else 'have'} changed since{which}."


def _packages(of: Iterable[Measurement]) -> Iterator[str]:
    """Measured and locked versions, where they differ."""
    found = {difference: None for each in of for difference in package_differences(each)}
    if found:
        yield f"This checkout locks other packages than measured here: {', '.join(sorted(found))}."


def package_differences(of: Measurement) -> Iterator[str]:
    """``numpy 2.5.2 (locked 2.4.6)``; what the lock of the row's image does not hold is not compared, nor
    which build of a version it was."""
    environment, image = of.latest.environment, image_of(of.row)
    if environment is None or image is None:
        return
    locked = locks.versions(image)
    for name in identity.MEASURED_PACKAGES:
        version = environment.packages.get(name, "").partition("+")[0]
        if version and name in locked and version not in locked[name]:
            yield f"{name} {version} (locked {' or '.join(locked[name])})"
