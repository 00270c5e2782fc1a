"""``fluxbench fan-out`` with a runner of the tests' choice, as a process that tests may signal and kill.

python tests/host_driver.py '{"rows": [...], "results": "...", ...}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import identity
from bench.config import BUDGETS, Shape
from bench.host.command import fan_out
from bench.host.fanout import Settings
from bench.host.gpus import Gpu
from bench.host.leases import Busy
from bench.host.local import LocalExecutor
from bench.matrix import Row
from bench.record import Environment
from bench.runner import environment

COLLECT = environment.collect
STANDIN = str(Path(__file__).parent / "standin_runner.py")


def without_nvml(gpus: Sequence[Gpu]) -> Environment:
    """What ``collect`` would say of GPUs that are not there."""
    return COLLECT([]).model_copy(update={"host_id": identity.host_id(gpu.uuid for gpu in gpus)})


def main() -> int:
    asked = json.loads(sys.argv[1])
    identity.TINY_WEIGHTS = Path(asked.get("weights_dir", "/nowhere"))
    rows, matrix = ([Row.model_validate(row) for row in asked.get(name, ())] for name in ("rows", "matrix"))
    settings = Settings(
        results=Path(asked["results"]),
        weights="synthetic",
        budget=BUDGETS[asked.get("budget", "quick")],
        cells=tuple(Shape(*cell) for cell in asked["cells"]),
        timeout_seconds=asked.get("timeout_seconds"),
        grace_seconds=asked.get("grace_seconds", 2.0),
        pack=asked.get("pack", False),
        max_hours=asked.get("max_hours"),
    )
    gpus = [
        Gpu(index, "NVIDIA H100 80GB HBM3", f"GPU-{index}", int(85e9))
        for index in range(asked.get("gpus", 0))
    ]
    if gpus:
        environment.collect = without_nvml
    executor = LocalExecutor([sys.executable, *asked.get("runner", [STANDIN])])
    try:
        return fan_out(
            rows,
            settings,
            gpus,
            Console(width=200),
            wait_seconds=asked.get("wait_seconds", 0.0),
            executor=executor,
            matrix=matrix,
        )
    except Busy as busy:
        print(f"nothing was run: {busy}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
