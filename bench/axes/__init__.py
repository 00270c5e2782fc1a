"""The eight axes and their options; the only list of what exists.

Importable without torch: an option's ``require``, ``apply`` and ``verify`` import it inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.axes import attention, cache, compilation, parallel, precision, quantization, text_encoder, vae
from bench.axes.option import Option, Unavailable

if TYPE_CHECKING:
    from bench.matrix import Row

AXES: dict[str, dict[str, Option]] = {
    name: {option.id: option for option in module.OPTIONS}
    for name, module in (
        ("precision", precision),
        ("quantization", quantization),
        ("text_encoder", text_encoder),
        ("attention", attention),
        ("cache", cache),
        ("vae", vae),
        ("parallel", parallel),
        ("compilation", compilation),
    )
}
"""axis -> option id -> option, in the order of matrix.csv's columns.

The runner applies in this order too: weights are quantised before attention is set on them,
and compilation sees everything that the other axes changed."""


def require(row: Row, device: str) -> None:
    """Raises Unavailable for the first of the row's options that this machine lacks something for."""
    for axis, option in row.stack.items():
        declared = AXES[axis][option]
        if declared.needs_gpu and device == "cpu":
            raise Unavailable(
                f"{row.label}: {axis} {option} needs an NVIDIA GPU and this row runs on the CPU;"
                f" give it a row with hardware h100x1, or use {axis} {next(iter(AXES[axis]))} there"
            )
        declared.require(row, device)


EVIDENCE = {
    "precision": "dtype of every parameter and of the prediction; measured rounding of float32 products",
    "quantization": "linears quantised and kept, by dtype; bytes before and after",
    "text_encoder": "T5's linears quantised and kept, by dtype; bytes before and after",
    "attention": "kernel names in a profile of one step",
    "cache": "steps computed and skipped, and ControlNet calls, of every request",
    "vae": "tiles or slices that reached the decoder",
    "parallel": "ranks that did work",
    "compilation": "graphs, breaks and recompiles; engines",
}
"""axis -> what its ``verify`` returns, in words."""
