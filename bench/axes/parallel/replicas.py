"""One pipeline on each GPU behind one queue: the throughput control of every method that shares a request.

The queue is the conductor's (``runner.ranks.Apart``). No rank waits for another while it serves; what each
served is counted with every request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.axes.option import Counts, Evidence, NotApplied, Option, Session
from bench.axes.parallel import group

if TYPE_CHECKING:
    from bench.matrix import Row


def _require(row: Row, device: str) -> None:
    from bench.axes.parallel import ranks_of

    group.require_ranks("replicas", ranks_of(row), row, device)


def _apply(session: Session) -> None:
    session.after_request["parallel"] = _counts


def _counts() -> Counts:
    import torch.distributed as dist

    return {f"served_by_rank_{dist.get_rank()}": 1}


def _verify(session: Session) -> Evidence:
    """Each rank serves a request on a device of its own, and none needs another for it."""
    session.run(steps=1)
    devices = group.of_all_ranks(_device(session))
    if session.device == "cuda" and len(set(devices)) < len(devices):
        raise NotApplied(
            f"parallel replicas: {len(devices)} ranks serve on {len(set(devices))} GPUs: {devices}"
        )
    return {"ranks": len(devices), "devices": devices}


def _device(session: Session) -> str:
    import os

    import torch

    if session.device != "cuda":
        return f"process {os.getpid()}"
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


OPTION = Option(
    "replicas", "Replicas behind one queue", require=_require, apply=_apply, verify=_verify, exact=True
)
