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
    is not said. A rented machine is paid for whole, whether its GPUs work or not."""
    said = []
    widest = max((packing.lanes(rows, gpus) for rows in packing.packed(plan.to_run, settings)), default=1)
    if widest > 1:
        said.append(f"rows of one GPU run side by side, {widest} at once; --no-pack runs them one by one")
    price = settings.price_per_gpu_hour
    machine_hours = wall_seconds / 3600 * len(gpus)
    if price is not None:
        work = gpu_hours_of(plan, settings, packing.work(plan, settings, gpus)) * price
        idle = f"{work:.2f} for the GPUs that work, " if len(gpus) > 1 else ""
        whole = f" for all {len(gpus)} of this machine over that time" if len(gpus) > 1 else ""
        said.append(f"at {price:g} a GPU-hour: about {idle}{machine_hours * price:.2f}{whole} (estimates)")
    if settings.max_hours is not None:
        most = min(machine_hours, settings.max_hours * len(gpus))
        said.append(
            f"--max-hours {settings.max_hours:g}: about {len(fitting(plan, settings, wall_seconds))} of "
            f"{len(plan.to_run)} rows fit, most valuable first"
            + ("" if price is None else f"; about {most * price:.2f} for the machine over that time")
        )
    return said


def fitting(plan: Plan, settings: Settings, wall_seconds: float) -> list[Decision]:
    """What of the plan ends within ``max_hours``, all of it without such a limit. As the campaign will
    decide: a shorter row may still fit after a longer one that does not. Rows side by side are taken to be as
    many times shorter as they are together."""
    if settings.max_hours is None:
        return plan.to_run
    seconds = [plan.seconds(item, settings.budget) for item in plan.to_run]
    left = settings.max_hours * 3600 * sum(seconds) / wall_seconds
    fit = []
    for item, each in zip(plan.to_run, seconds, strict=True):
        if each <= left:
            fit.append(item)
            left -= each
    return fit
