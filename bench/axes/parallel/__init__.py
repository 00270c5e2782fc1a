"""parallel: how several GPUs share a row, or take its requests in turn.

Every rank is a process of its own (torchrun), in which the default process group exists before a model is
loaded. All ranks call ``apply``, each request and ``verify`` in the same order with the same arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.axes.parallel import alone, fsdp, native, replicas, xdit
from bench.axes.parallel.degrees import degrees_of

if TYPE_CHECKING:
    from bench.matrix import Row

CPU_REPLICAS = 2
"""A row without GPUs has no number of them for ``replicas`` to follow."""

OPTIONS = (alone.NONE, replicas.OPTION, *native.OPTIONS, *fsdp.OPTIONS, *xdit.OPTIONS)


def ranks_of(row: Row) -> int:
    """Processes that serve the row together: the degree in the option's name; of replicas one a GPU."""
    if row.parallel == "replicas":
        return row.gpu_count or CPU_REPLICAS
    degrees = degrees_of(row.parallel)
    return degrees.ranks if degrees else 1
