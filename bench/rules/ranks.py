"""Rules of what several GPUs can share."""

from __future__ import annotations

from bench.axes.parallel.degrees import Degrees, degrees_of
from bench.flux import MODELS
from bench.matrix import PLAIN, Row
from bench.rules.rule import WHOLE_MODEL, Rule

WITH_LSE = frozenset({"cudnn", "native-flash"})
"""Attentions whose log-sum-exp lets parts of a softmax be put together, as ring needs it."""

SHARDED_BY_FSDP = frozenset({"none", "bnb-nf4", "bnb-fp4"})
"""Quantisations whose packed weights FSDP2 can cut anywhere: their scales lie elsewhere, whole."""

OF_TORCH = WITH_LSE | {"sdpa"}
"""Attentions that xDiT is told to use by their names in torch."""


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
    degrees, model = degrees_of(row.parallel), MODELS[row.model]
    if degrees is None:
        return None
    if model.heads % degrees.heads:
        return f"{degrees.heads} ranks do not divide the {model.heads} attention heads of {row.model}"
    for kind, tokens in model.tokens(row.size).items():
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
        return f"xDiT runs FLUX.1 for txt2img without a ControlNet only: use {_of_diffusers(degrees)}"
    if row.cache != PLAIN["cache"]:
        return f"cache {row.cache} computes the forward that xDiT replaces: use {_of_diffusers(degrees)}"
    if degrees.pipefusion > 1 and row.compilation != PLAIN["compilation"]:
        return "PipeFusion keeps keys and values inside its attention from call to call: use compilation none"
    return None


def _of_diffusers(xdit: Degrees) -> str:
    """The option that does what xDiT's does; PipeFusion is xDiT's alone."""
    ways = {"ring": xdit.ring, "fsdp": xdit.fsdp}
    way = next((way for way, ranks in ways.items() if ranks > 1), "ulysses")
    return f"{way}{xdit.ranks}"


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


RULES: tuple[Rule, ...] = (
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
)
