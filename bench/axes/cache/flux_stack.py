"""``FluxTransformer2DModel.forward`` of diffusers 0.42.1, cut where a cache decides.

    embed -> [first block] -> decide -> (the other blocks, with the ControlNet's residuals) -> head

The arithmetic and its order are diffusers', so that a request in which every step is computed is equal to
one without a cache, bit for bit; a test holds this for all twelve use cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Streams:
    """What the blocks pass on, and what they are all given."""

    image: Any
    """(batch, image tokens, width)"""
    text: Any
    """(batch, text tokens, width)"""
    conditioning: Any
    """Embedded timestep, guidance and pooled text: (batch, width)."""
    rotary: Any
    """Rotary position embeddings of text and image tokens: (cos, sin)."""


@dataclass(frozen=True)
class Control:
    """The ControlNet's residuals as diffusers' pipelines pass them on."""

    double: Any = None
    """Tensors of ``Streams.image``'s shape, one for several double blocks; or None."""
    single: Any = None
    repeat: bool = False
    """Take the double blocks' residuals in turn (XLabs) instead of each for a run of blocks."""


def blocks_of(transformer: Any) -> list[Any]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def embed(
    transformer: Any,
    latents: Any,
    prompt: Any,
    pooled: Any,
    timestep: Any,
    guidance: Any,
    text_ids: Any,
    image_ids: Any,
) -> Streams:
    import torch

    image = transformer.x_embedder(latents)
    conditioned = conditioning(transformer, timestep, guidance, pooled, image.dtype)
    text = transformer.context_embedder(prompt)
    rotary = transformer.pos_embed(torch.cat((text_ids, image_ids), dim=0))
    return Streams(image, text, conditioned, rotary)


def conditioning(component: Any, timestep: Any, guidance: Any, pooled: Any, dtype: Any) -> Any:
    """``Streams.conditioning`` of a transformer or ControlNet: timestep in [0, 1], guidance (or None) and
    pooled text are as the pipelines hand them over, rows of one batch."""
    scalars = [each.to(dtype) * 1000 for each in (timestep, guidance) if each is not None]
    return component.time_text_embed(*scalars, pooled)


def run_block(block: Any, streams: Streams) -> Streams:
    text, image = block(
        hidden_states=streams.image,
        encoder_hidden_states=streams.text,
        temb=streams.conditioning,
        image_rotary_emb=streams.rotary,
        joint_attention_kwargs=None,
    )
    return replace(streams, image=image, text=text)


def run_stack(
    transformer: Any, streams: Streams, control: Control, done: int, run: Callable[[Any, Streams], Streams]
) -> Streams:
    """All blocks but the first ``done``, whose ControlNet residuals are still to be added to ``streams``."""
    steps = zip(blocks_of(transformer), _residuals(transformer, control), strict=True)
    for index, (block, residual) in enumerate(steps):
        if index >= done:
            streams = run(block, streams)
        if residual is not None:
            streams = replace(streams, image=streams.image + residual)
    return streams


def _residuals(transformer: Any, control: Control) -> Iterator[Any]:
    """What the ControlNet adds to the image tokens after each block; None for nothing."""
    double, single = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    if control.repeat and control.double is not None:
        yield from (control.double[index % len(control.double)] for index in range(double))
    else:
        yield from _spread(control.double, double)
    yield from _spread(control.single, single)


def _spread(residuals: Any, blocks: int) -> Iterator[Any]:
    if residuals is None:
        yield from [None] * blocks
        return
    run_length = -(-blocks // len(residuals))
    yield from (residuals[index // run_length] for index in range(blocks))


def modulated_input(transformer: Any, streams: Streams) -> Any:
    """The image tokens as the first block's attention reads them."""
    with _weights_here(block := transformer.transformer_blocks[0]):
        return block.norm1(streams.image, emb=streams.conditioning)[0]


@contextmanager
def _weights_here(block: Any) -> Iterator[None]:
    """FSDP gathers a block's weights when the block is called, and this part of it is called by itself."""
    sharded = hasattr(block, "unshard")
    if sharded:
        block.unshard()
    try:
        yield
    finally:
        if sharded:
            block.reshard()


def head(transformer: Any, streams: Streams) -> Any:
    return transformer.proj_out(transformer.norm_out(streams.image, streams.conditioning))
