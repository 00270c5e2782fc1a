"""xDiT's methods (xfuser 0.7.0), for txt2img without a ControlNet: all that it has for FLUX.1.

Ulysses, ring and their sharded weights go the way of its runners: the transformer becomes one of xDiT's
class, whose forward shares out the tokens, and the pipeline stays diffusers'. PipeFusion replaces the
pipeline's whole call; its result is on the last rank alone, and is handed to all, as every other method
leaves it. Text encoders and VAE run on every rank.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bench.axes.denoisers import processors
from bench.axes.option import Evidence, NotApplied, Option, Session, Unavailable
from bench.axes.parallel import evidence, group
from bench.axes.parallel.degrees import Degrees, degrees_of
from bench.axes.profiles import Collective
from bench.flux import MODELS

if TYPE_CHECKING:
    from bench.matrix import Row

XFUSER = "xfuser==0.7.0"
ATTENTION = {"sdpa": "SDPA", "cudnn": "CUDNN", "native-flash": "SDPA_FLASH"}
"""Option of axis attention -> xDiT's name of the same kernel; it would choose another by itself."""

STALE = 0.3
"""``latent_tolerance`` of PipeFusion: all steps but the first attend to the step before's keys and values of
the other patches. Nobody published how far that moves latents; what it moved them stands in the result."""


def _apply(degrees: Degrees, session: Session) -> None:
    engine = _engine(degrees, session)
    if degrees.pipefusion > 1:
        _pass_patches_on(engine, session)
        return
    _share_tokens(engine, session)
    if degrees.fsdp > 1:
        _share_weights(session)


def _require(option: str, ranks: int, row: Row, device: str) -> None:
    label = f"{row.label}: parallel {option}"
    try:
        import xfuser  # noqa: F401
    except (ImportError, NotImplementedError) as error:  # the latter where it sees no accelerator
        raise Unavailable(
            f"{label} needs xDiT ({error}); pip install {XFUSER}, or run the row in image xdit"
        ) from error
    group.require_ranks(option, ranks, row, device)


def _engine(degrees: Degrees, session: Session) -> Any:
    """xDiT's process groups, over the ranks that are there, and its settings."""
    import torch
    from xfuser import xFuserArgs
    from xfuser.core.distributed import init_distributed_environment

    init_distributed_environment(local_rank=torch.cuda.current_device())
    engine, _ = xFuserArgs(
        ulysses_degree=degrees.ulysses * degrees.fsdp,
        ring_degree=degrees.ring,
        pipefusion_parallel_degree=degrees.pipefusion,
        fully_shard_degree=degrees.fsdp,
        attention_backend=ATTENTION[session.row.attention],
        height=session.row.size,
        width=session.row.size,
    ).create_config()
    engine.runtime_config.dtype = session.dtype
    return engine


def _share_tokens(engine: Any, session: Session) -> None:
    from xfuser.core.distributed import get_runtime_state, initialize_runtime_state
    from xfuser.core.distributed.fp8_comms import register_fp8_comms_eligible_modules
    from xfuser.model_executor.models.transformers import transformer_flux

    initialize_runtime_state(session.pipe, engine)
    get_runtime_state().set_input_parameters(
        height=session.row.size,
        width=session.row.size,
        batch_size=1,
        num_inference_steps=session.row.steps,
        max_condition_sequence_length=MODELS[session.row.model].settings.text_tokens,
    )
    transformer = session.pipe.transformer
    attentions = transformer_flux.flux_attn_modules(transformer)
    for attention in attentions:
        backend = attention.processor._attention_backend
        attention.processor = transformer_flux.xFuserFluxAttnProcessor()
        attention.processor._attention_backend = backend
    # What its constructor does, on the weights that are there: it would draw new ones.
    transformer.__class__ = transformer_flux.xFuserFlux1Transformer2DWrapper
    register_fp8_comms_eligible_modules(transformer, attentions)


def _share_weights(session: Session) -> None:
    """By FSDP2, which xDiT takes for a memory-efficient start; its other way, FSDP1, hides in flat parameters
    what each rank holds."""
    import torch
    from xfuser.core.distributed.parallel_state import get_fs_group
    from xfuser.core.distributed.sharding import shard_component

    pipe = session.pipe
    for component, blocks in (
        (pipe.transformer, ["transformer_blocks", "single_transformer_blocks"]),
        (pipe.text_encoder_2, ["encoder.block"]),
    ):
        shard_component(
            component,
            blocks,
            process_group=get_fs_group().device_group,
            device_id=torch.cuda.current_device(),
            memory_efficient_init=True,
        )
    torch.cuda.empty_cache()


