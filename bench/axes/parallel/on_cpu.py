"""What diffusers 0.42.1's parallelism lacks on a CPU, so that its methods can be proved right without GPUs.

Collectives are gloo's; everything else is the code that runs on GPUs. Three gaps:

* ``enable_parallelism`` divides by the number of accelerators, which is 0;
* tensor parallelism is refused on devices that are not in a list;
* ring attention needs an attention that returns its log-sum-exp. torch's FlashAttention has one on the CPU
  too, but under another name than on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def parallelism(device: str) -> Iterator[None]:
    """While ``enable_parallelism`` runs. Nothing changes on a GPU."""
    if device != "cpu":
        yield
        return
    import torch
    from diffusers.hooks import tensor_parallel
    from diffusers.models import attention_dispatch

    attention_dispatch._native_flash_attention_forward_op = _flash_attention  # type: ignore[assignment]
    devices = (*tensor_parallel._SUPPORTED_TP_DEVICES, "cpu")
    with (
        mock.patch.object(torch.accelerator, "device_count", return_value=1),
        mock.patch.object(tensor_parallel, "_SUPPORTED_TP_DEVICES", devices),
    ):
        yield


def _flash_attention(
    _ctx: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _save_ctx: bool = True,
    _parallel_config: Any = None,
) -> Any:
    """As ``attention_dispatch._native_flash_attention_forward_op``, forward only. (batch, tokens, heads,
    channels) each; the log-sum-exp is (batch, tokens, heads)."""
    import torch

    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    found, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *heads_first, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )
    found = found.transpose(1, 2).contiguous()
    return (found, lse.transpose(1, 2).contiguous()) if return_lse else found
