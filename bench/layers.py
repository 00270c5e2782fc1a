"""Which options are tried alone, and which together: the content of phases 2 and 3.

Order is identity here: rows get their ids in the order of these tables, so new ones are added at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.matrix import REFERENCE

Stack = dict[str, str]
"""axis -> option"""


@dataclass(frozen=True)
class Layer:
    """One option put on the reference, or on the baseline, alone."""

    axis: str
    option: str
    why: str
    on: str = "bf16"
    """Precision of the parent."""
    extended: bool = False
    """Whether the extended use cases (depth, pose) have the row too."""
    tier: str | None = None
    """Of its rows; None: as their use case. ``extended`` where it wants something of the user's own."""


@dataclass(frozen=True)
class Combination:
    """Several options on the reference. The parent lacks ``added``, and is declared too."""

    changes: Stack
    added: str
    """Axis of what this one adds to its parent."""
    why: str
    tier: str | None = None
    """As ``Layer.tier``."""


LAYERS = (
    Layer("precision", "tf32", "what TF32 alone gives fp32 weights", on="fp32"),
    Layer("compilation", "inductor", "regional compile alone; noise floor", extended=True),
    Layer("attention", "cudnn", "cuDNN attention alone; noise floor", extended=True),
    Layer("attention", "native-flash", "torch's FlashAttention 2 alone; noise floor", extended=True),
    Layer("vae", "tiled", "tiled decode alone: memory bought with time"),
    Layer("vae", "sliced", "sliced decode alone: memory of a batch bought with time"),
)
"""The rows called noise floor are the reference under compile and under another attention backend: how
far images move when nothing was meant to change. Every use case has them."""

FP32_LAYERS = (
    Layer("compilation", "inductor", "regional compile alone, on fp32", on="fp32"),
    Layer("attention", "native-flash", "torch's FlashAttention 2 alone, on fp32", on="fp32"),
    Layer("vae", "tiled", "tiled decode alone, on fp32", on="fp32"),
    Layer("vae", "sliced", "sliced decode alone, on fp32", on="fp32"),
)
"""For cpu, which may have no bf16 arithmetic: without it a bf16 VAE decode took 60 times as long."""

_QUANTISATIONS = {
    "bnb-int8": "bitsandbytes INT8 alone",
    "bnb-nf4": "bitsandbytes NF4 alone",
    "bnb-fp4": "bitsandbytes FP4 alone",
    "torchao-int8wo": "TorchAO INT8 weights alone",
    "torchao-int8dq": "TorchAO dynamic INT8 alone",
    "torchao-fp8wo": "TorchAO FP8 weights alone",
    "torchao-fp8dq-row": "TorchAO dynamic FP8 by row alone",
    "torchao-fp8dq-tensor": "TorchAO dynamic FP8 by tensor alone",
    "torchao-int4wo": "TorchAO INT4 weights alone",
    "gguf-q8_0": "GGUF Q8_0 alone",
    "gguf-q5_1": "GGUF Q5_1 alone",
    "gguf-q4_1": "GGUF Q4_1 alone",
    "gguf-q4_0": "GGUF Q4_0 alone",
    "quanto-int8": "Quanto INT8 alone",
    "quanto-fp8": "Quanto FP8 alone",
    "quanto-int4": "Quanto INT4 alone",
    "scaledmm-fp8-row": "our dynamic FP8 by row alone",
}
_TEXT_ENCODERS = {
    "bnb-nf4": "T5 in NF4 alone: memory",
    "torchao-int8wo": "T5 in INT8 (TorchAO) alone: memory",
    "quanto-int8": "T5 in INT8 (Quanto) alone: memory",
    "gguf-q8_0": "T5 in GGUF Q8_0 alone: memory",
}
_ATTENTION = {
    "flash2": "FlashAttention 2 alone; noise floor",
    "flash3": "FlashAttention 3 alone; noise floor",
    "sage1": "SageAttention 1 alone",
    "sage2": "SageAttention 2 alone",
}
_CACHES = {
    "fbcache-0.08": "FirstBlockCache alone, careful",
    "fbcache-0.12": "FirstBlockCache alone, usual",
    "fbcache-0.2": "FirstBlockCache alone, bold",
    "teacache-0.25": "TeaCache alone, careful",
    "teacache-0.4": "TeaCache alone, usual",
    "teacache-0.6": "TeaCache alone, bold",
}
_REPLAYS = {
    "replay-50": "speed of a cache that skips half of the steps",
    "replay-65": "speed of a cache that skips 65 % of the steps",
}
_COMPILATIONS = {
    "inductor-max": "whole-model compile with autotuning alone; noise floor",
    "tensorrt": "TensorRT alone",
}


def _layers(axis: str, options: dict[str, str], on: str = "bf16") -> tuple[Layer, ...]:
    return tuple(Layer(axis, option, why, on=on, extended=True) for option, why in options.items())


