"""Where one request's GPU time goes, by kind of kernel.

The request runs after the cells, for the profiler slows the processor down. It does not slow the kernels:
their own durations are kept, and what the GPU idles is their sum against an *unprofiled* service time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bench.kernel_kinds import kind_of
from bench.record import KernelTime, Profile

TOP_KERNELS = 12
NAME_LETTERS = 160
"""Templates spell their types out: some names have thousands of letters."""


class Kernel(NamedTuple):
    """One launch."""

    name: str
    start_ns: int
    duration_ns: int


def profile(request: Callable[[], object]) -> Profile:
    """``request`` ends with the GPU synchronised; it is run once, under the CUDA profiler."""
    from torch.profiler import DeviceType, ProfilerActivity
    from torch.profiler import profile as torch_profile

    begun = time.perf_counter()
    with torch_profile(activities=[ProfilerActivity.CUDA]) as profiler:
        request()
    seconds = time.perf_counter() - begun
    # Not profiler.events(): it links every event to its operator in Python, and a request of FLUX launches
    # tens of thousands of kernels.
    events = profiler.profiler.kineto_results.events()
    return summary(
        [
            Kernel(event.name(), event.start_ns(), event.duration_ns())
            for event in events
            if event.device_type() == DeviceType.CUDA
        ],
        seconds,
    )


def summary(kernels: Sequence[Kernel], request_seconds: float) -> Profile:
    totals: dict[str, list[int]] = defaultdict(list)
    for kernel in kernels:
        totals[kernel.name].append(kernel.duration_ns)
    by_kind: dict[str, float] = defaultdict(float)
    for name, durations in totals.items():
        by_kind[kind_of(name)] += sum(durations) / 1e9
    longest = sorted(totals, key=lambda name: sum(totals[name]), reverse=True)[:TOP_KERNELS]
    return Profile(
        request_seconds=request_seconds,
        busy_seconds=_covered_ns(kernels) / 1e9,
        launches=len(kernels),
        seconds_by_kind=dict(sorted(by_kind.items())),
        top=[
            KernelTime(
                name=name[:NAME_LETTERS],
                kind=kind_of(name),
                calls=len(totals[name]),
                seconds=sum(totals[name]) / 1e9,
            )
            for name in longest
        ],
    )


def _covered_ns(kernels: Iterable[Kernel]) -> int:
    """Length of the union of the kernels' intervals: those side by side on two streams count once."""
    covered, reached = 0, 0
    for kernel in sorted(kernels, key=lambda each: each.start_ns):
        end = kernel.start_ns + kernel.duration_ns
        covered += max(0, end - max(reached, kernel.start_ns))
        reached = max(reached, end)
    return covered
