"""What does not combine: the only place that says no.

A rule says why it refuses a row, or nothing; the first of RULES that refuses a row names the refusal, so
rules go from the particular to the general. A row that a rule refuses may stand in matrix.csv: it ends as
``unsupported`` with the reason, and nothing is run. Adding a rule is one entry in RULES.

A flag refuses nothing: it says beforehand what is odd about a row that is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.axes.parallel.degrees import SHAPES, degrees_of
from bench.images import image_of
from bench.matrix import PLAIN, Row

if TYPE_CHECKING:
    from bench.axes.option import Option

COMPUTE_CAPABILITY = {"a100": 80, "h100": 90, "h200": 90}
"""GPU of a row -> 10 x compute capability. Of another GPU no rule knows what it lacks: ``apply`` asks it."""

WHOLE_MODEL = frozenset({"inductor-max", "tensorrt"})
"""Compilations that make one graph of the transformer's forward."""

REARRANGED = frozenset({"inductor-fused", "inductor-graphs"})
"""Compilations of blocks that are taken apart first."""

INDUCTOR = frozenset({"inductor", "inductor-max"})

WITH_LSE = frozenset({"cudnn", "native-flash"})
"""Attentions whose log-sum-exp lets parts of a softmax be put together, as ring needs it."""

SHARDED_BY_FSDP = frozenset({"none", "bnb-nf4", "bnb-fp4"})
"""Quantisations whose packed weights FSDP2 can cut anywhere: their scales lie elsewhere, whole."""

OF_TORCH = WITH_LSE | {"sdpa"}
"""Attentions that xDiT is told to use by their names in torch."""


@dataclass(frozen=True)
class Refusal:
    name: str
    reason: str
    source: str


@dataclass(frozen=True)
class Rule:
    name: str
    reason: Callable[[Row, str | None], str | None]
    """Of a row and the source of its weights (``hub``, ``synthetic``, ``tiny``; None where it is not known)
    the reason to refuse it, or None."""
    source: str
    """Where the reason can be checked."""


def _chosen(row: Row) -> Iterator[tuple[str, Option]]:
    """(how messages name it, the option) of every axis."""
    from bench.axes import AXES

    for axis, option in row.stack.items():
        yield f"{axis} {option}", AXES[axis][option]


def _gpu_option_on_cpu(row: Row, _: str | None) -> str | None:
    needy = [name for name, option in _chosen(row) if option.needs_gpu]
    if row.gpu is not None or not needy:
        return None
    return f"{' and '.join(needy)} exist on GPUs only"


def _older_gpu(row: Row, _: str | None) -> str | None:
    has = COMPUTE_CAPABILITY.get(row.gpu or "")
    for name, option in _chosen(row):
        if has is not None and option.needs_sm > has:
            needs = f"needs a GPU of compute capability {option.needs_sm / 10:.1f}"
            return f"{name} {needs}, and an {(row.gpu or '').upper()} has {has / 10:.1f}"
    return None


def _precision_of_kernel(row: Row, _: str | None) -> str | None:
    for name, option in _chosen(row):
        if row.gpu is not None and row.precision not in option.gpu_precisions:
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
    if row.parallel not in {PLAIN["parallel"], "replicas"}:
        return f"{row.compilation} takes whole blocks apart, not parts of them: use compilation inductor"
    return None


def _quantised_tensorrt(row: Row, _: str | None) -> str | None:
    if row.compilation != "tensorrt" or row.quantization == PLAIN["quantization"]:
        return None
    return (
        "Torch-TensorRT takes weights of plain dtypes: it exports no tensor subclass (TorchAO, Quanto, GGUF)"
        " and has no converter for bitsandbytes' operators or torch._scaled_mm"
    )


def _compiled_quanto_int4(row: Row, _: str | None) -> str | None:
    if row.quantization != "quanto-int4" or row.precision != "bf16" or row.compilation not in INDUCTOR:
        return None
    return (
        "while torch.compile traces, Quanto's INT4 linear takes the input for a quantised tensor and turns it"
        " into float32, which its bf16 kernel refuses: use compilation none, or torchao-int4wo"
    )


def _attention_inside_tensorrt(row: Row, _: str | None) -> str | None:
    if row.compilation != "tensorrt" or row.attention == PLAIN["attention"]:
        return None
    return f"TensorRT computes attention with kernels of its own, so {row.attention} would not run: use sdpa"


