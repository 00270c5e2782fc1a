"""quantization: how the transformer's weights are stored, and in which dtype its linears multiply."""

from __future__ import annotations

from bench.axes.quantization import plain

OPTIONS = (plain.NONE,)
