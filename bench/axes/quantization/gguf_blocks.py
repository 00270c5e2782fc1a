"""GGUF's block formats in torch, bit for bit as ``gguf.quants`` computes them, on the device of the weights.

gguf-py quantises FLUX's transformer in one and a half to two and a half minutes of one CPU core; the same
arithmetic on a GPU takes seconds. A block is 32 weights of one row: a float16 scale (and minimum), then the
quantised values. Imports torch: only ``gguf_file`` imports this module.
"""

from __future__ import annotations

import torch

BLOCK = 32


def quantise(weight: torch.Tensor, quant_type: str) -> torch.Tensor:
    """(rows, features) floats -> (rows, bytes) uint8; ``Q8_0``, ``Q5_1``, ``Q4_1`` or ``Q4_0``."""
    blocks = weight.float().reshape(-1, BLOCK)
    return _FORMATS[quant_type](blocks).reshape(weight.shape[0], -1)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float16).view(torch.uint8)


def _nibbles(values: torch.Tensor) -> torch.Tensor:
    """(blocks, 32) -> (blocks, 16): the low four bits of value i and of value i + 16 share a byte."""
    low, high = (values & 15).chunk(2, dim=1)
    return low | (high << 4)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    # Halves round away from zero, as C's roundf; torch.round takes them to the even neighbour.
    magnitude = scaled.abs()
    whole = magnitude.floor()
    rounded = scaled.sign() * (whole + (2 * (magnitude - whole)).floor())
    return torch.cat([_bytes(scale), rounded.to(torch.int8).view(torch.uint8)], dim=1)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """The weight of largest magnitude, sign included, becomes -8."""
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8
    values = (blocks * _inverse(scale) + 8.5).to(torch.uint8).clamp(max=15)
    return torch.cat([_bytes(scale), _nibbles(values)], dim=1)


def _with_minimum(blocks: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(float16 scale and minimum as bytes, values from 0 to ``levels``)"""
    minimum = blocks.amin(dim=1, keepdim=True)
    scale = (blocks.amax(dim=1, keepdim=True) - minimum) / levels
    values = ((blocks - minimum) * _inverse(scale) + 0.5).to(torch.uint8).clamp(max=levels)
    return torch.cat([_bytes(scale), _bytes(minimum)], dim=1), values


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    header, values = _with_minimum(blocks, 15)
    return torch.cat([header, _nibbles(values)], dim=1)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """The fifth bits of all 32 values stand together, the first value in the lowest bit."""
    header, values = _with_minimum(blocks, 31)
    powers = 2 ** torch.arange(8, device=blocks.device, dtype=torch.int32)
    fifth = ((values >> 4).reshape(-1, 4, 8) * powers).sum(dim=2).to(torch.uint8)
    return torch.cat([header, fifth, _nibbles(values)], dim=1)


_FORMATS = {"Q8_0": _q8_0, "Q5_1": _q5_1, "Q4_1": _q4_1, "Q4_0": _q4_0}
