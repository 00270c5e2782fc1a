"""Is every link between the row's GPUs as fast as its kind? Asked before weights are loaded.

A pair that should be on NVLink and moves data through the host's memory halves what several GPUs gain, and
nothing else in a result would say so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.config import LINKS
from bench.record import Link

REPEATS = 3


class SlowLink(Exception):
    """A link between two GPUs is far below its kind; latencies would be this machine's fault."""


class Measured(NamedTuple):
    peer: int
    """Rank at the other end."""
    gb_per_s: float
    """10^9 bytes a second, each way at once."""


# --- On the ranks ------------------------------------------------------------------------------------


def exchange(rank: int, ranks: int, device: str) -> list[Measured]:
    """The best of a few exchanges with each other rank. Pairs that share no rank go at once, so that eight
    GPUs take seven rounds; every rank must call it."""
    import torch
    import torch.distributed as dist

    # The first communication of a group must be everyone's, or NCCL waits for the rank that sits out a round.
    dist.all_reduce(torch.zeros(1, device=device))
    size = LINKS.bytes if device == "cuda" else LINKS.cpu_bytes
    mine, theirs = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    measured = []
    for pairs in rounds(ranks):
        for pair in pairs:
            if rank in pair:
                peer = sum(pair) - rank
                seconds = min(_swap(mine, theirs, peer, device) for _ in range(1 + REPEATS))
                measured.append(Measured(peer, size / seconds / 1e9))
    return measured


def _swap(mine: Any, theirs: Any, peer: int, device: str) -> float:
    import torch.distributed as dist

    from bench.runner.clock import synchronise

    begun = time.perf_counter()
    both = [dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)]
    for work in dist.batch_isend_irecv(both):
        work.wait()
    synchronise(device)
    return time.perf_counter() - begun


def rounds(ranks: int) -> list[list[tuple[int, int]]]:
    """All pairs in as few rounds as can be: the circle method of round-robin tournaments."""
    places: list[int | None] = [*range(ranks), *([None] if ranks % 2 else [])]
    found = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        facing = zip(places[:half], reversed(places[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        places = [places[0], places[-1], *places[1:-1]]
    return found


# --- What it means -----------------------------------------------------------------------------------


def kinds(topology: str | None) -> dict[tuple[int, int], str]:
    """(GPU, GPU), NVML's indices, the smaller one first -> ``NV18``, ``PIX``, ``SYS``...: the matrix that
    ``nvidia-smi topo -m`` prints."""
    found: dict[tuple[int, int], str] = {}
    columns: list[str] = []
    for line in (topology or "").splitlines():
        cells = line.split()
        if not columns:
            columns = [cell for cell in cells if re.fullmatch(r"GPU\d+", cell)]
        elif cells and re.fullmatch(r"GPU\d+", cells[0]):
            one = int(cells[0][3:])
            for column, kind in zip(columns, cells[1:], strict=False):
                other = int(column[3:])
                if one < other:
                    found[one, other] = kind
    return found


def least_gb_per_s(kind: str | None) -> float | None:
    """None for a link whose kind nobody told."""
    if kind is None:
        return None
    nvlinks = re.fullmatch(r"NV(\d+)", kind)
    return (
        int(nvlinks[1]) * LINKS.nvlink_gb_per_s * LINKS.least_share if nvlinks else LINKS.least_pcie_gb_per_s
    )


def links(measured: Sequence[Sequence[Measured]], indices: Sequence[int], topology: str | None) -> list[Link]:
    """``measured`` by rank, ``indices``: NVML's index of each rank's GPU. Of a pair the slower end counts."""
    speeds: dict[tuple[int, int], float] = {}
    for rank, seen in enumerate(measured):
        for peer, gb_per_s in seen:
            pair = min(rank, peer), max(rank, peer)
            speeds[pair] = min(gb_per_s, speeds.get(pair, gb_per_s))
    known = kinds(topology)
    found = []
    for (a, b), gb_per_s in sorted(speeds.items()):
        one, other = sorted((indices[a], indices[b]))
        kind = known.get((one, other))
        found.append(Link(ranks=(a, b), kind=kind, gb_per_s=gb_per_s, least_gb_per_s=least_gb_per_s(kind)))
    return found


def require_fast(label: str, found: Sequence[Link], variables: Mapping[str, str]) -> None:
    """Raises SlowLink, naming every link that is far below its kind and what may be the reason."""
    slow = [link for link in found if link.least_gb_per_s and link.gb_per_s < link.least_gb_per_s]
    if not slow:
        return
    told = "; ".join(
        f"the {link.kind} link between ranks {link.ranks[0]} and {link.ranks[1]} moves {link.gb_per_s:.1f}"
        f" GB/s, less than {link.least_gb_per_s:.0f}"
        for link in slow
    )
    disabled = p2p_disabled(variables)
    advice = (
        f"{disabled} is set: {unsetting(disabled)}"
        if disabled
        else "look at `nvidia-smi topo -m` and `nvidia-smi nvlink --status`"
    )
    raise SlowLink(f"{label}: {told}; {advice}, or take another machine")


def unsetting(setting: str) -> str:
    """The command that takes back ``NAME=value``."""
    return f"`unset {setting.partition('=')[0]}`"


def p2p_disabled(variables: Mapping[str, str]) -> str | None:
    """``NCCL_P2P_DISABLE=1`` where the caller's environment keeps GPUs from talking to each other.
    ``NCCL_P2P_LEVEL=LOC``, of old 0, is the same (``ncclGetLevel`` in NCCL's graph/paths.cc)."""
    disable, level = variables.get("NCCL_P2P_DISABLE", ""), variables.get("NCCL_P2P_LEVEL")
    if disable not in ("", "0"):
        return f"NCCL_P2P_DISABLE={disable}"
    return f"NCCL_P2P_LEVEL={level}" if level in ("LOC", "0") else None
