"""Queries and keys normalised, joined and turned by one operator, for attention that diffusers dispatches.

In diffusers' blocks (0.42.1) RMSNorm, the concatenation of text and image, and the rotary embedding are
steps that inductor computes in two to three passes over queries and keys.

Imports torch: only ``fused`` imports this module, and only when it is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections

from bench.axes.compilation.exchange import ulysses_of
from bench.axes.denoisers import processors


def norm_then_rotate(
    streams: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """diffusers' steps; see the operator."""
    channels = cos.shape[1]
    normed = [
        F.rms_norm(stream.unflatten(-1, (-1, channels)), (channels,), weight, eps)
        for stream, weight in zip(streams, weights, strict=True)
    ]
    joined: Any = torch.cat(normed, dim=1)
    rotary: Any = (cos, sin)
    rotated: Any = apply_rotary_emb(joined, rotary, sequence_dim=1)
    return rotated


@torch.library.custom_op("fluxbench_fused::rms_norm_rotary", mutates_args=())
def rms_norm_rotary(
    streams: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """``streams``: text and image, or both as one; each (batch, its tokens, heads x channels), with the
    (channels,) weight of its norm. ``cos`` and ``sin``: (all tokens, channels), float32. Returns
    (batch, all tokens, heads, channels)."""
    if streams[0].is_cuda:
        from bench.axes.compilation import kernels

        return kernels.rms_norm_rotary(streams, weights, eps, cos, sin)
    return norm_then_rotate(streams, weights, eps, cos, sin)


@rms_norm_rotary.register_fake
def _(
    streams: Sequence[torch.Tensor],
    _weights: Sequence[torch.Tensor],
    _eps: float,
    cos: torch.Tensor,
    _sin: torch.Tensor,
) -> torch.Tensor:
    batch, _, width = streams[0].shape
    tokens, channels = cos.shape
    return streams[0].new_empty((batch, tokens, width // channels, channels))


class RotaryProcessor(FluxAttnProcessor):
    """diffusers' processor of FLUX's attention but for that operator."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        cos, sin = image_rotary_emb
        query, key, value, *text = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        if encoder_hidden_states is None:
            queries, query_norms = [query], [attn.norm_q.weight]
            keys, key_norms = [key], [attn.norm_k.weight]
        else:
            queries, query_norms = [text[0], query], [attn.norm_added_q.weight, attn.norm_q.weight]
            keys, key_norms = [text[1], key], [attn.norm_added_k.weight, attn.norm_k.weight]
            value = torch.cat([text[2], value], dim=1)
        query = rms_norm_rotary(queries, query_norms, attn.norm_q.eps, cos, sin)
        key = rms_norm_rotary(keys, key_norms, attn.norm_k.eps, cos, sin)
        value = value.unflatten(-1, (-1, attn.head_dim))
        ulysses = ulysses_of(self._parallel_config)
        if ulysses:
            query, key, value = ulysses.heads_of_all_tokens((query, key, value))
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=None if ulysses else self._parallel_config,
        )
        if ulysses:
            attended = ulysses.tokens_of_all_heads(attended)
        attended = attended.flatten(2, 3).to(hidden_states.dtype)
        if encoder_hidden_states is None:
            return attended
        text_tokens = encoder_hidden_states.shape[1]
        of_text, of_image = attended[:, :text_tokens].contiguous(), attended[:, text_tokens:].contiguous()
        return attn.to_out[1](attn.to_out[0](of_image)), attn.to_add_out(of_text)


def use_rotary_processors(component: Any) -> None:
    """In the place of diffusers' own, whose choice of backend they keep."""
    for module in component.modules():
        if type(getattr(module, "processor", None)) is FluxAttnProcessor:
            module.processor.__class__ = RotaryProcessor


def rotaries(component: Any) -> tuple[int, int]:
    """Processors that are ours now, of how many."""
    found = processors(component)
    return sum(isinstance(processor, RotaryProcessor) for processor in found), len(found)