GPU_LAYERS = (
    *_layers("quantization", _QUANTISATIONS),
    *_layers("text_encoder", _TEXT_ENCODERS),
    *_layers("attention", _ATTENTION),
    *_layers("cache", _CACHES | _REPLAYS),
    *_layers("compilation", _COMPILATIONS),
)
CPU_LAYERS = (
    *_layers("quantization", _QUANTISATIONS, on="fp32"),
    *_layers("text_encoder", _TEXT_ENCODERS, on="fp32"),
    *_layers("cache", _CACHES, on="fp32"),
    *_layers("compilation", _COMPILATIONS, on="fp32"),
)
"""The tiny model has real weights, so it replays nothing. What a rule refuses gets no row."""

COMBINATIONS = (
    *(
        Combination({"compilation": "inductor", axis: option}, axis, f"{name} compiled")
        for axis, option, name in (
            ("attention", "cudnn", "cuDNN attention"),
            ("attention", "flash3", "FlashAttention 3"),
            ("quantization", "scaledmm-fp8-row", "our dynamic FP8"),
            ("quantization", "torchao-fp8dq-row", "TorchAO's dynamic FP8 by row"),
            ("quantization", "torchao-fp8dq-tensor", "TorchAO's dynamic FP8 by tensor"),
            ("quantization", "torchao-int8dq", "TorchAO's dynamic INT8"),
            ("cache", "fbcache-0.12", "FirstBlockCache"),
            ("cache", "teacache-0.4", "TeaCache"),
            ("cache", "replay-50", "a cache that skips half of the steps"),
            ("cache", "replay-65", "a cache that skips 65 % of the steps"),
        )
    ),
    Combination(
        {"compilation": "inductor", "quantization": "scaledmm-fp8-row", "attention": "flash3"},
        "attention",
        "full stack: FP8, best attention, compiled",
    ),
    Combination(
        {
            "compilation": "inductor",
            "quantization": "scaledmm-fp8-row",
            "attention": "flash3",
            "cache": "replay-65",
        },
        "cache",
        "full stack with a cache that skips 65 % of the steps",
    ),
    Combination(
        {
            "compilation": "inductor",
            "quantization": "scaledmm-fp8-row",
            "attention": "flash3",
            "cache": "fbcache-0.12",
        },
        "cache",
        "full stack with FirstBlockCache",
    ),
)

_REARRANGED = {
    "inductor-fused": "FLUX rearranged and compiled, alone; noise floor",
    "inductor-graphs": "the same with a CUDA graph a step, alone; noise floor",
}
LATER_GPU_LAYERS = tuple(Layer("compilation", option, why) for option, why in _REARRANGED.items())
LATER_CPU_LAYERS = (Layer("compilation", "inductor-fused", "FLUX rearranged, alone, on fp32", on="fp32"),)
_FAST = {"quantization": "scaledmm-fp8-row", "attention": "flash3"}
LATER_COMBINATIONS = (
    Combination(
        {"compilation": "inductor-fused", "attention": "flash3"}, "attention", "best attention, fused"
    ),
    Combination(
        {"compilation": "inductor-graphs", "attention": "flash3"}, "attention", "lossless stack: all but FP8"
    ),
    Combination(
        {"compilation": "inductor-fused", "quantization": "scaledmm-fp8-row"},
        "quantization",
        "our FP8, fused",
    ),
    Combination({"compilation": "inductor-fused", **_FAST}, "attention", "FP8 and best attention, fused"),
    Combination(
        {"compilation": "inductor-graphs", "quantization": "scaledmm-fp8-row"},
        "quantization",
        "our FP8, a CUDA graph a step",
    ),
    Combination({"compilation": "inductor-graphs", **_FAST}, "attention", "fast stack: FP8 and all else"),
    Combination(
        {"compilation": "inductor-fused", "cache": "replay-65", **_FAST},
        "cache",
        "fast stack with a cache that skips 65 % of the steps",
    ),
    Combination(
        {"compilation": "inductor-fused", "cache": "fbcache-0.12", **_FAST},
        "cache",
        "fast stack with FirstBlockCache",
    ),
)
"""What was thought of after several GPUs had their rows."""

_YOUR_FILE = "your own GGUF file alone, K-quants too: FLUXBENCH_GGUF_FILE names it"
CALLERS_GPU_LAYERS = (Layer("quantization", "gguf-file", _YOUR_FILE, tier="extended"),)
CALLERS_CPU_LAYERS = (Layer("quantization", "gguf-file", _YOUR_FILE, on="fp32", tier="extended"),)
"""Of files that only the caller has."""

PICTURE_LAYERS = tuple(
    replace(layer, why=f"pictures: {layer.why}", tier="extended")
    for layer in (*LAYERS, *GPU_LAYERS, *LATER_GPU_LAYERS)
    if layer.on == REFERENCE["precision"] and layer.option not in _REPLAYS
)
PICTURE_COMBINATIONS = tuple(
    replace(combination, why=f"pictures: {combination.why}", tier="extended")
    for combination in (*COMBINATIONS, *LATER_COMBINATIONS)
    if combination.changes.get("cache") not in _REPLAYS
)
"""What may move pictures, for the tiny model on a GPU: there random weights have speed and no pictures, and
real ones are gated."""
