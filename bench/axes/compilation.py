"""compilation: what turns the transformer's Python into fused kernels.

``inductor`` is regional, as diffusers' ``compile_repeated_blocks``: each repeated block is compiled by
itself, into a few graphs that all blocks share. Two settings are ours:

* ``dynamic=False``: torch would otherwise compile the second shape with symbolic sizes, and the speed of a
  four-image cell would depend on whether a one-image cell ran before it in the same process;
* a higher recompile limit, because static shapes x two kinds of block x (transformer, ControlNet) x batch
  sizes pass torch's default of 8, and with ``fullgraph=True`` that is an error.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from bench.axes.attention import attended
from bench.axes.option import Evidence, NotApplied, Option, Session, Unavailable

_RECOMPILE_LIMIT = 64


def graphs_compiled() -> int:
    """Graphs that dynamo compiled in this process so far. A difference of two readings is the number of
    compile events between them."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _blocks(pipe: Any) -> dict[str, list[Any]]:
    """The repeated blocks by component. The ControlNet is built of the transformer's blocks but does not
    declare ``_repeated_blocks``, so ``compile_repeated_blocks`` would refuse it."""
    kinds = pipe.transformer._repeated_blocks
    return {
        name: [block for block in module.modules() if type(block).__name__ in kinds]
        for name, module in attended(pipe).items()
    }


def _compiled(block: Any) -> bool:
    return getattr(block, "_compiled_call_impl", None) is not None


def _require_compiler(session: Session) -> None:
    """Inductor fails late, in the first request, where its compilers are missing; say so before."""
    from torch._inductor import cpp_builder, exc
    from torch.utils._triton import has_triton

    needs = f"{session.row.label}: compilation inductor needs"
    if session.device == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise Unavailable(f"{needs} a C++ compiler; install one (apt-get install g++)") from error
        return
    if not has_triton():
        raise Unavailable(f"{needs} Triton on a GPU; install torch's CUDA build, which brings it")
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        raise Unavailable(f"{needs} a C compiler for Triton's launchers; install one (apt-get install gcc)")


def _apply_inductor(session: Session) -> None:
    import torch._dynamo

    _require_compiler(session)
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    for blocks in _blocks(session.pipe).values():
        for block in blocks:
            block.compile(fullgraph=True, dynamic=False)


def _verify_inductor(session: Session) -> Evidence:
    import torch._dynamo.utils

    compiled = {name: sum(map(_compiled, blocks)) for name, blocks in _blocks(session.pipe).items()}
    for name, blocks in _blocks(session.pipe).items():
        if compiled[name] != len(blocks) or not blocks:
            raise NotApplied(
                f"compilation inductor: {compiled[name]} of {len(blocks)} blocks of the {name} compiled"
            )
    before = graphs_compiled()
    session.run(steps=1)
    if graphs_compiled() == 0:
        raise NotApplied("compilation inductor: blocks are marked for it, but dynamo compiled no graph")
    counters = torch._dynamo.utils.counters
    return {
        "blocks": compiled,
        "graphs": graphs_compiled(),
        "graph_breaks": sum(counters["graph_break"].values()),
        "recompiles_after_warm_up": graphs_compiled() - before,
    }


def _verify_none(session: Session) -> Evidence:
    compiled = sum(_compiled(block) for blocks in _blocks(session.pipe).values() for block in blocks)
    if compiled:
        raise NotApplied(f"compilation none: {compiled} blocks are compiled")
    return {"compiled_blocks": 0}


OPTIONS = (
    Option("none", "Eager", verify=_verify_none),
    Option(
        "inductor", "torch.compile (regional)", verify=_verify_inductor, apply=_apply_inductor, exact=True
    ),
)
