"""Choosing rows: ``--where "hardware=h100x1 task=txt2img attention=cudnn,native-flash" --tier all``.

Conditions are separated by spaces and must all hold; a comma means any of; ``!=`` means none of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from bench.images import IMAGES, image_of
from bench.matrix import AXIS_NAMES, Row
from bench.phases import PHASES, phase_of
from bench.vocabulary import near, vocabulary

KEYS: dict[str, Callable[[Row], str]] = {
    "row": lambda row: row.row,
    "tier": lambda row: row.tier,
    "hardware": lambda row: row.hardware,
    "model": lambda row: row.model,
    "size": lambda row: str(row.size),
    "steps": lambda row: str(row.steps),
    "task": lambda row: row.task,
    "control": lambda row: row.control,
    **{axis: attrgetter(axis) for axis in AXIS_NAMES},
    "parent": lambda row: row.parent or "none",
    "phase": lambda row: str(phase_of(row)),
    "image": lambda row: image_of(row) or "none",
}
"""What a condition may name: the columns, and the derived phase and image."""

MOST_VALUES = 8
"""Of a column, in one sentence."""

_CONDITION = re.compile(r"(?P<key>[^=!]*)(?P<sign>!?=)(?P<values>.*)", re.DOTALL)


class WhereError(Exception):
    """The text is no selection; the message holds every reason."""


@dataclass(frozen=True)
class Condition:
    key: str
    values: frozenset[str]
    negated: bool = False

    def holds(self, row: Row) -> bool:
        return (KEYS[self.key](row) in self.values) is not self.negated


def parse(text: str, rows: Sequence[Row]) -> tuple[Condition, ...]:
    """Raises WhereError naming each part that is wrong, with what was probably meant. An id, a size or a
    hardware that none of the ``rows`` has is wrong too: left out in silence, it would look measured."""
    conditions: list[Condition] = []
    wrong: list[str] = []
    for part in text.split():
        match = _CONDITION.fullmatch(part)
        if match is None:
            wrong.append(f"{part!r} is not key=value or key!=value")
            continue
        values = match["values"].split(",")
        wrong += _mistakes(match["key"], values, [condition.key for condition in conditions], rows)
        conditions.append(Condition(match["key"], frozenset(values), match["sign"] == "!="))
    if wrong:
        raise WhereError("\n".join(wrong))
    return tuple(conditions)


def select(rows: Iterable[Row], where: str = "", tier: str = "core") -> list[Row]:
    """The rows that ``where`` describes, in their order. ``tier`` is ``core``, ``extended`` or ``all``,
    and gives way to a condition that names the tier or single rows."""
    rows = list(rows)
    return _holding(rows, _with_tier(parse(where, rows), tier))


def near_misses(rows: Sequence[Row], where: str, tier: str) -> list[str]:
    """For a selection of nothing: of each condition that alone is in the way, what stands in its place."""
    conditions = _with_tier(parse(where, rows), tier)
    found = []
    for one in conditions:
        left = _holding(rows, [other for other in conditions if other is not one])
        values = list(dict.fromkeys(map(KEYS[one.key], left)))
        shown = [*values[:MOST_VALUES], *(["..."] if len(values) > MOST_VALUES else [])]
        if left:
            found.append(f"with another {one.key} {len(left)} would ({', '.join(shown)})")
    return found


def _with_tier(conditions: tuple[Condition, ...], tier: str) -> tuple[Condition, ...]:
    if tier == "all" or any(condition.key in {"tier", "row"} for condition in conditions):
        return conditions
    return (*conditions, Condition("tier", frozenset({tier})))


def _holding(rows: Iterable[Row], conditions: Iterable[Condition]) -> list[Row]:
    return [row for row in rows if all(condition.holds(row) for condition in conditions)]


def _mistakes(key: str, values: list[str], earlier: list[str], rows: Sequence[Row]) -> list[str]:
    if key not in KEYS:
        return [f"unknown key {key!r}{near(key, KEYS)}"]
    if key in earlier:
        return [f"{key} is named twice; write {key}=A,B for any of several values"]
    listed = _listed_values(key)
    known = listed or dict.fromkeys(KEYS[key](row) for row in rows)
    unknown = [value for value in values if value not in known]
    if listed:
        return [f"unknown {key} {value!r}{near(value, known)}" for value in unknown]
    if key in {"row", "parent"}:  # of thousands of numbers none is nearer than another
        return [f"no row has the {'id' if key == 'row' else key} {value!r}" for value in unknown]
    return [f"no row has the {key} {value!r}{near(_written_out(value, known), known)}" for value in unknown]


def _listed_values(key: str) -> dict[str, None]:
    """Those that the bench knows whatever the matrix holds; none of a column that any value may stand in."""
    derived: dict[str, Iterable[str]] = {"phase": map(str, PHASES), "image": (*IMAGES, "none")}
    return dict.fromkeys((derived | vocabulary()).get(key, ()))


def _written_out(value: str, known: Collection[str]) -> str:
    """``h100x1`` for ``h100`` and ``H100x1``, where that is known; else as it is."""
    small = value.lower()
    return next((guess for guess in (small, f"{small}x1") if guess in known), value)
