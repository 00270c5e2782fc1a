"""What torch's compiler did in this process, and where it keeps what it compiled.

The cache outlives the process and is shared by the rows of one image on one kind of GPU; whether a row found
its graphs there (``warm``) or compiled them (``cold``) is recorded, because the two differ by minutes.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from bench import identity

CACHE_ROOT = Path(__file__).parents[2] / ".cache" / "inductor"


def use_cache(kind: str, image_digest: str | None, root: Path = CACHE_ROOT) -> Path:
    """Point inductor and Triton at the folder of this image (or package versions) and ``kind`` of device.
    To be called before torch is imported. A folder the caller has set is left alone."""
    versions = " ".join(f"{name}=={version}" for name, version in sorted(identity.packages().items()))
    key = hashlib.sha256((image_digest or versions).encode()).hexdigest()[:16]
    folder = Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / f"{kind}-{key}")))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return folder


def graphs_compiled() -> int:
    """Graphs compiled so far. 0 without a look where nothing has imported dynamo: importing it costs an
    eager row seconds."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from bench.axes.compilation import graphs

    return graphs.graphs_compiled()


def compile_seconds() -> float | None:
    """Wall time spent compiling so far; None where nothing was compiled."""
    if graphs_compiled() == 0:
        return None
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent()["total_wall_time"])


def cache_state() -> Literal["cold", "warm"] | None:
    """Whether every graph so far came from the cache; None where nothing was compiled."""
    if graphs_compiled() == 0:
        return None
    from torch._dynamo.utils import counters

    return state_of({**counters["inductor"], **counters["aot_autograd"]})


def state_of(counts: Mapping[str, int]) -> Literal["cold", "warm"]:
    hits = counts.get("fxgraph_cache_hit", 0) + counts.get("autograd_cache_hit", 0)
    misses = counts.get("fxgraph_cache_miss", 0) + counts.get("autograd_cache_miss", 0)
    return "warm" if hits and not misses else "cold"
