"""Ulysses' exchange of tokens for heads, with queries, keys and values in one message.

diffusers (0.42.1, TemplatedUlyssesAttention) sends the three one after the other. At 1024 pixels on two GPUs
each is so small that half of its time is the latency of a message.

Imports torch: only ``rotary`` imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import _all_to_all_single


class Ulysses(NamedTuple):
    """The ranks that share out heads among them."""

    ranks: int
    group: Any

    def heads_of_all_tokens(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each (batch, own tokens, heads, channels) -> (batch, all tokens, own heads, channels)."""
        together = torch.stack(tuple(parts)).unflatten(3, (self.ranks, -1))
        received = _all_to_all_single(together.movedim(3, 0).contiguous(), self.group)
        return [part.movedim(0, 1).flatten(1, 2).contiguous() for part in received.unbind(1)]

    def tokens_of_all_heads(self, attended: torch.Tensor) -> torch.Tensor:
        """The way back: (batch, all tokens, own heads, channels) -> (batch, own tokens, heads, channels)."""
        by_rank = attended.unflatten(1, (self.ranks, -1)).movedim(1, 0).contiguous()
        return _all_to_all_single(by_rank, self.group).movedim(0, 2).flatten(2, 3).contiguous()


def ulysses_of(parallel_config: Any) -> Ulysses | None:
    """None where tokens are not shared out, or by ring too: diffusers joins those two."""
    config = None if parallel_config is None else parallel_config.context_parallel_config
    if config is None or config.ulysses_degree == 1 or config.ring_degree > 1:
        return None
    return Ulysses(config.ulysses_degree, config._ulysses_mesh.get_group())
