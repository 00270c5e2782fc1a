"""Regional compilation, as diffusers' ``compile_repeated_blocks``: each repeated block is compiled by itself,
into a few graphs that all blocks share.

``dynamic=False`` is ours: torch would otherwise compile the second shape with symbolic sizes, and the speed
of a four-image cell would depend on whether a one-image cell ran before it in the same process.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any

from bench.axes.compilation import graphs, workers
from bench.axes.option import Evidence, NotApplied, Option, Session


def compile_each(blocks: Iterable[Any]) -> None:
    """Each by itself, when it first runs."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = graphs.RECOMPILE_LIMIT
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False)


def require_compiled(option: str, session: Session) -> Evidence:
    """Every block is compiled and has run as compiled; raises NotApplied otherwise."""
    by_component = graphs.blocks(session.pipe)
    compiled = {name: sum(map(graphs.block_compiled, blocks)) for name, blocks in by_component.items()}
    for name, blocks in by_component.items():
        if compiled[name] != len(blocks) or not blocks:
            raise NotApplied(
                f"compilation {option}: {compiled[name]} of {len(blocks)} blocks of the {name} compiled"
            )
    events = graphs.compile_events(option, session)
    if events["graphs"] == 0:
        raise NotApplied(f"compilation {option}: blocks are marked for it, but dynamo compiled no graph")
    return {"blocks": compiled, **events}


def _apply(session: Session) -> None:
    compile_each(chain.from_iterable(graphs.blocks(session.pipe).values()))


def _verify(session: Session) -> Evidence:
    return require_compiled("inductor", session)


INDUCTOR = Option(
    "inductor",
    "torch.compile (regional)",
    verify=_verify,
    require=partial(workers.require_compiler, "inductor"),
    apply=_apply,
    exact=True,
)
