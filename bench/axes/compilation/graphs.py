"""What dynamo compiled in this process, and what is compiled of a pipeline."""

from __future__ import annotations

import inspect
import os
import shutil
from typing import TYPE_CHECKING, Any

from bench.axes.denoisers import denoisers
from bench.axes.option import Evidence, NotApplied, Session, Unavailable

if TYPE_CHECKING:
    from bench.matrix import Row

REARRANGED = frozenset({"inductor-fused", "inductor-graphs"})
"""Options whose blocks are taken apart first (``fused``)."""
RECOMPILE_LIMIT = 64
"""Static shapes x two kinds of block x (transformer, ControlNet) x batch sizes pass torch's default of 8, and
with ``fullgraph=True`` that is an error."""


def graphs_compiled() -> int:
    """Graphs that dynamo compiled in this process so far. A difference of two readings is the number of
    compile events between them."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def blocks(pipe: Any) -> dict[str, list[Any]]:
    """The repeated blocks by component. The ControlNet is built of the transformer's blocks but does not
    declare ``_repeated_blocks``, so ``compile_repeated_blocks`` would refuse it. FSDP makes each block one of
    a class that it derives from the block's."""
    kinds = set(pipe.transformer._repeated_blocks)
    return {
        name: [block for block in module.modules() if kinds & {cls.__name__ for cls in type(block).__mro__}]
        for name, module in denoisers(pipe).items()
    }


def block_compiled(block: Any) -> bool:
    return getattr(block, "_compiled_call_impl", None) is not None


def forward_compiled(module: Any) -> bool:
    """Whether its ``forward`` is what ``torch.compile`` returned."""
    return hasattr(module.forward, "_torchdynamo_orig_callable")


def compiler_settings(module: Any) -> dict[str, Any]:
    """Of inductor, for this module's compiled ``forward``; empty where another backend compiles it.
    ``get_compiler_config`` of the function would tell, but says None under ``fullgraph`` (torch 2.11, 2.13).
    """
    from torch._dynamo.eval_frame import innermost_backend

    backend = innermost_backend(inspect.getclosurevars(module.forward).nonlocals["callback"])
    return backend.get_compiler_config() if hasattr(backend, "get_compiler_config") else {}


def require_compiler(option: str, row: Row, device: str) -> None:
    """Inductor fails late, in the first request, where its compilers are missing; say so before."""
    from torch._inductor import cpp_builder, exc
    from torch.utils._triton import has_triton

    needs = f"{row.label}: compilation {option} needs"
    if device == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise Unavailable(f"{needs} a C++ compiler; install one (apt-get install g++)") from error
        return
    if not has_triton():
        raise Unavailable(f"{needs} Triton on a GPU; install torch's CUDA build, which brings it")
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        raise Unavailable(f"{needs} a C compiler for Triton's launchers; install one (apt-get install gcc)")


def compile_events(option: str, session: Session) -> Evidence:
    """Counts of this process, and of one more request of a shape that is warm: to recompile then is to
    recompile in what is measured. Raises NotApplied where a graph broke: what stands at the break ran as
    Python."""
    import torch._dynamo.utils

    before = graphs_compiled()
    session.run(steps=1)
    breaks = torch._dynamo.utils.counters["graph_break"]
    if breaks:
        raise NotApplied(
            f"compilation {option}: {breaks.total()} graph breaks, the first because of {next(iter(breaks))}"
        )
    return {
        "graphs": graphs_compiled(),
        "graph_breaks": 0,
        "recompiles_after_warm_up": graphs_compiled() - before,
    }
