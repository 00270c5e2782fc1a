"""The words that a row may hold, and which one was probably meant by another."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache

from bench.flux import MODELS
from bench.matrix import AXIS_NAMES, CONTROLS, TASKS, TIERS

LEAST_ALIKE = 0.6
"""Of difflib's ratio: what is less like a known word was not meant to be it."""


@cache
def vocabulary() -> dict[str, dict[str, None]]:
    """column -> the words it may hold, in order, for the columns that hold one of a few."""
    from bench.axes import AXES

    closed = {"tier": TIERS, "model": MODELS, "task": TASKS, "control": CONTROLS, **AXES}
    return {column: dict.fromkeys(words) for column, words in closed.items()}


def unknown(column: str, word: str) -> str | None:
    """What is wrong with a word of a column that holds one of a few. None where nothing is."""
    words = vocabulary()[column]
    kind = "option" if column in AXIS_NAMES else column
    return None if word in words else f"unknown {kind} {word!r}{near(word, words)}"


def near(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a word that is not known."""
    names = list(known)
    alike = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in names}
    most = max(alike.values(), default=0.0)
    if most < LEAST_ALIKE:
        return f"; known: {', '.join(names)}"
    *others, last = [repr(name) for name in names if alike[name] == most]
    return f"; did you mean {' or '.join([*([', '.join(others)] if others else []), last])}?"
