"""Products of the blocks, arranged so that less is written between them.

* GELU is computed where the product before it ends (cuBLASLt's epilogue), not by a kernel that reads and
  writes the widest tensor of the block again.
* A single block's last linear reads attention and MLP side by side; as two products whose sum it is, nothing
  has to be laid side by side first.

Equal to diffusers' blocks (0.42.1) but for the rounding of that one sum. Imports torch: only ``fused``
imports this module, and only when it is applied.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

FP16_MAX = 65504


@torch.library.custom_op("fluxbench::linear_gelu", mutates_args=())
def linear_gelu(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(..., in) x (out, in) -> (..., out), GELU in its tanh form."""
    if not hidden.is_cuda:
        return F.gelu(F.linear(hidden, weight, bias), approximate="tanh")
    # On CUDA, and there alone, this operator's GELU is the tanh form (aten/src/ATen/native/cuda/Blas.cpp).
    product = torch._addmm_activation(bias, hidden.flatten(0, -2), weight.t(), use_gelu=True)
    return product.unflatten(0, hidden.shape[:-1])


@linear_gelu.register_fake
def _(hidden: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor) -> torch.Tensor:
    return hidden.new_empty((*hidden.shape[:-1], weight.shape[0]))


class LinearGelu(torch.nn.Module):
    """A linear and the GELU after it."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear_gelu(hidden, self.linear.weight, self.linear.bias)


class SplitSingleBlock(FluxSingleTransformerBlock):
    """A single block whose ``proj_out`` is two linears, over what attention and MLP hand it."""

    proj_attended: Any
    proj_activated: Any

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text_tokens = encoder_hidden_states.shape[1]
        hidden = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(hidden, emb=temb)
        attended = self.attn(
            hidden_states=normed, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {})
        )
        change = self.proj_attended(attended) + self.proj_activated(self.act_mlp(self.proj_mlp(normed)))
        hidden = hidden + gate.unsqueeze(1) * change
        if hidden.dtype == torch.float16:
            hidden = hidden.clip(-FP16_MAX, FP16_MAX)
        return hidden[:, :text_tokens], hidden[:, text_tokens:]


def merge_gelu(component: Any) -> int:
    """Every GELU that follows a plain linear; returns how many. A quantised linear keeps its GELU, which
    inductor computes inside the kernel that quantises."""
    layers: list[Any] = [module.net for module in component.modules() if isinstance(module, FeedForward)]
    plain = [net for net in layers if isinstance(net[0], GELU) and _is_plain(net[0].proj)]
    for net in plain:
        net[0] = LinearGelu(net[0].proj)
    singles = [block for block in _single_blocks(component) if _is_plain(block.proj_mlp)]
    for block in singles:
        block.proj_mlp, block.act_mlp = LinearGelu(block.proj_mlp), torch.nn.Identity()
    return len(plain) + len(singles)


def _is_plain(linear: Any) -> bool:
    return type(linear) is torch.nn.Linear


def _single_blocks(component: Any) -> list[Any]:
    return [module for module in component.modules() if isinstance(module, FluxSingleTransformerBlock)]


def split_single_blocks(component: Any) -> int:
    """Returns how many."""
    blocks = _single_blocks(component)
    for block in blocks:
        whole, width = block.proj_out, block.attn.inner_dim
        block.proj_attended = _columns(whole, slice(None, width), bias=True)
        block.proj_activated = _columns(whole, slice(width, None), bias=False)
        del block.proj_out
        block.__class__ = SplitSingleBlock
    return len(blocks)


def _columns(linear: Any, columns: slice, *, bias: bool) -> Any:
    """The part of a linear, plain or ours in fp8, that reads these inputs: ``weight`` is (out, in), and the
    scales of fp8 belong to its rows."""
    part = copy.deepcopy(linear)
    weight = linear.weight.detach()[:, columns].contiguous()
    plain = isinstance(linear.weight, torch.nn.Parameter)
    part.weight = torch.nn.Parameter(weight, requires_grad=False) if plain else weight
    part.in_features = weight.shape[1]
    if not bias:
        part.bias = None
    return part
