"""compilation: what turns the transformer's Python into fused kernels."""

from __future__ import annotations

from bench.axes.compilation import eager, fused, regional, tensorrt, whole

OPTIONS = (
    eager.NONE,
    regional.INDUCTOR,
    whole.INDUCTOR_MAX,
    tensorrt.TENSORRT,
    fused.INDUCTOR_FUSED,
    fused.INDUCTOR_GRAPHS,
)
