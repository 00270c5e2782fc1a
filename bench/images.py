"""Which container image a row needs: derived from its options, never typed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.matrix import Row

IMAGES = ("cpu", "torch", "gguf", "sage", "xdit", "tensorrt")
"""In order of preference: where several hold every option of a stack, the first one runs it."""


@cache
def _holding(stack: tuple[tuple[str, str], ...]) -> frozenset[str]:
    from bench.axes import AXES

    return frozenset.intersection(*(AXES[axis][option].images for axis, option in stack))


def image_of(row: Row) -> str | None:
    """The image that holds every option of the row's stack; None when no image does.

    Rows without a GPU run in ``cpu`` only, rows with one never do.
    """
    holding = _holding(tuple(row.stack.items()))
    eligible = IMAGES[:1] if row.gpu is None else IMAGES[1:]
    return next((image for image in eligible if image in holding), None)
