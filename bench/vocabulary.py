"""The words that a row may hold, and which one was probably meant by another."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache

from bench.flux import MODELS
from bench.matrix import AXIS_NAMES, CONTROLS, TASKS, TIERS


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
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
