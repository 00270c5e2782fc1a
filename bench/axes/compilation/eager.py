"""No compiler, and how to tell."""

from __future__ import annotations

from bench.axes.compilation import graphs
from bench.axes.denoisers import denoisers
from bench.axes.option import Evidence, NotApplied, Option, Session


def _verify(session: Session) -> Evidence:
    compiled = sum(graphs.block_compiled(b) for found in graphs.blocks(session.pipe).values() for b in found)
    if compiled:
        raise NotApplied(f"compilation none: {compiled} blocks are compiled")
    for name, module in denoisers(session.pipe).items():
        if graphs.forward_compiled(module):
            raise NotApplied(f"compilation none: the {name} is compiled as a whole")
    return {"compiled_blocks": 0}


NONE = Option("none", "Eager", verify=_verify)
