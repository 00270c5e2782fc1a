"""parallel: how several GPUs share a row. So far one works alone."""

from __future__ import annotations

from bench.axes.option import Evidence, NotApplied, Option, Session


def _verify_none(session: Session) -> Evidence:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise NotApplied(f"parallel none: this process is one of {dist.get_world_size()} ranks")
    return {"ranks": 1}


OPTIONS = (Option("none", "One device", verify=_verify_none),)