def _pass_patches_on(engine: Any, session: Session) -> None:
    """The pipeline's class is replaced by one whose call is xDiT's: who holds the pipeline keeps it."""
    import torch
    import torch.distributed as dist
    from xfuser import xFuserFluxPipeline
    from xfuser.model_executor.layers.attention_processor import xFuserAttentionBaseWrapper

    pipe, row, dtype = session.pipe, session.row, session.dtype
    backend = next(iter(processors(pipe.transformer)))._attention_backend
    wrapped = xFuserFluxPipeline(pipe, engine)
    for module in pipe.transformer.modules():
        if isinstance(module, xFuserAttentionBaseWrapper):
            module.module.processor = None  # called no more: the wrapper has one of its own
    for processor in processors(pipe.transformer):
        processor._attention_backend = backend
    last = dist.get_world_size() - 1

    def call(self: Any, **arguments: Any) -> Any:
        from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

        arguments.pop("callback_on_step_end", None)  # steps overlap: none has a time of its own
        output = wrapped(**arguments)
        images = len(arguments["generator"])
        tokens, channels = MODELS[row.model].tokens(row.size)["image"], self.transformer.config.in_channels
        latents = torch.empty(images, tokens, channels, dtype=dtype, device=session.device)
        if output is not None:
            latents.copy_(output.images)
        dist.broadcast(latents, src=last)
        return FluxPipelineOutput(images=latents)  # type: ignore[arg-type]  # output_type is "latent"

    pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {"__call__": call})


def _verify_pipefusion(option: str, session: Session) -> Evidence:
    """Every rank holds blocks, together they hold each once, and each passes every patch on in a step."""
    from xfuser.core.distributed import get_runtime_state

    transformer = session.pipe.transformer
    config = transformer.config
    total = config.num_layers + config.num_single_layers
    state = get_runtime_state()
    patches, synchronous = state.num_pipeline_patch, state.runtime_config.warmup_steps
    mine = {
        "blocks": len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks),
        "collectives": {evidence.SEND: _sent_in_a_step(session, synchronous)._asdict()},
    }
    by_rank = group.of_all_ranks(mine)
    blocks = [each["blocks"] for each in by_rank]
    if sum(blocks) != total or not all(blocks):
        raise NotApplied(f"parallel {option}: the ranks hold {blocks} blocks, of {total}")
    messages = [each["collectives"][evidence.SEND]["calls"] for each in by_rank]
    if min(messages) < patches:
        raise NotApplied(
            f"parallel {option}: the ranks sent {messages} messages in a step of {patches} patches"
        )
    return {"ranks": len(by_rank), "by_rank": by_rank, "patches": patches, "synchronous_steps": synchronous}


def _sent_in_a_step(session: Session, synchronous_steps: int) -> Collective:
    """By this rank, of the steps in which patches travel: what one more of them adds to a request. The last
    step of a request sends less, for its result goes nowhere."""
    fewer, more = (_sent(session, synchronous_steps + travelling) for travelling in (1, 2))
    return Collective(more.calls - fewer.calls, more.input_bytes - fewer.input_bytes)


def _sent(session: Session, steps: int) -> Collective:
    """By this rank to the next one of the pipeline, in a request."""
    from xfuser.core.distributed import get_pp_group

    coordinator, sizes = get_pp_group(), list[int]()
    send = coordinator._pipeline_isend

    def counted(tensor: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return send(tensor)

    coordinator._pipeline_isend = counted
    try:
        session.run(steps=steps)
    finally:
        del coordinator._pipeline_isend
    return Collective(len(sizes), sum(sizes))


def _option(id: str, title: str) -> Option:
    degrees = degrees_of(id)
    assert degrees is not None
    declare = partial(
        Option,
        id,
        title,
        require=partial(_require, id, degrees.ranks),
        apply=partial(_apply, degrees),
        images=frozenset({"xdit"}),
        needs_gpu=True,
    )
    if degrees.pipefusion > 1:
        return declare(verify=partial(_verify_pipefusion, id), latent_tolerance=STALE)
    return declare(verify=partial(evidence.verify, id, degrees), exact=True)


_TITLES = {
    "ulysses": "xDiT, Ulysses",
    "ring": "xDiT, ring",
    "pipefusion": "xDiT, PipeFusion",
    "fsdp": "FSDP-xDiT",
}
OPTIONS = tuple(_option(f"xdit-{way}{n}", f"{name} {n}") for way, name in _TITLES.items() for n in (2, 4, 8))
