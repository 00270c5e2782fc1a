"""The ranks that share a row: the default process group, which exists before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.axes.option import Unavailable

if TYPE_CHECKING:
    from bench.matrix import Row


def world_size() -> int:
    """1 where this process works alone."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def require_ranks(option: str, ranks: int, row: Row, _device: str) -> None:
    """Raises Unavailable unless this process is one of ``ranks``, as the option of axis parallel needs it."""
    found = world_size()
    if found != ranks:
        raise Unavailable(
            f"{row.label}: parallel {option} needs {ranks} ranks and this process is one of {found};"
            f" `fluxbench bench {row.row}` starts them, and so does"
            f" `torchrun --nproc-per-node {ranks}`"
        )


def of_all_ranks(mine: Any) -> list[Any]:
    """What every rank hands in (picklable), by rank, the same list on every rank. All must call it."""
    import torch.distributed as dist

    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered
