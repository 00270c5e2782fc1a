"""Products of the blocks, arranged so that less is written between them.

* GELU is computed where the product before it ends (cuBLASLt's epilogue), not by a kernel that reads and
  writes the widest tensor of the block again; or, where the product after it is in fp8, by the one kernel
  that quantises for it.
* A single block's last linear reads attention and MLP side by side; as two products whose sum it is, nothing
  has to be laid side by side first.

Equal to diffusers' blocks (0.42.1) but for rounding: of that one sum, of GELU, and of fp8, where attention
and MLP now have scales of their own. Imports torch: only ``fused`` imports this module, and only when it is
applied.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

from bench.axes.quantization.fp8_linear import FP8, ScaledMmLinear, to_fp8_rows

FP16_MAX = 65504


@torch.library.custom_op("fluxbench_fused::linear_gelu", mutates_args=())
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


@torch.library.custom_op("fluxbench_fused::gelu_to_fp8_rows", mutates_args=())
def gelu_to_fp8_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, features) -> ``to_fp8_rows`` of their GELU in its tanh form. On CUDA one kernel, which keeps a
    row in registers; inductor's reads the row twice and computes its GELU twice. Its GELU is within a few
    float32 roundings of torch's, so values that lie between two of fp8 may go to the other.

    No ``triton_op``: what inductor compiled would then be found in its cache again after an edit of the
    kernel, which is no part of the graph's key unless torch's search for it in this function succeeds."""
    if not values.is_cuda:
        return to_fp8_rows(F.gelu(values, approximate="tanh"))
    from bench.axes.compilation import kernels

    return kernels.gelu_to_fp8_rows(values)


@gelu_to_fp8_rows.register_fake
def _(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(values, dtype=FP8), values.new_empty((len(values), 1), dtype=torch.float32)


class GeluScaledMmLinear(ScaledMmLinear):
    """Takes what GELU has not been applied to yet, and the product of what it has."""

    def quantise(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gelu_to_fp8_rows(values)


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


class Mlp(NamedTuple):
    """Of a feed-forward or a single block, as its modules stand now."""

    first: Any
    """The linear before GELU, alone or in a module with it."""
    last: Any
    """The linear that reads what GELU hands on; None where a single block was not split."""


def _mlps(component: Any) -> list[Mlp]:
    nets: list[Any] = [module.net for module in component.modules() if isinstance(module, FeedForward)]
    of_singles = [(block.proj_mlp, getattr(block, "proj_activated", None)) for block in _singles(component)]
    return [Mlp(net[0], net[2]) for net in nets] + [Mlp(*linears) for linears in of_singles]


def gelus(component: Any) -> dict[str, tuple[int, int]]:
    """Where GELUs are computed -> how many by the modules that are there now, and how many could be. Between
    a quantised linear and a plain one a GELU stays a kernel of its own."""
    modules, mlps = list(component.modules()), _mlps(component)
    quantising = [mlp for mlp in mlps if isinstance(mlp.last, ScaledMmLinear)]
    multiplying = [mlp for mlp in mlps if mlp not in quantising and _is_plain(_linear_of(mlp.first))]
    return {
        "gelus_in_quantisation": (_count(GeluScaledMmLinear, modules), len(quantising)),
        "gelus_in_products": (_count(LinearGelu, modules), len(multiplying)),
    }


def _count(kind: type, modules: list[Any]) -> int:
    return sum(isinstance(module, kind) for module in modules)


def _linear_of(first: Any) -> Any:
    return first.linear if isinstance(first, LinearGelu) else getattr(first, "proj", first)


def gelus_into_quantisation(component: Any) -> None:
    """Every GELU before a linear of ours in fp8. Single blocks are to be split before."""
    for net in _gelu_nets(component):
        if isinstance(net[2], ScaledMmLinear):
            net[0] = net[0].proj
            net[2].__class__ = GeluScaledMmLinear
    for block in _singles(component):
        if isinstance(block.proj_activated, ScaledMmLinear):
            block.act_mlp = torch.nn.Identity()
            block.proj_activated.__class__ = GeluScaledMmLinear


def gelus_into_products(component: Any) -> None:
    """Every GELU that is left, after a plain linear."""
    for net in _gelu_nets(component):
        if _is_plain(net[0].proj):
            net[0] = LinearGelu(net[0].proj)
    for block in _singles(component):
        if isinstance(block.act_mlp, torch.nn.GELU) and _is_plain(block.proj_mlp):
            block.proj_mlp, block.act_mlp = LinearGelu(block.proj_mlp), torch.nn.Identity()


def _gelu_nets(component: Any) -> list[Any]:
    """Of the feed-forwards that still have it: GELU with the linear before it, dropout, the linear after."""
    nets: list[Any] = [module.net for module in component.modules() if isinstance(module, FeedForward)]
    return [net for net in nets if isinstance(net[0], GELU)]


def _is_plain(linear: Any) -> bool:
    return type(linear) is torch.nn.Linear


def _singles(component: Any) -> list[Any]:
    return [module for module in component.modules() if isinstance(module, FluxSingleTransformerBlock)]


def splits(component: Any) -> tuple[int, int]:
    """Single blocks that are split now, of how many."""
    blocks = _singles(component)
    return _count(SplitSingleBlock, blocks), len(blocks)


def split_single_blocks(component: Any) -> None:
    for block in _singles(component):
        whole, width = block.proj_out, block.attn.inner_dim
        block.proj_attended = _columns(whole, slice(None, width), bias=True)
        block.proj_activated = _columns(whole, slice(width, None), bias=False)
        del block.proj_out
        block.__class__ = SplitSingleBlock


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
