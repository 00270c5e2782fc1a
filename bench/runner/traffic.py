"""What the ranks of a row send each other in one denoising step, and how long their kernels ran. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.axes.parallel.degrees import Degrees, degrees_of
from bench.matrix import Row
from bench.record import Communication, Profile


def communication(row: Row, evidence: dict[str, Any], profiles: Sequence[Profile]) -> Communication | None:
    """None where each rank serves requests of its own, or the option counted no collective. ``evidence`` is
    that of the parallel axis, ``profiles`` are by rank and empty on a CPU."""
    degrees = degrees_of(row.parallel)
    by_rank = [each["collectives"] for each in evidence.get("by_rank", []) if "collectives" in each]
    if degrees is None or not by_rank:
        return None
    return Communication(
        calls_per_step=max(sum(each["calls"] for each in collectives.values()) for collectives in by_rank),
        sent_bytes_per_step=max(sent_bytes(collectives, degrees) for collectives in by_rank),
        kernel_seconds_by_rank=[each.seconds_by_kind.get("communication", 0.0) for each in profiles],
    )


def sent_bytes(collectives: dict[str, dict[str, int]], degrees: Degrees) -> int:
    """By one rank: what nccl-tests' PERFORMANCE.md says that a collective moves over a link, times what the
    rank handed in. Where two ways are combined, all gathers are counted as the ring's; those of the result,
    over all ranks, are one in a step."""
    everyone = degrees.ranks
    within = {
        "alltoall": degrees.ulysses * degrees.fsdp,
        "allgather": degrees.ring if degrees.ring > 1 else everyone,
    }
    total = 0.0
    for name, counted in collectives.items():
        operation = name.split("::")[1].replace("_", "")  # the namespaces spell them differently
        size = next((size for each, size in within.items() if operation.startswith(each)), everyone)
        total += counted["input_bytes"] * _share_sent(operation, size)
    return round(total)


def _share_sent(operation: str, ranks: int) -> float:
    """Of what one of ``ranks`` hands in, how much it sends."""
    if operation.startswith(("alltoall", "reducescatter")):
        return (ranks - 1) / ranks
    if operation.startswith("allgather"):
        return ranks - 1
    if operation.startswith("allreduce"):
        return 2 * (ranks - 1) / ranks
    if operation == "send":
        return 1.0
    if operation == "recv":
        return 0.0
    raise ValueError(f"no rule says how much of {operation} is sent")