def _ranks_of_hardware(row: Row, _: str | None) -> str | None:
    degrees = degrees_of(row.parallel)
    if row.gpu is None or (degrees is None and row.parallel != "replicas"):
        return None
    if degrees is None:
        needed, has = "several GPUs", row.gpu_count > 1
    else:
        needed, has = f"{degrees.ranks} GPUs", row.gpu_count == degrees.ranks
    return None if has else f"{row.parallel} works on {needed}, and {row.hardware} is {row.gpu_count}"


def _uneven_shares(row: Row, _: str | None) -> str | None:
    degrees, shape = degrees_of(row.parallel), SHAPES[row.model]
    if degrees is None:
        return None
    if shape.heads % degrees.heads:
        return f"{degrees.heads} ranks do not divide the {shape.heads} attention heads of {row.model}"
    for kind, tokens in shape.tokens(row.size).items():
        if tokens % degrees.tokens:
            return f"{degrees.tokens} ranks do not divide the {tokens} {kind} tokens of a {row.size} image"
    return None


def _attention_of_shared_tokens(row: Row, _: str | None) -> str | None:
    degrees = degrees_of(row.parallel)
    if degrees is None or degrees.tokens * degrees.pipefusion == 1:
        return None
    if degrees.xdit and row.attention not in OF_TORCH:
        return f"xDiT calls attention kernels itself, and {row.attention} is an operator of ours: use cudnn"
    if degrees.ring > 1 and row.attention not in WITH_LSE:
        return (
            f"ring puts parts of a softmax together by their log-sum-exp, which attention {row.attention}"
            " does not return: use cudnn or native-flash"
        )
    return None


def _xdit(row: Row, _: str | None) -> str | None:
    degrees = degrees_of(row.parallel)
    if degrees is None or not degrees.xdit:
        return None
    if row.use_case != ("txt2img", "none"):
        return f"xDiT runs FLUX.1 for txt2img without a ControlNet only: use {row.parallel[5:]}"
    if row.cache != PLAIN["cache"]:
        return f"cache {row.cache} computes the forward that xDiT replaces: use {row.parallel[5:]}"
    if degrees.pipefusion > 1 and row.compilation != PLAIN["compilation"]:
        return "PipeFusion keeps keys and values inside its attention from call to call: use compilation none"
    return None


def _shards_of_quantised(row: Row, _: str | None) -> str | None:
    degrees = degrees_of(row.parallel)
    if degrees is None or (degrees.tp == 1 and degrees.fsdp == 1):
        return None
    axes = ("quantization", "text_encoder") if degrees.fsdp > 1 else ("quantization",)
    whole = SHARDED_BY_FSDP if degrees.fsdp > 1 else {PLAIN["quantization"]}
    packed = [f"{axis} {row.stack[axis]}" for axis in axes if row.stack[axis] not in whole]
    if not packed:
        return None
    return (
        f"{row.parallel} shares out weights by rows or columns, and {' and '.join(packed)} packs them with"
        " their scales: use ulysses or ring, which leave weights whole"
    )


def _fsdp_of_two_dtypes(row: Row, _: str | None) -> str | None:
    degrees = degrees_of(row.parallel)
    if degrees is None or degrees.fsdp == 1 or row.precision != "fp16":
        return None
    return "FSDP2 shards weights of one dtype together, and T5 keeps layers in float32 under fp16: use bf16"


def _fsdp_in_one_graph(row: Row, _: str | None) -> str | None:
    degrees = degrees_of(row.parallel)
    if degrees is None or degrees.fsdp == 1 or row.compilation not in WHOLE_MODEL:
        return None
    return "FSDP2 gathers weights between blocks, outside any graph: use compilation inductor"


def _tensorrt_of_ranks(row: Row, _: str | None) -> str | None:
    if row.compilation != "tensorrt" or degrees_of(row.parallel) is None:
        return None
    return "a TensorRT engine holds no collective of torch's: use compilation inductor"


