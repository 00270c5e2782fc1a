"""What a campaign will cost, before it runs: hours, price, and how far a time limit reaches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.host import packing
from bench.host.estimate import gpu_hours
from bench.host.fanout import Plan, Settings
from bench.host.gpus import Gpu
from bench.host.plan import Decision
from bench.host.progress import clock


def gpu_hours_of(plan: Plan, settings: Settings, items: Iterable[Decision]) -> float:
    return sum(gpu_hours(item.row, plan.seconds(item, settings.budget)) for item in items)


def cost(plan: Plan, settings: Settings, items: Sequence[Decision]) -> str:
    """``about 7:06, 0.12 GPU-hours, 0.30 at 2.5 each``"""
    seconds = sum(plan.seconds(item, settings.budget) for item in items)
    hours = gpu_hours_of(plan, settings, items)
    price = settings.price_per_gpu_hour
    priced = "" if price is None else f", {hours * price:.2f} at {price:g} each"
    return f"about {clock(seconds)}, {hours:.2f} GPU-hours{priced}"


def lines(plan: Plan, settings: Settings, gpus: Sequence[Gpu], wall_seconds: float) -> list[str]:
    """Of a plan that has something to run and takes so long in all; what the user asked no price or limit for
    is not said."""
    said = []
    widest = max((packing.lanes(rows, gpus) for rows in packing.packed(plan.to_run, settings)), default=1)
    if widest > 1:
        said.append(f"rows of one GPU run side by side, {widest} at once; --no-pack runs them one by one")
    if settings.price_per_gpu_hour is not None:
        price = settings.price_per_gpu_hour
        work = gpu_hours_of(plan, settings, packing.work(plan, settings, gpus)) * price
        # A rented machine is paid for whole, whether its GPUs work or not.
        machine = wall_seconds / 3600 * len(gpus) * price
        said.append(
            f"at {price:g} a GPU-hour: about {work:.2f} for the GPUs that work, {machine:.2f} for all "
            f"{len(gpus)} of this machine over that time (estimates)"
        )
    if settings.max_hours is not None:
        fitting = _fitting(plan, settings, wall_seconds)
        said.append(
            f"--max-hours {settings.max_hours:g}: about {fitting} of {len(plan.to_run)} rows fit, "
            "most valuable first"
        )
    return said


def _fitting(plan: Plan, settings: Settings, wall_seconds: float) -> int:
    """As the campaign will decide: a shorter row may still fit after a longer one that does not. Rows side by
    side are taken to be as many times shorter as they are together."""
    assert settings.max_hours is not None
    seconds = [plan.seconds(item, settings.budget) for item in plan.to_run]
    left = settings.max_hours * 3600 * sum(seconds) / wall_seconds
    fitting = 0
    for each in seconds:
        if each <= left:
            fitting, left = fitting + 1, left - each
    return fitting
