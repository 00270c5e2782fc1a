"""Ranks of ``bench.equality`` that run xDiT's own code without GPUs: what it lacks there is put in its place.

xDiT chooses its collectives, device and kernels when it is imported, by the GPU that it sees. Here it is told
that there is one, and then given gloo, the CPU and torch's FlashAttention for CPUs.

torchrun --nproc-per-node 2 -m xdit_on_gloo cases.json folder

Rank 0 leaves the evidence of the last row's method in the file that EVIDENCE names.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from bench import equality_ranks, tryout
from bench.axes import AXES
from bench.axes.parallel import xdit

_in_flight: list[Any] = []
"""Messages on their way. NCCL keeps what it sends until it is sent; gloo leaves that to the caller."""


def import_as_if_on_a_gpu() -> None:
    from diffusers import FluxPipeline  # noqa: F401 - it and what it imports look for themselves first

    a_gpu = {
        "is_available": mock.Mock(return_value=True),
        "device_count": mock.Mock(return_value=1),
        "current_device": mock.Mock(return_value=0),
        "get_device_name": mock.Mock(return_value="NVIDIA H100"),
        "get_device_properties": mock.Mock(return_value=mock.Mock(gcnArchName="")),
    }
    with mock.patch.object(torch.version, "cuda", "13.0"), mock.patch.multiple(torch.cuda, **a_gpu):
        import xfuser.model_executor.models.transformers.transformer_flux  # noqa: F401


def replace_what_wants_a_gpu() -> None:
    from xfuser import envs
    from xfuser.core.distributed import attention_backend, group_coordinator

    # Not through mock: for the life of the process.
    torch.version.cuda = None  # where xDiT looks when it asks for a device
    envs.get_torch_distributed_backend = lambda: "gloo"
    torch.cuda.current_device = lambda: int(os.environ["LOCAL_RANK"])
    torch.cuda.empty_cache = lambda: None
    group_coordinator.synchronize = lambda *_: None
    kernels = attention_backend.ATTENTION_FUNCTION_REGISTRY
    kernels[attention_backend.AttentionBackendType.SDPA_FLASH] = _flash_attention
    coordinator = group_coordinator.PipelineGroupCoordinator
    coordinator._pipeline_isend = _kept(coordinator._pipeline_isend)
    dist.batch_isend_irecv = _without_waiting_to_send(dist.batch_isend_irecv)
    tryout.require = lambda *_: None


def _flash_attention(
    query: Any, key: Any, value: Any, dropout_p: float, is_causal: bool, attention_kwargs: Any = None
) -> Any:
    """(batch, heads, tokens, channels) each -> the same, and the log-sum-exp."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal)


def keep_evidence(path: Path) -> None:
    """Of every option of xDiT; ``equality_ranks`` wants only that there is some."""
    for option in xdit.OPTIONS:

        def verify(session: Any, verify: Any = option.verify) -> Any:
            found = verify(session)
            if os.environ["RANK"] == "0":
                path.write_text(json.dumps(found))
            return found

        AXES["parallel"][option.id] = dataclasses.replace(option, verify=verify)


def _kept(send: Any) -> Any:
    def run(self: Any, tensor: Any) -> Any:
        work = send(self, tensor)
        _in_flight.append((work, tensor))
        return work

    return run


def _without_waiting_to_send(batch: Any) -> Any:
    """A short message leaves before its receiver asks for it over NCCL, not over gloo."""

    def run(operations: Any) -> Any:
        works = batch(operations)
        _in_flight.extend(zip(operations, works, strict=True))
        return [work for asked, work in zip(operations, works, strict=True) if asked.op is dist.irecv]

    return run


if __name__ == "__main__":
    import_as_if_on_a_gpu()
    replace_what_wants_a_gpu()
    keep_evidence(Path(os.environ["EVIDENCE"]))
    equality_ranks.main(Path(sys.argv[1]), Path(sys.argv[2]))
