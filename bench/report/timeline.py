"""Telemetry as curves a page can hold: at most ``config.TELEMETRY.curve_points`` points each.

A point is the mean of its share of the samples; the peak printed beside a curve is that of the samples
themselves. A sample without a value leaves a gap.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import config, layout

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
    total: bool = False
    """Several GPUs are added up; otherwise averaged."""


QUANTITIES = (
    Quantity("GPU busy", "%", "gpu_busy_percent", full=100),
    Quantity("GPU memory used", "GB", "memory_used_bytes", 1 / BYTES_PER_GB, total=True),
    Quantity("Power", "W", "power_w", total=True),
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


@dataclass(frozen=True)
class Timeline:
    seconds: float
    curves: tuple[Curve, ...]
    bands: tuple[Band, ...]


Sample = dict[str, float]
"""column -> value of one tick, over all GPUs; a column without a value is not in it. ``t`` always is."""


def read(attempt: Path) -> Timeline | None:
    """None where nothing was sampled. Raises ValueError or OSError for a file that is not telemetry."""
    path = attempt / layout.TELEMETRY
    if not path.exists():
        return None
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        samples = _ticks(csv.DictReader(file))
    if len(samples) < 2:
        return None
    start, end = samples[0]["t"], samples[-1]["t"]
    curves = (curve(quantity, samples) for quantity in QUANTITIES)
    return Timeline(
        seconds=end - start,
        curves=tuple(each for each in curves if each),
        bands=_bands(attempt / layout.EVENTS, start, end),
    )


def _ticks(rows: csv.DictReader[str]) -> list[Sample]:
    """Lines of one moment (one a GPU) become one sample."""
    by_time: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_time.setdefault(row["t"], []).append(row)
    samples = []
    for moment, lines in by_time.items():
        sample = {"t": float(moment)}
        for quantity in QUANTITIES:
            values = [float(line[quantity.column]) for line in lines if line[quantity.column]]
            if values:
                sample[quantity.column] = sum(values) if quantity.total else sum(values) / len(values)
        samples.append(sample)
    return samples


def curve(quantity: Quantity, samples: Sequence[Sample]) -> Curve | None:
    """None where no sample has the quantity."""
    values = [sample[quantity.column] * quantity.scale for sample in samples if quantity.column in sample]
    if not values:
        return None
    top = quantity.full or max(values) or 1.0
    start = samples[0]["t"]
    span = samples[-1]["t"] - start
    segments: list[list[str]] = [[]]
    for bucket in _buckets(samples, config.TELEMETRY.curve_points):
        present = [sample for sample in bucket if quantity.column in sample]
        if not present:
            segments.append([])
            continue
        x = WIDTH * (sum(sample["t"] for sample in present) / len(present) - start) / span
        mean = quantity.scale * sum(sample[quantity.column] for sample in present) / len(present)
        segments[-1].append(f"{x:.0f},{HEIGHT * (1 - min(mean / top, 1)):.0f}")
    return Curve(
        title=quantity.title,
        unit=quantity.unit,
        segments=tuple(" ".join(points) for points in segments if points),
        mean=sum(values) / len(values),
        peak=max(values),
    )


def _buckets(samples: Sequence[Sample], most: int) -> list[Sequence[Sample]]:
    """Consecutive shares of equal length, at most ``most``."""
    size = -(-len(samples) // most)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _bands(events: Path, start: float, end: float) -> tuple[Band, ...]:
    """The phases between their markers; one that never ended runs to the end of the drawing."""
    if not events.exists():
        return ()
    opened: dict[str, float] = {}
    spans: list[tuple[str, float, float]] = []
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "begin":
            opened[event["phase"]] = event["t"]
        elif event["phase"] in opened:
            spans.append((event["phase"], opened.pop(event["phase"]), event["t"]))
    spans.extend((phase, begun, end) for phase, begun in opened.items())

    def x(moment: float) -> int:
        return round(WIDTH * (min(max(moment, start), end) - start) / (end - start))

    return tuple(Band(name, x(begun), x(ended) - x(begun)) for name, begun, ended in spans)
