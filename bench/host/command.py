"""``fluxbench fan-out`` and ``fluxbench bench``, from rows to exit code."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from rich.console import Console

from bench.host import course, packing
from bench.host.fanout import Settings, Wanting, make_plan, take_leases
from bench.host.gpus import Gpu, inventory
from bench.host.local import Executor, LocalExecutor
from bench.host.progress import display
from bench.host.supervise import Stop
from bench.host.words import comparison_advice, ending_lines, links_advice, plan_lines, summary_table
from bench.matrix import Row
from bench.typed import Asked


def here() -> list[Gpu]:
    return inventory(os.environ.get("CUDA_VISIBLE_DEVICES"))


def fan_out(
    rows: Sequence[Row],
    settings: Settings,
    gpus: Sequence[Gpu],
    console: Console,
    *,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
    executor: Executor | None = None,
    matrix: Sequence[Row] = (),
    asked: Asked | None = None,
) -> int:
    """References that the rows lack are taken from the ``matrix``. ``asked`` is how somebody asked for these
    rows alone, who is told in the end how to get theirs.

    The exit code: 0, 1 when a row failed or the campaign could not go on, 128 + n when signal n ended
    it. Raises ``leases.Busy`` before anything runs when others hold the hardware."""
    executor = executor or LocalExecutor()
    wanting = Wanting(settings, gpus, executor)
    plan = make_plan(rows, wanting, () if settings.again else matrix)
    said = plan_lines(plan, settings, gpus, every_row=dry_run)
    for line in (*said, *links_advice(plan, os.environ)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if dry_run:
        if settings.again:  # one row, asked for by its id: what it would be, to be pasted into a shell
            for decision in plan.to_run:
                job = wanting.job(decision, [gpu.uuid for gpu in gpus])
                line = shlex.join(executor.command(job))
                console.print(line, soft_wrap=True, highlight=False, markup=False)
        return 0
    settings.results.mkdir(parents=True, exist_ok=True)
    packed = [decision.row for kind in packing.packed(plan.to_run, settings) for decision in kind]
    with (
        take_leases(plan, gpus, wait_seconds, packed) as lease,
        Stop() as stop,
        display(console) as shown,
    ):
        summary = course.run(plan, wanting, executor, lease, shown, stop)
    if summary.outcomes:
        console.print(summary_table(summary.outcomes))
    ending = ending_lines(summary, settings.price_per_gpu_hour)
    if asked is not None:
        ending += comparison_advice(summary, wanting, matrix, asked)
    for line in ending:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return summary.exit_code(plan)
