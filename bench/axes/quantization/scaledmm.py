"""scaledmm-fp8-row: fp8 with a scale a row, on torch's own kernel and nothing else."""

from __future__ import annotations

from typing import Any

from bench.axes.quantization.layers import multiples_of
from bench.axes.quantization.quantised import Method, Work


def _convert(work: Work) -> dict[str, Any]:
    from bench.axes.quantization.fp8_linear import ScaledMmLinear

    for name, linear in work.linears():
        work.replace(name, ScaledMmLinear(linear).eval())
    return {}


fp8_rows = Method(_convert, r"bench\.(Gelu)?ScaledMmLinear\(float8_e4m3fn, a scale a row\)")


def misfit(in_features: int, out_features: int) -> str | None:
    """``torch._scaled_mm`` takes multiples of 16 only."""
    return multiples_of(16, (("inputs", in_features), ("outputs", out_features)))
