"""One device works alone."""

from __future__ import annotations

from bench.axes.option import Evidence, NotApplied, Option, Session


def _verify(session: Session) -> Evidence:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise NotApplied(f"parallel none: this process is one of {dist.get_world_size()} ranks")
    return {"ranks": 1}


NONE = Option("none", "One device", verify=_verify)
