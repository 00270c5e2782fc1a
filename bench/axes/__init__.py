"""The eight axes and their options; the only list of what exists.

Importable without torch: an option's ``apply`` and ``verify`` import it inside.
"""

from __future__ import annotations

from bench.axes import attention, cache, compilation, parallel, precision, quantization, text_encoder, vae
from bench.axes.option import Option

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
