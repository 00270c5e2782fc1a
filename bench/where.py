"""Choosing rows: ``--where "hardware=h100x1 task=txt2img attention=cudnn,native-flash" --tier all``.

Conditions are separated by spaces and must all hold; a comma means any of; ``!=`` means none of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter

from bench.hardware import HARDWARE
from bench.images import IMAGES, image_of
from bench.matrix import AXIS_NAMES, ROW_ID, Row
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

_CONDITION = re.compile(r"(?P<key>[^=!]*)(?P<sign>!?=)(?P<values>.*)", re.DOTALL)
_SHAPES = {
    "row": ROW_ID,
    "parent": re.compile(rf"{ROW_ID.pattern}|none"),
    "hardware": HARDWARE,
    "size": re.compile(r"[1-9][0-9]*"),
    "steps": re.compile(r"[1-9][0-9]*"),
}


class WhereError(Exception):
    """The text is no selection; the message holds every reason."""


@dataclass(frozen=True)
class Condition:
    key: str
    values: frozenset[str]
    negated: bool = False

    def holds(self, row: Row) -> bool:
        return (KEYS[self.key](row) in self.values) is not self.negated


def parse(text: str) -> tuple[Condition, ...]:
    """Raises WhereError naming each part that is wrong, with what was probably meant."""
    conditions: list[Condition] = []
    wrong: list[str] = []
    for part in text.split():
        match = _CONDITION.fullmatch(part)
        if match is None:
            wrong.append(f"{part!r} is not key=value or key!=value")
            continue
        values = match["values"].split(",")
        wrong += _mistakes(match["key"], values, [condition.key for condition in conditions])
        conditions.append(Condition(match["key"], frozenset(values), match["sign"] == "!="))
    if wrong:
        raise WhereError("\n".join(wrong))
    return tuple(conditions)


def select(rows: Iterable[Row], where: str = "", tier: str = "core") -> list[Row]:
    """The rows that ``where`` describes, in their order. ``tier`` is ``core``, ``extended`` or ``all``,
    and gives way to a condition that names the tier or single rows."""
    conditions = parse(where)
    if tier != "all" and not any(condition.key in {"tier", "row"} for condition in conditions):
        conditions += (Condition("tier", frozenset({tier})),)
    return [row for row in rows if all(condition.holds(row) for condition in conditions)]


def _mistakes(key: str, values: list[str], earlier: list[str]) -> list[str]:
    if key not in KEYS:
        return [f"unknown key {key!r}{near(key, KEYS)}"]
    if key in earlier:
        return [f"{key} is named twice; write {key}=A,B for any of several values"]
    return [message for value in values if (message := _value_mistake(key, value))]


def _value_mistake(key: str, value: str) -> str | None:
    if key in _SHAPES:
        return None if _SHAPES[key].fullmatch(value) else f"{value!r} cannot be a {key}"
    known = _known_values(key)
    if value in known:
        return None
    return f"unknown {key} {value!r}{near(value, known)}"


def _known_values(key: str) -> list[str]:
    derived: dict[str, Iterable[str]] = {"phase": map(str, PHASES), "image": (*IMAGES, "none")}
    return list((derived | vocabulary())[key])
