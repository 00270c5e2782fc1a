"""What must hold inside one cell of a result.json, whoever wrote it. Pure; each fault is a sentence that
begins with the field.

Everything derived from raw values is derived again from them; whether the files beside result.json agree with
the raw values and hold the rest is ``bench.check_files``'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from bench import stats, steady
from bench.record import CLOSED, HAS_NUMBERS, Cell, Code, Distribution

TOLERANCE = 1e-9
"""Relative; what is computed twice from the same floats differs by rounding at most."""

CLOCK_SECONDS = 1e-6
"""Slack between times that were read one after the other."""

OVERLAPPING = frozenset({"latency", "queue"})
"""Distributions whose requests overlap with several users; a server serves one at a time."""


def close(ours: float, theirs: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=1e-12)


def faults(cell: Cell, one_image: Cell | None, servers: int = 1, *, resample: bool = True) -> Iterator[str]:
    """``one_image``: the attempt's 1x1 cell, if it has one; ``servers``: how many serve the queue;
    ``resample``: also the intervals that a bootstrap gave, which take longer than all else."""
    numbers = cell.status.code in HAS_NUMBERS
    if cell.status.code is not Code.OK and not cell.status.reason:
        yield f"status.reason: empty, although the status is {cell.status.code}"
    if not numbers and (cell.latency or cell.n):
        yield f"latency: there although the status is {cell.status.code}"
    if numbers and not cell.latency:
        yield f"latency: missing although the status is {cell.status.code}"
    if numbers and cell.latency:
        yield from _requests(cell, cell.latency)
        yield from _window(cell, servers)
    for name, distribution in distributions(cell):
        yield from _distribution(name, distribution, cell.users if name in OVERLAPPING else 1, resample)
    yield from _batch_efficiency(cell, one_image)
    for part in (cell.memory, cell.utilisation, cell.power, *cell.gpus):
        yield from ranges(part)


def distributions(cell: Cell) -> Iterator[tuple[str, Distribution]]:
    """By the field's name; those that are there."""
    named = {"latency": cell.latency, "queue": cell.queue, "service": cell.service}
    named |= {f"stages.{name}": distribution for name, distribution in cell.stages.items()}
    yield from ((name, distribution) for name, distribution in named.items() if distribution)


def _requests(cell: Cell, latency: Distribution) -> Iterator[str]:
    for name, distribution in distributions(cell):
        if len(distribution.raw) != cell.n:
            yield f"{name}.raw: {len(distribution.raw)} values, but n is {cell.n}"
            return
    if cell.load == CLOSED and cell.n % cell.users:
        yield f"n: {cell.n} is no multiple of {cell.users} users"
    if cell.queue is None or cell.service is None:
        yield "queue, service: one of them is missing"
        return
    for index, parts in enumerate(zip(latency.raw, cell.queue.raw, cell.service.raw, strict=True)):
        total, waited, served = parts
        if served <= 0 or waited < -CLOCK_SECONDS or abs(total - waited - served) > CLOCK_SECONDS:
            yield f"latency.raw[{index}]: {total} s is not a wait of {waited} s and a service of {served} s"
            return


def _distribution(name: str, distribution: Distribution, users: int, resample: bool) -> Iterator[str]:
    """Raw values must reproduce every figure beside them."""
    if not distribution.raw:
        yield f"{name}.raw: empty"
        return
    with_intervals = resample or users == 1
    again = stats.summarise(distribution.raw, users if with_intervals else 1)
    for field in ("mean", "min", "max"):
        if not close(getattr(distribution, field), getattr(again, field)):
            yield f"{name}.{field}: {getattr(distribution, field)}, but raw gives {getattr(again, field)}"
    for field in ("p25", "p50", "p90", "p99"):
        stored, derived = getattr(distribution, field), getattr(again, field)
        if not close(stored.value, derived.value):
            yield f"{name}.{field}.value: {stored.value}, but raw gives {derived.value}"
        if stored.supported != derived.supported:
            yield f"{name}.{field}.supported: {stored.supported}, but n is {len(distribution.raw)}"
        if with_intervals and not _same_interval(stored.ci95, derived.ci95):
            yield f"{name}.{field}.ci95: {stored.ci95}, but raw gives {derived.ci95}"


def _same_interval(ours: tuple[float, float] | None, theirs: tuple[float, float] | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return close(ours[0], theirs[0]) and close(ours[1], theirs[1])


def _window(cell: Cell, servers: int) -> Iterator[str]:
    if cell.window_seconds is None or cell.throughput_images_per_s is None:
        yield "window_seconds, throughput_images_per_s: one of them is missing"
        return
    service = cell.service.raw if cell.service else [0.0]
    # The window begins with the last of the servers; the others were at work on its first requests before.
    busy = (math.fsum(service) - (servers - 1) * max(service)) / servers
    if cell.window_seconds < busy * (1 - TOLERANCE) - CLOCK_SECONDS:
        yield f"window_seconds: {cell.window_seconds}, but serving alone took {busy} s"
    images = cell.throughput_images_per_s * cell.window_seconds
    requests = images / cell.images
    if abs(requests - round(requests)) > 1e-6 * requests:
        yield f"throughput_images_per_s: {images} images in the window are no whole number of requests"
    elif round(requests) not in _delivered(cell, servers):
        yield f"throughput_images_per_s: {round(requests)} requests in the window, but n is {cell.n}"


def _delivered(cell: Cell, servers: int) -> range:
    """How many requests a window may hold that begins when as many are done as servers were at work at first.
    Users that wait for their answers keep every server busy from the start; others may find only one busy."""
    most = cell.n + cell.users - 1
    if cell.load == CLOSED:
        most = cell.n + cell.users - min(cell.users, servers)
        return range(most, most + 1)
    return range(cell.n + cell.users - servers, most + 1)


def _batch_efficiency(cell: Cell, one_image: Cell | None) -> Iterator[str]:
    stored = cell.batch_efficiency
    if stored is None:
        return
    if cell.latency is None or one_image is None or one_image.latency is None:
        yield "batch_efficiency: there without the 1x1 cell that it needs"
        return
    derived = steady.batch_efficiency(one_image.latency.raw, cell.latency.raw, cell.images)
    if not close(stored, derived):
        yield f"batch_efficiency: {stored}, but the medians give {derived}"


def ranges(part: BaseModel) -> Iterator[str]:
    """By the unit in a field's name: percentages up to 100, shares up to 1, an average up to its peak, and
    no memory, time, power or energy below 0."""
    values: dict[str, Any] = {
        name: value for name, value in part if isinstance(value, (int, float)) and value is not None
    }
    place = type(part).__name__.lower()
    for name, value in values.items():
        top = 100.0 if name.endswith("_percent") else 1.0 if name.endswith("_share") else math.inf
        if not 0 <= value <= top:
            limit = f"0 to {top:g}" if math.isfinite(top) else "0 or more"
            yield f"{place}.{name}: {value} is not in the range {limit}"
        peak = values.get(name.replace("_avg_", "_peak_"))
        if peak is not None and value > peak * (1 + TOLERANCE):
            yield f"{place}.{name}: {value} is above its peak of {peak}"