def _parallel_vae_alone(row: Row, _: str | None) -> str | None:
    if row.vae != "parallel" or degrees_of(row.parallel) is not None:
        return None
    return (
        f"vae parallel needs ranks that share each request, and parallel {row.parallel} has none: add it to"
        " ulyssesN, ringN, tpN or fsdpN"
    )


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
        "attention-inside-tensorrt",
        _attention_inside_tensorrt,
        source="torch_tensorrt 2.11.0, dynamo/conversion/aten_ops_converters.py,"
        " aten.scaled_dot_product_attention",
    ),
    Rule("ranks-of-hardware", _ranks_of_hardware, source="DESIGN.md: the degree is in the option's name"),
    Rule(
        "uneven-shares",
        _uneven_shares,
        source="diffusers 0.42.1, hooks/context_parallel.py, EquipartitionSharder.shard;"
        " hooks/tensor_parallel.py, _check_tp_supported",
    ),
    Rule(
        "attention-of-shared-tokens",
        _attention_of_shared_tokens,
        source="_of_heads() in bench/axes/attention/packages.py; diffusers 0.42.1,"
        " models/attention_dispatch.py, 'Native attention does not support return_lse=True'",
    ),
    Rule(
        "xdit",
        _xdit,
        source="xfuser 0.7.0, model_executor/models/transformers/transformer_flux.py, whose ControlNet lines"
        " are comments; model_executor/pipelines/register.py; core/cache_manager/cache_manager.py",
    ),
    Rule(
        "shards-of-quantised-weights",
        _shards_of_quantised,
        source="diffusers 0.42.1, hooks/tensor_parallel.py, 'parameters are packed into a quantizer-specific"
        " layout'; on the tiny model FSDP2 failed with TorchAO and GGUF and"
        " turned Quanto's INT8 back into floats",
    ),
    Rule(
        "fsdp-of-two-dtypes",
        _fsdp_of_two_dtypes,
        source="torch 2.13, distributed/fsdp/_fully_shard/_fsdp_param_group.py, 'FSDP expects uniform"
        " original parameter dtype'; _keep_in_fp32_modules of transformers' T5EncoderModel",
    ),
    Rule(
        "fsdp-in-one-graph",
        _fsdp_in_one_graph,
        source="fullgraph=True in bench/axes/compilation/whole.py; torch 2.13,"
        " distributed/fsdp/_fully_shard/_fsdp_state.py, whose hooks dynamo skips",
    ),
    Rule(
        "tensorrt-of-ranks",
        _tensorrt_of_ranks,
        source="torch_tensorrt 2.11.0, dynamo/conversion/aten_ops_converters.py: no _c10d_functional",
    ),
    Rule(
        "parallel-vae-alone",
        _parallel_vae_alone,
        source="_apply_parallel() in bench/axes/vae.py",
    ),
    Rule("no-image", _no_image, source="images of the options' declarations in bench/axes/"),
    Rule(
        "threshold-cache-on-random-weights",
        _threshold_on_random_weights,
        source="METHOD.md section 9; on random weights FBCache at 0.12 and 0.35 never skipped a step",
    ),
    Rule("replayed-cache-on-real-weights", _replay_on_real_weights, source="METHOD.md section 9"),
)


def refusals(row: Row, weights: str | None = None) -> list[Refusal]:
    """The first rule that forbids the row; empty when it may run. The row's options must be known ones.

    ``weights``: their source, where it is known; without it the rules about weights are silent.
    """
    for rule in RULES:
        if reason := rule.reason(row, weights):
            return [Refusal(rule.name, reason, rule.source)]
    return []


@dataclass(frozen=True)
class Flag:
    name: str
    marks: Callable[[Row], bool]
    detail: str
    source: str


FLAGS: tuple[Flag, ...] = (
    Flag(
        "eager-torchao-dynamic",
        lambda row: (
            row.gpu is not None
            and row.compilation == PLAIN["compilation"]
            and row.quantization.startswith(("torchao-int8dq", "torchao-fp8dq"))
        ),
        detail="TorchAO's dynamic quantisation is meant to be compiled: without, 120 s an image on an H100",
        source="FACTS.md section 7",
    ),
    Flag(
        "eager-ranks",
        lambda row: (
            row.gpu is not None
            and row.compilation == PLAIN["compilation"]
            and degrees_of(row.parallel) is not None
        ),
        detail="eager ranks are bound by launches: Ulysses took 6.0 s on two H200s where one took 4.97",
        source="FACTS.md section 1",
    ),
    Flag(
        "idle-gpus",
        lambda row: row.gpu_count > 1 and row.parallel == PLAIN["parallel"],
        detail="only one of the hardware's GPUs works",
        source="DESIGN.md: single-GPU stacks stand under x1 and cpu only",
    ),
    Flag(
        "int4-at-many-tokens",
        lambda row: row.gpu is not None and row.quantization == "torchao-int4wo",
        detail="TorchAO's INT4 kernel is made for few tokens: about ten times slower than bf16 at 4608",
        source="FACTS.md section 7",
    ),
)


def flags(row: Row) -> list[Flag]:
    """What to know of a row that may run."""
    return [flag for flag in FLAGS if flag.marks(row)]
