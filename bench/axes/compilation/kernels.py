"""Triton kernels for what inductor computes in more passes over memory than one.

Imports triton, which a machine without a GPU may lack: only operators that were handed a CUDA tensor import
this module.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="assignment, no-untyped-def"
# What triton.jit compiles is its language, not Python.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bench.axes.quantization.fp8_linear import FP8, FP8_MAX, SMALLEST_SCALE

CHUNK = 4096
"""Values of a row at once. A row of FLUX.1-dev's MLP is three, none of them partly empty."""

WARPS = 8


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
        num_warps=WARPS,
    )
    return fp8, scales
