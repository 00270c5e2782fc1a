"""Rules of what one pipeline can be made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.axes.compilation.graphs import REARRANGED
from bench.axes.parallel.degrees import degrees_of
from bench.hardware import GPUS
from bench.images import image_of
from bench.matrix import PLAIN, Row
from bench.rules.rule import WHOLE_MODEL, Rule

if TYPE_CHECKING:
    from bench.axes.option import Option

INDUCTOR = frozenset({"inductor", "inductor-max"})
TRITON_FP8_SM = 89
"""The least that compiles fp8e4nv, as ``GPUS`` counts."""


def _chosen(row: Row) -> Iterator[tuple[str, Option]]:
    """(how messages name it, the option) of every axis."""
    from bench.axes import AXES

    for axis, option in row.stack.items():
        yield f"{axis} {option}", AXES[axis][option]


def _gpu_option_on_cpu(row: Row, _: str | None) -> str | None:
    if row.gpu is not None:
        return None
    needy = [name for name, option in _chosen(row) if option.needs_gpu]
    verb = "exists" if len(needy) == 1 else "exist"
    return f"{' and '.join(needy)} {verb} on GPUs only" if needy else None


def _older_gpu(row: Row, _: str | None) -> str | None:
    kind = GPUS.get(row.gpu or "")
    if kind is None:
        return None  # nobody knows what it lacks: ``require`` asks it
    for name, option in _chosen(row):
        if option.needs_sm > kind.sm:
            needs = f"needs a GPU of compute capability {option.needs_sm / 10:.1f}"
            return f"{name} {needs}, and an {(row.gpu or '').upper()} has {kind.sm / 10:.1f}"
    return None


def _precision_of_kernel(row: Row, _: str | None) -> str | None:
    if row.gpu is None:
        return None
    for name, option in _chosen(row):
        if row.precision not in option.gpu_precisions:
            taken = " and ".join(sorted(option.gpu_precisions))
            return f"the GPU kernels of {name} take {taken} only, and the row is {row.precision}"
    return None


def _cache_inside_one_graph(row: Row, _: str | None) -> str | None:
    if row.cache == PLAIN["cache"] or row.compilation not in WHOLE_MODEL | {"inductor-graphs"}:
        return None
    return (
        f"a cache decides on the host between two blocks, and {row.compilation} makes one graph of them all:"
        " use compilation inductor or inductor-fused"
    )


def _rearranged(row: Row, _: str | None) -> str | None:
    if row.compilation not in REARRANGED:
        return None
    if row.quantization not in {PLAIN["quantization"], "scaledmm-fp8-row"}:
        return (
            f"{row.compilation} takes linears apart, and knows plain ones and scaledmm-fp8-row: use inductor"
        )
    if row.vae == "parallel":
        return f"{row.compilation} compiles the VAE's blocks, and DistVAE puts others there: use inductor"
    degrees = degrees_of(row.parallel)
    if degrees and (degrees.xdit or degrees.tp * degrees.fsdp > 1):
        return (
            f"{row.compilation} takes whole blocks of diffusers apart, and {row.parallel} has others: use"
            " compilation inductor, or ulysses or ring, which share out tokens alone"
        )
    return None


def _quantised_tensorrt(row: Row, _: str | None) -> str | None:
    if row.compilation != "tensorrt" or row.quantization == PLAIN["quantization"]:
        return None
    return (
        "Torch-TensorRT takes weights of plain dtypes: it exports no tensor subclass (TorchAO, Quanto, GGUF)"
        " and has no converter for bitsandbytes' operators or torch._scaled_mm"
    )


def _compiled_quanto_int4(row: Row, _: str | None) -> str | None:
    if row.quantization != "quanto-int4" or row.compilation not in INDUCTOR:
        return None
    if row.precision == "fp16" and row.gpu:
        return (
            "Quanto declares no output shape for its CUDA kernels, so torch.compile cannot trace them: use"
            " compilation none, or torchao-int4wo"
        )
    if row.precision != "bf16":
        return None
    return (
        "while torch.compile traces, Quanto's INT4 linear takes the input for a quantised tensor and turns it"
        " into float32, which its bf16 kernel refuses: use compilation none, or torchao-int4wo"
    )


def _compiled_fp8_weights(row: Row, _: str | None) -> str | None:
    kind = GPUS.get(row.gpu or "")
    fp8 = row.quantization == "torchao-fp8wo" and row.compilation in INDUCTOR
    if not fp8 or kind is None or kind.sm >= TRITON_FP8_SM:
        return None
    return (
        "compiled, FP8 weights are turned back by a Triton kernel, and Triton reads float8_e4m3fn from"
        f" compute capability {TRITON_FP8_SM / 10:.1f} on: use compilation none, or torchao-int8wo"
    )


def _attention_inside_tensorrt(row: Row, _: str | None) -> str | None:
    if row.compilation != "tensorrt" or row.attention == PLAIN["attention"]:
        return None
    return f"TensorRT computes attention with kernels of its own, so {row.attention} would not run: use sdpa"


def _no_image(row: Row, _: str | None) -> str | None:
    return None if image_of(row) else "no container image holds every option of the stack"


def _threshold_on_random_weights(row: Row, weights: str | None) -> str | None:
    if weights != "synthetic" or not row.cache.startswith(("fbcache-", "teacache-")):
        return None
    return (
        "what a threshold skips on random weights says nothing of a model: use cache replay-50 or replay-65"
        " there, or real weights"
    )


def _replay_on_real_weights(row: Row, weights: str | None) -> str | None:
    if weights in {None, "synthetic"} or not row.skips_by_schedule:
        return None
    return (
        "a replay skips by a stated schedule what real weights can decide: use cache fbcache-* or"
        " teacache-*, or --weights synthetic"
    )


RULES: tuple[Rule, ...] = (
    Rule(
        "gpu-option-on-cpu",
        _gpu_option_on_cpu,
        source="needs_gpu of the option's declaration in bench/axes/",
    ),
    Rule(
        "older-gpu",
        _older_gpu,
        source="needs_sm of the option's declaration in bench/axes/; NVIDIA's table of compute capabilities",
    ),
    Rule(
        "precision-of-kernel",
        _precision_of_kernel,
        source="gpu_precisions of the option's declaration in bench/axes/; for torch's attention also"
        " aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, check_tensor_dtype",
    ),
    Rule(
        "cache-inside-one-graph",
        _cache_inside_one_graph,
        source="fullgraph=True in bench/axes/compilation/whole.py, agree() in axes/cache/stack_cache.py",
    ),
    Rule("rearranged-blocks", _rearranged, source="_columns() in bench/axes/compilation/products.py"),
    Rule(
        "quantised-tensorrt",
        _quantised_tensorrt,
        source="torch/_functorch/aot_autograd.py, 'aot_export is not currently supported with traceable"
        " tensor subclass', which torch_tensorrt 2.11.0 calls in dynamo/backend/backends.py; its"
        " dynamo/conversion/aten_ops_converters.py",
    ),
    Rule(
        "compiled-quanto-int4",
        _compiled_quanto_int4,
        source="optimum-quanto 0.2.7, tensor/weights/tinygemm/qbits.py, 'type(input) is not torch.Tensor':"
        " a FakeTensor is not; torch 2.13's graph begins with aten.dequantize of the input",
    ),
    Rule(
        "compiled-fp8-weights",
        _compiled_fp8_weights,
        source="github.com/pytorch/pytorch/issues/167082; torch 2.11, _inductor/codegen/triton_utils.py,"
        " signature_of; torchao 0.18.0, Float8Tensor.dequantize",
    ),
    Rule(
        "attention-inside-tensorrt",
        _attention_inside_tensorrt,
        source="torch_tensorrt 2.11.0, dynamo/conversion/aten_ops_converters.py,"
        " aten.scaled_dot_product_attention",
    ),
)

LAST_RULES: tuple[Rule, ...] = (
    Rule("no-image", _no_image, source="images of the options' declarations in bench/axes/"),
    Rule(
        "threshold-cache-on-random-weights",
        _threshold_on_random_weights,
        source="METHOD.md section 9; on random weights FBCache at 0.12 and 0.35 never skipped a step",
    ),
    Rule("replayed-cache-on-real-weights", _replay_on_real_weights, source="METHOD.md section 9"),
)
