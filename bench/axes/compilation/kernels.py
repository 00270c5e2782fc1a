"""Triton kernels for what inductor computes in more passes over memory than one.

Imports triton, which a machine without a GPU may lack: only operators that were handed a CUDA tensor import
this module.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="assignment, no-untyped-def"
# What triton.jit compiles is its language, not Python.

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from bench.axes.quantization.fp8_linear import FP8, FP8_MAX, SMALLEST_SCALE

CHUNK = 4096
"""Values of a row at once. A row of FLUX.1-dev's MLP is three, none of them partly empty."""

GELU_WARPS = 8

HEADS_AT_ONCE = 8
"""With four warps a thread has eight channels of one of them, and all of its cosines in registers."""


@triton.jit
def _gelu(value):
    """Tanh form: (1 + tanh(x)) / 2 is the sigmoid of 2x, and loses nothing where tanh is near -1. The
    factors are -2 log2(e) sqrt(2 / pi), and 0.044715 times that."""
    exponent = value * (-2.302208198144325 - 0.1029432395800235 * value * value)
    return value / (1 + tl.exp2(exponent))


@triton.jit
def _quotient(dividend, divisor, reciprocal):
    """As IEEE division rounds it, given the divisor's reciprocal (Markstein)."""
    guess = dividend * reciprocal
    return tl.fma(tl.fma(-guess, divisor, dividend), reciprocal, guess)


@triton.jit
def gelu_to_fp8_rows_kernel(
    values,
    fp8,
    scales,
    features: tl.constexpr,
    chunk: tl.constexpr,
    fp8_max: tl.constexpr,
    smallest_scale: tl.constexpr,
):
    """A program a row, which stays in registers between its maximum and its quotients."""
    row = tl.program_id(0).to(tl.int64)
    loaded = ()  # all of it is on its way before the first value is waited for
    for start in tl.static_range(0, features, chunk):
        columns = start + tl.arange(0, chunk)
        loaded += (tl.load(values + row * features + columns, mask=columns < features, other=0),)
    largest = tl.zeros((chunk,), tl.float32)
    activated = ()
    for index in tl.static_range(len(loaded)):
        # Rounded as an activation that is written to memory.
        part = _gelu(loaded[index].to(tl.float32)).to(values.dtype.element_ty).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(part))
        activated += (part,)
    scale = tl.maximum(tl.max(largest, axis=0) * (1 / fp8_max), smallest_scale)
    tl.store(scales + row, scale)
    reciprocal = tl.div_rn(1.0, scale)
    for index in tl.static_range(len(activated)):
        columns = index * chunk + tl.arange(0, chunk)
        quotient = _quotient(activated[index], scale, reciprocal)
        tl.store(fp8 + row * features + columns, quotient.to(fp8.dtype.element_ty), mask=columns < features)


@triton.jit
def rms_norm_rotary_kernel(
    text,
    image,
    text_weight,
    image_weight,
    cos,
    sin,
    rotated,
    text_tokens,
    tokens,
    eps,
    heads: tl.constexpr,
    channels: tl.constexpr,
    heads_at_once: tl.constexpr,
):
    """A program a token, all its heads, which share cosines and sines: those are more bytes than a head."""
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, channels)
    if token < text_tokens:
        source = text + (batch * text_tokens + token) * heads * channels
        weight = text_weight
    else:
        source = image + (batch * (tokens - text_tokens) + token - text_tokens) * heads * channels
        weight = image_weight
    target = rotated + (batch * tokens + token) * heads * channels
    factor = tl.load(weight + channel).to(tl.float32)
    cosine, sine = tl.load(cos + token * channels + channel), tl.load(sin + token * channels + channel)
    for start in tl.static_range(0, heads, heads_at_once):
        head = start + tl.arange(0, heads_at_once)[:, None]
        places = head * channels + channel[None, :]
        value = tl.load(source + places, mask=head < heads, other=0).to(tl.float32)
        mean_square = tl.sum(value * value, axis=1, keep_dims=True) / channels
        # Rounded as a norm that is written to memory.
        normed = (value * tl.rsqrt(mean_square + eps) * factor[None, :]).to(rotated.dtype.element_ty)
        normed = normed.to(tl.float32)
        real, imaginary = tl.split(tl.reshape(normed, (heads_at_once, channels // 2, 2)))
        turned = tl.reshape(tl.join(-imaginary, real), (heads_at_once, channels))
        result = normed * cosine[None, :] + turned * sine[None, :]
        tl.store(target + places, result.to(rotated.dtype.element_ty), mask=head < heads)


def gelu_to_fp8_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See the operator of this name."""
    values = values.contiguous()
    rows, features = values.shape
    fp8 = torch.empty_like(values, dtype=FP8)
    scales = values.new_empty((rows, 1), dtype=torch.float32)
    gelu_to_fp8_rows_kernel[(rows,)](
        values,
        fp8,
        scales,
        features=features,
        chunk=CHUNK,
        fp8_max=FP8_MAX,
        smallest_scale=SMALLEST_SCALE,
        num_warps=GELU_WARPS,
    )
    return fp8, scales


def rms_norm_rotary(
    streams: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """See the operator of this name."""
    text, image = streams[0].contiguous(), streams[-1].contiguous()
    batch, text_tokens, width = text.shape
    tokens, channels = cos.shape
    heads = width // channels
    rotated = text.new_empty((batch, tokens, heads, channels))
    rms_norm_rotary_kernel[(tokens, batch)](
        text,
        image,
        weights[0],
        weights[-1],
        cos.contiguous(),
        sin.contiguous(),
        rotated,
        text_tokens if len(streams) > 1 else 0,
        tokens,
        eps,
        heads=heads,
        channels=channels,
        heads_at_once=HEADS_AT_ONCE,
        num_warps=4,
    )
    return rotated
