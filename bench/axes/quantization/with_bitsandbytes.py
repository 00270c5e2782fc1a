"""bitsandbytes: LLM.int8() and the 4-bit types of QLoRA, converted where the weights lie.

Its own way is to quantise while a weight moves from the CPU to the GPU; ours are on the device already, so
the public quantisers are called on them and the modules are given the result. Settings are diffusers'
defaults: outlier threshold 6.0, blocks of 64, scales not quantised again.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from bench.axes.quantization.quantised import Method, Package, Work

PACKAGE = Package("bitsandbytes", "bitsandbytes==0.50.2")
IMAGES = frozenset({"cpu", "torch", "sage", "xdit", "tensorrt"})

_OUTLIER_THRESHOLD = 6.0
"""Activation columns beyond it are multiplied in 16 bits (LLM.int8(), arXiv 2208.07339)."""
_BLOCK = 64


def _int8(work: Work) -> dict[str, Any]:
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant
    from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

    for name, linear in work.linears():
        stored, scales, _ = int8_vectorwise_quant(linear.weight.data.to(torch.float16))
        replacement = Linear8bitLt(
            linear.in_features,
            linear.out_features,
            has_fp16_weights=False,
            threshold=_OUTLIER_THRESHOLD,
            device="meta",
        )
        replacement.weight = Int8Params(
            stored, requires_grad=False, has_fp16_weights=False, CB=stored, SCB=scales
        )
        # As the first forward would: a state that changes then would compile every graph twice.
        replacement.init_8bit_state()
        replacement.bias = linear.bias
        work.replace(name, replacement.eval())
    # It would say at every product that it casts the input to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {}


def _four_bits(quant_type: str, work: Work) -> dict[str, Any]:
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    for name, linear in work.linears():
        packed, state = quantize_4bit(
            linear.weight.data, blocksize=_BLOCK, compress_statistics=False, quant_type=quant_type
        )
        replacement = Linear4bit(
            linear.in_features,
            linear.out_features,
            compute_dtype=linear.weight.dtype,
            compress_statistics=False,
            quant_type=quant_type,
            device="meta",
        )
        replacement.weight = Params4bit(
            packed,
            quant_state=state,
            blocksize=_BLOCK,
            compress_statistics=False,
            quant_type=quant_type,
            bnb_quantized=True,
            module=replacement,
        )
        replacement.quant_state = state
        replacement.bias = linear.bias
        work.replace(name, replacement.eval())
    return {}


def _of_four_bits(quant_type: str) -> Method:
    stands = rf"bitsandbytes\.Linear4bit\(Params4bit, uint8, {quant_type}, a scale for {_BLOCK} weights\)"
    return Method(partial(_four_bits, quant_type), stands)


int8 = Method(
    _int8,
    rf"bitsandbytes\.Linear8bitLt\(Int8Params, int8, outliers beyond {_OUTLIER_THRESHOLD:g} apart\)",
)
nf4 = _of_four_bits("nf4")
fp4 = _of_four_bits("fp4")
