"""What proves that the options of a row ran, as short as a reader takes it in; all of it is in result.json.

Nothing here knows an axis: names and values are shown as ``effective`` holds them, long ones shortened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report.names import AXIS_TITLES
from bench.report.text import MISSING, number

MOST_COUNTS = 4
"""Names of one kind that are told with their count, such as kernels; the rest is told as a number."""
MOST_VALUES = 8
"""A longer list of numbers is told by its extremes."""
MOST_LETTERS = 64
"""Of a name: a kernel's ends with the types that it was compiled for."""
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1.0}


@dataclass(frozen=True)
class Proof:
    """Of one option."""

    axis: str
    option: str
    items: tuple[tuple[str, str], ...]
    """(what, how much or which)"""

    @property
    def of(self) -> str:
        """``Attention flash3``"""
        return f"{AXIS_TITLES[self.axis]} {self.option}"

    @property
    def text(self) -> str:
        return "; ".join(f"{name}: {value}" for name, value in self.items)


def proofs(
    options: Mapping[str, str], effective: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Any]
) -> tuple[Proof, ...]:
    """In the order of ``options`` (axis -> option), of those that left evidence. ``counts``: axis -> what its
    option counted in all requests, where it counts."""
    found = []
    for axis, option in options.items():
        items = [
            (name.replace("_", " "), said(value, name)) for name, value in effective.get(axis, {}).items()
        ]
        if axis in counts:
            items.append(("in all requests", said(counts[axis])))
        if items:
            found.append(Proof(axis, option, tuple(items)))
    return tuple(found)


def said(value: Any, name: str = "") -> str:
    """``name``: of the field, which says the unit."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _quantity(value, name)
    if isinstance(value, Mapping):
        return _entries(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _list(value, name)
    return str(value)


def _quantity(value: float, name: str) -> str:
    if "bytes" in name.split("_") and value:
        unit = next((unit for unit, size in UNITS.items() if abs(value) >= size), "bytes")
        return f"{number(value / UNITS[unit])} {unit}"
    return f"{value:,}" if isinstance(value, int) else number(value)


def _entries(of: Mapping[str, Any]) -> str:
    """``a 57, b 19``; counts from the largest down, so that what is left out counts least."""
    if not of:
        return "none"
    if all(isinstance(value, int) for value in of.values()):
        counts = sorted(of.items(), key=lambda entry: -entry[1])
        return _some([f"{_cut(name)} {said(value, name)}" for name, value in counts], MOST_COUNTS)
    return ", ".join(f"{_cut(name)} {_bracketed(value, name)}" for name, value in of.items())


def _bracketed(value: Any, name: str) -> str:
    several = isinstance(value, Mapping | Sequence) and not isinstance(value, str) and value
    return f"({said(value, name)})" if several else said(value, name)


def _list(of: Sequence[Any], name: str) -> str:
    if not of:
        return "none"
    first = of[0]
    if isinstance(first, Mapping | Sequence) and not isinstance(first, str):
        alike = all(each == first for each in of) and len(of) > 1
        return f"each of {len(of)}: {said(first)}" if alike else ", ".join(f"({said(each)})" for each in of)
    figures = [each for each in of if isinstance(each, int | float)]
    if len(of) > MOST_VALUES and len(figures) >= len(of) - 1:
        return f"{len(figures)} values, {said(min(figures), name)} to {said(max(figures), name)}"
    return _some([said(each, name) for each in of], MOST_VALUES)


def _some(of: Sequence[str], most: int) -> str:
    shown, more = of[:most], len(of) - most
    return ", ".join((*shown, f"and {more} more") if more > 0 else shown)


def _cut(word: str) -> str:
    return word if len(word) <= MOST_LETTERS else f"{word[: MOST_LETTERS - 1]}…"


def counted(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """What options counted in the requests of several cells, added up."""
    total: dict[str, dict[str, int]] = {}
    for each in counts:
        for axis, found in each.items():
            for name, count in found.items():
                total.setdefault(axis, {})[name] = total.get(axis, {}).get(name, 0) + count
    return total
