"""One device works alone."""

from __future__ import annotations

from bench.axes.option import Evidence, NotApplied, Option, Session
from bench.axes.parallel import group


def _verify(session: Session) -> Evidence:
    ranks = group.world_size()
    if ranks > 1:
        raise NotApplied(f"parallel none: this process is one of {ranks} ranks")
    return {"ranks": 1}


NONE = Option("none", "One device", verify=_verify)
