"""What a GPU kernel does, told by its name: the kinds by which a profile sums time.

The order decides: inductor names a fused elementwise kernel after everything that it fused, products and
attention included, and CUTLASS's name stands in FlashAttention's kernels and in cuDNN's convolutions.
"""

from __future__ import annotations

import re

KINDS: dict[str, re.Pattern[str]] = {
    kind: re.compile(pattern, re.IGNORECASE)
    for kind, pattern in {
        "communication": r"nccl|nvshmem|symm_?mem",
        "copy": r"^Mem(cpy|set)\b",
        "elementwise": r"^triton_(poi|red|per|for)_",
        "attention": r"flash|fmha|sdpa|attention|attn|qk_int",
        "convolution": r"conv(?!ert)|fprop|implicit_gemm|wgrad|dgrad",
        "gemm": r"gemm|gemv|nvjet|cublas|cutlass|splitk|xmma|triton_(tem|mm)|_mm_|matmul",
    }.items()
}
"""First match wins; what nothing matches is elementwise too: norms, modulation, rope, quantising."""

HINTS = {
    "gemm": "Matrix products",
    "attention": "",
    "elementwise": "Norms, modulation, rope, activations, quantising, whatever is no other kind",
    "convolution": "Of the VAE",
    "copy": "",
    "communication": "Between GPUs, of the rank that waited least; some of it runs beside computing",
}
"""Every kind, in the order in which tables and charts show them, and what a reader should know of it."""


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if pattern.search(kernel)), "elementwise")
