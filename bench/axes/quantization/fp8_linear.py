"""A linear that multiplies in fp8 (e4m3), with one scale a row of the input and one a row of the weight.

Imports torch: only ``scaledmm`` imports this module.

Everything is plain tensor arithmetic and one ``torch._scaled_mm``, so that torch.compile fuses the
quantisation of the input into the kernel that produced it, and shares it between linears of one input
(queries, keys, values). Weight and scale are buffers of fixed dtype, and the same few graphs serve all
blocks: compiling takes seconds where torchao's subclass of the same arithmetic takes minutes.
"""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
"""So that a row of zeros divides by something."""


def to_fp8_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, features) -> the same in fp8, and float32 scales (rows, 1) that multiply it back."""
    largest = values.abs().amax(dim=-1, keepdim=True).float()
    scale = (largest / FP8_MAX).clamp(min=SMALLEST_SCALE)
    return (values.float() / scale).to(FP8), scale


class ScaledMmLinear(torch.nn.Module):
    """Takes over the sizes, the weight and the bias of a ``torch.nn.Linear``. Output has the input's dtype;
    the product comes out of the kernel in bf16, the one dtype that row-wise scaling offers on every GPU."""

    weight: torch.Tensor
    """(out_features, in_features) fp8; its transpose is the column-major operand that the kernel wants."""
    weight_scale: torch.Tensor
    """(1, out_features) float32."""
    bias: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = to_fp8_rows(linear.weight.detach())
        bias = linear.bias
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale.t().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16))

    def quantise(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``to_fp8_rows``."""
        return to_fp8_rows(values)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows, scale = self.quantise(hidden.reshape(-1, self.in_features))
        product = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return product.to(hidden.dtype).reshape(*hidden.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
