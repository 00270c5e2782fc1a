"""What a rule is, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.matrix import Row

WHOLE_MODEL = frozenset({"inductor-max", "tensorrt"})
"""Compilations that make one graph of the transformer's forward."""


@dataclass(frozen=True)
class Refusal:
    name: str
    reason: str
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Rule:
    name: str
    reason: Callable[[Row, str | None], str | None]
    """Of a row and the source of its weights (``hub``, ``synthetic``, ``tiny``; None where it is not known)
    the reason to refuse it, or None."""
    source: str
    """Where the reason can be checked."""
