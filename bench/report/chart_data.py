"""What the charts of one use case are drawn from: plain rows, one a mark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report import names
from bench.report.gains import Gains
from bench.report.gpu_time import gpu_time
from bench.report.matrix_table import memory_gb
from bench.report.pool import Measurement
from bench.report.scaling import Scaled

MOST_STACKS = 20
"""A chart shows the fastest; the table beside it shows all."""
MOST_DOTS = 21
"""Requests drawn a stack: evenly spaced order statistics, smallest and largest among them."""
MOST_LETTERS = 44
"""Longer names end in an ellipsis; the table has them whole."""

Rows = list[dict[str, Any]]


def shortened(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def _label(measurement: Measurement) -> str:
    role = names.role(measurement.row)
    return shortened(names.stack(measurement.row) + (f" ({role})" if role else ""))


def latency_rows(shown: Sequence[Measurement], best: Measurement | None) -> Rows:
    """One row a dot; the statistics stand in each first row of a stack."""
    rows: Rows = []
    for each in shown:
        cell = each.cell()
        if cell is None:
            continue
        latency = cell.latency
        common = {"stack": _label(each), "best": each is best}
        rows.extend({**common, "seconds": round(value, 6)} for value in thinned(latency.raw))
        if latency.p50.supported:
            low, high = latency.p50.ci95 or (None, None)
            rows.append({**common, "p50": latency.p50.value, "low": low, "high": high})
    return rows


def thinned(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    if len(ordered) <= MOST_DOTS:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (MOST_DOTS - 1))] for index in range(MOST_DOTS)]


def life_rows(shown: Sequence[Measurement]) -> Rows:
    rows: Rows = []
    for each in shown:
        result, cell = each.latest, each.cell()
        moments = {
            "warm-up, all requests": sum(result.warmup.seconds) if result.warmup else None,
            "first request": result.first_request_seconds,
            "steady request, p50": cell.latency.p50.value if cell and cell.latency.p50.supported else None,
        }
        rows.extend(
            {"stack": _label(each), "moment": moment, "seconds": seconds}
            for moment, seconds in moments.items()
            if seconds
        )
    return rows


def memory_rows(shown: Sequence[Measurement], best: Measurement | None) -> Rows:
    return [
        {
            "stack": _label(each),
            "best": each is best,
            "cell": f"{cell.users}×{cell.images}",
            "memory": peak,
            "images": cell.throughput_images_per_s,
        }
        for each in shown
        for cell in each.cells.values()
        if (peak := memory_gb(cell)) is not None and cell.throughput_images_per_s is not None
    ]


def kernel_rows(shown: Sequence[Measurement]) -> Rows:
    """One row a kind of kernel, and one for the time in which the GPU idled."""
    rows: Rows = []
    for each in shown:
        spent = gpu_time(each)
        if spent is None:
            continue
        seconds = {**spent.seconds_by_kind, "idle": spent.idle_seconds}
        rows.extend(
            {"stack": _label(each), "kind": kind, "seconds": round(value, 6)}
            for kind, value in seconds.items()
            if value
        )
    return rows


def quality_rows(shown: Sequence[Measurement], best: Measurement | None) -> Rows:
    rows: Rows = []
    for each in shown:
        cell = each.cell()
        error = 0.0 if each.row.is_reference else each.quality and each.quality.latent_relative_error
        if cell and cell.latency.p50.supported and error is not None:
            p50 = cell.latency.p50.value
            rows.append({"stack": _label(each), "best": each is best, "p50": p50, "error": error})
    return rows


def gain_rows(gains: Gains) -> Rows:
    rows: Rows = []
    for layer in gains.layers[:MOST_STACKS]:
        bounds = layer.gain.ratio.interval()
        rows.append(
            {
                "layer": shortened(names.layer(layer.measurement.row, layer.parent.row)),
                "gain": layer.gain.ratio.value,
                "low": bounds[0] if bounds else None,
                "high": bounds[1] if bounds else None,
                "faster": layer.gain.verdict == "FASTER",
            }
        )
    return rows


BASES = ("same stack on one GPU", "fastest lossless stack on one GPU")
"""Whose T1 an efficiency is of."""


def efficiency_rows(scaled: Sequence[Scaled]) -> Rows:
    rows: Rows = []
    for each in scaled[:MOST_STACKS]:
        for basis, one in zip(BASES, (each.own, each.best), strict=True):
            share = each.efficiency(one)
            if share is not None:
                rows.append({"stack": _label(each.measurement), "basis": basis, "percent": 100 * share})
    return rows


def throughput_rows(scaled: Sequence[Scaled]) -> Rows:
    return [
        {"stack": _label(each.measurement), "users": users, "images": images}
        for each in scaled[:MOST_STACKS]
        for users, images in each.throughputs().items()
    ]
