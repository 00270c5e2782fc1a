"""Inductor's processes that compile kernels, started while the weights load.

Inductor starts them with its first graph. Until they are there, which takes seconds, it compiles that graph's
kernels in the row's own process, one after another.
"""

from __future__ import annotations

from importlib import import_module

from bench.axes.compilation import graphs
from bench.matrix import Row


def require_compiler(option: str, row: Row, device: str) -> None:
    """As in ``graphs``; then starts what that compiler needs, and imports it meanwhile."""
    graphs.require_compiler(option, row, device)
    from torch._inductor import async_compile

    async_compile.maybe_warm_pool()
    import_module("torch._inductor.compile_fx")
