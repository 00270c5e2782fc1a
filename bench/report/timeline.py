"""Telemetry as curves a page can hold: at most ``config.TELEMETRY.curve_points`` points each.

A point is the mean of its share of the samples, over all GPUs; the peak printed beside a curve is the
highest sample of any GPU. Where no sample has a value the curve has a gap.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import config, layout
from bench.runner import telemetry
from bench.runner.telemetry import Sample

WIDTH, HEIGHT = 1000, 60
"""Drawing units of a curve; the page scales them."""

BYTES_PER_GB = 1e9


@dataclass(frozen=True)
class Quantity:
    title: str
    unit: str
    column: str
    scale: float = 1.0
    full: float | None = None
    """Value at the top of the drawing; None: the peak."""


QUANTITIES = (
    Quantity("GPU busy", "%", "gpu_busy_percent", full=100),
    Quantity("GPU memory used", "GB", "memory_used_bytes", 1 / BYTES_PER_GB),
    Quantity("Power", "W", "power_w"),
    Quantity("SM clock", "MHz", "sm_clock_mhz"),
    Quantity("Temperature", "°C", "temperature_c"),
    Quantity("CPU busy", "%", "cpu_percent", full=100),
    Quantity("Process memory", "GB", "rss_bytes", 1 / BYTES_PER_GB),
)


@dataclass(frozen=True)
class Curve:
    title: str
    unit: str
    segments: tuple[str, ...]
    """SVG polyline points, one string for each stretch without a gap."""
    mean: float
    peak: float


@dataclass(frozen=True)
class Band:
    """A phase of the row's life, as a stretch of the drawing."""

    name: str
    x: int
    width: int
    measuring: bool


@dataclass(frozen=True)
class Timeline:
    seconds: float
    curves: tuple[Curve, ...]
    bands: tuple[Band, ...]


def read(attempt: Path) -> Timeline | None:
    """None where nothing was sampled. Raises ValueError for a file that is not telemetry."""
    try:
        samples = telemetry.read(attempt)
        start, end = (samples[0].t, samples[-1].t) if samples else (0.0, 0.0)
        curves = [curve(quantity, samples) for quantity in QUANTITIES] if end > start else []
        bands = _bands(attempt / layout.EVENTS, start, end) if end > start else ()
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{layout.TELEMETRY} or {layout.EVENTS} cannot be read: {error}") from error
    if not samples:
        return None
    return Timeline(end - start, tuple(each for each in curves if each), bands)


def curve(quantity: Quantity, samples: Sequence[Sample]) -> Curve | None:
    """None where no sample has the quantity."""
    buckets = [_points(each, quantity.column) for each in _buckets(samples, config.TELEMETRY.curve_points)]
    values = [value * quantity.scale for present in buckets for _, value in present]
    if not values:
        return None
    start, end = samples[0].t, samples[-1].t
    peak = max(values)
    top = quantity.full or peak or 1.0
    segments: list[list[str]] = [[]]
    for present in buckets:
        if not present:
            segments.append([])
            continue
        x = (sum(t for t, _ in present) / len(present) - start) / (end - start)
        y = quantity.scale * sum(value for _, value in present) / len(present) / top
        segments[-1].append(f"{WIDTH * x:.0f},{HEIGHT * (1 - min(y, 1)):.0f}")
    return Curve(
        title=quantity.title,
        unit=quantity.unit,
        segments=tuple(" ".join(points) for points in segments if points),
        mean=sum(values) / len(values),
        peak=peak,
    )


def _points(samples: Sequence[Sample], column: str) -> list[tuple[float, float]]:
    return [(sample.t, sample.values[column]) for sample in samples if column in sample.values]


def _buckets(samples: Sequence[Sample], most: int) -> list[Sequence[Sample]]:
    """Consecutive shares of equal length, at most ``most``."""
    size = -(-len(samples) // most)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _bands(events: Path, start: float, end: float) -> tuple[Band, ...]:
    """The phases between their markers; one that never ended runs to the end of the drawing. A kill may
    have cut the last line."""
    if not events.exists():
        return ()
    opened: dict[str, float] = {}
    spans: list[tuple[str, float, float]] = []
    for line in events.read_text(encoding="utf-8").split("\n")[:-1]:
        event = json.loads(line)
        if event["event"] == "begin":
            opened[event["phase"]] = event["t"]
        elif event["phase"] in opened:
            spans.append((event["phase"], opened.pop(event["phase"]), event["t"]))
    spans.extend((phase, begun, end) for phase, begun in opened.items())

    def x(moment: float) -> int:
        return round(WIDTH * (min(max(moment, start), end) - start) / (end - start))

    return tuple(
        Band(name, x(begun), x(ended) - x(begun), measuring=name.startswith("cell"))
        for name, begun, ended in spans
        if x(ended) > x(begun)
    )
