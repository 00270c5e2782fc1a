"""quantization: how the transformer's weights are stored, and in which dtype its linears multiply.

FP8 with bitsandbytes and FP8 with GGUF do not exist: neither has such a type.

``latent_tolerance`` is at least twice the error that FACTS.md section 7 reports for the option on a tiny
model, for another model and more steps; INT8 stays within the default.
"""

from __future__ import annotations

from functools import partial

from bench.axes.quantization import (
    plain,
    scaledmm,
    with_bitsandbytes,
    with_gguf,
    with_quanto,
    with_torchao,
)
from bench.axes.quantization.quantised import option

_FP8, _FIVE_BITS, _FOUR_BITS = 0.04, 0.045, 0.11
"""Tolerances."""

_bnb = partial(option, package=with_bitsandbytes.PACKAGE, images=with_bitsandbytes.IMAGES)
_torchao = partial(option, package=with_torchao.PACKAGE, images=with_torchao.IMAGES)
_torchao_on_gpu = partial(
    option, package=with_torchao.PACKAGE, images=with_torchao.GPU_IMAGES, needs_gpu=True
)
_torchao_fp8 = partial(
    _torchao_on_gpu, needs_sm=89, misfit=with_torchao.fp8_misfit, latent_tolerance=2 * _FP8
)
_gguf = partial(option, package=with_gguf.PACKAGE, misfit=with_gguf.misfit)
_quanto = partial(option, package=with_quanto.PACKAGE, images=with_quanto.IMAGES)

OPTIONS = (
    plain.NONE,
    _bnb("bnb-int8", "INT8, bitsandbytes", with_bitsandbytes.int8),
    _bnb("bnb-nf4", "NF4, bitsandbytes", with_bitsandbytes.nf4, latent_tolerance=0.14),
    _bnb("bnb-fp4", "FP4, bitsandbytes", with_bitsandbytes.fp4, latent_tolerance=0.17),
    _torchao("torchao-int8wo", "INT8 weights, TorchAO", with_torchao.int8_weight_only),
    _torchao("torchao-int8dq", "INT8 dynamic, TorchAO", with_torchao.int8_dynamic),
    _torchao("torchao-fp8wo", "FP8 weights, TorchAO", with_torchao.fp8_weight_only, latent_tolerance=_FP8),
    _torchao_fp8(
        "torchao-fp8dq-row",
        "FP8 dynamic by row, TorchAO",
        with_torchao.fp8_dynamic_row,
        gpu_precisions=with_torchao.BF16_ONLY,
    ),
    _torchao_fp8("torchao-fp8dq-tensor", "FP8 dynamic by tensor, TorchAO", with_torchao.fp8_dynamic_tensor),
    _torchao_on_gpu(
        "torchao-int4wo",
        "INT4 weights, TorchAO",
        with_torchao.int4_weight_only,
        needs_sm=80,
        misfit=with_torchao.int4_misfit,
        gpu_precisions=with_torchao.BF16_ONLY,
        latent_tolerance=_FOUR_BITS,
    ),
    _gguf("gguf-q8_0", "GGUF Q8_0", with_gguf.q8_0),
    _gguf("gguf-q5_1", "GGUF Q5_1", with_gguf.q5_1, latent_tolerance=_FIVE_BITS),
    _gguf("gguf-q4_1", "GGUF Q4_1", with_gguf.q4_1, latent_tolerance=_FOUR_BITS),
    _gguf("gguf-q4_0", "GGUF Q4_0", with_gguf.q4_0, latent_tolerance=_FOUR_BITS),
    _quanto("quanto-int8", "INT8 weights, Quanto", with_quanto.int8),
    _quanto("quanto-fp8", "FP8 weights, Quanto", with_quanto.fp8, latent_tolerance=_FP8),
    _quanto(
        "quanto-int4",
        "INT4 weights, Quanto",
        with_quanto.int4,
        misfit=with_quanto.int4_misfit,
        gpu_precisions=with_quanto.INT4_GPU_PRECISIONS,
        latent_tolerance=_FOUR_BITS,
    ),
    option(
        "scaledmm-fp8-row",
        "FP8 dynamic by row, torch._scaled_mm",
        scaledmm.fp8_rows,
        needs_sm=89,
        misfit=scaledmm.misfit,
        latent_tolerance=2 * _FP8,
    ),
    option(
        "gguf-file",
        "GGUF, your own file",
        with_gguf.users_file,
        package=with_gguf.PACKAGE,
        also=with_gguf.require_users_file,
        callers_file=with_gguf.FILE_VARIABLE,
    ),
)
