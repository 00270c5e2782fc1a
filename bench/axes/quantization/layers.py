"""Which linears are quantised: one answer for every backend, decided by name alone.

In FLUX the linears inside the blocks do the work of a step (418 of 504 in FLUX.1-dev, 73 % of the weights).
The others are kept: embedders and ``proj_out`` are small and their errors reach every token; the adaLN
modulations scale whole feature maps, and each multiplies a single row, which no quantised kernel speeds up.

In T5 the linears of the encoder's blocks are quantised, but for ``wo``: transformers keeps it in float32
under fp16 because it overflows there, and T5's forward casts the input to the dtype of ``wo.weight``, which
breaks every backend that packs weights into bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_FLUX_BLOCK = re.compile(r"(single_)?transformer_blocks\.\d+\.(?!norm)")
_T5_BLOCK = re.compile(r"encoder\.block\.\d+\.(?!.*\.wo$)")


def in_flux_block(name: str) -> bool:
    """``transformer_blocks.0.attn.to_q`` is, ``transformer_blocks.0.norm1.linear`` is not."""
    return _FLUX_BLOCK.match(name) is not None


def in_t5_block(name: str) -> bool:
    """``encoder.block.0.layer.0.SelfAttention.q`` is, ``encoder.block.0...DenseReluDense.wo`` is not."""
    return _T5_BLOCK.match(name) is not None


def multiples_of(divisor: int, sizes: Iterable[tuple[str, int]]) -> str | None:
    """Why a backend that wants these (what, size) divisible cannot take a linear; None when it can."""
    odd = [f"{size} {what}" for what, size in sizes if size % divisor]
    return f"{' and '.join(odd)} not divisible by {divisor}" if odd else None
