"""What the charts of one use case are drawn from: plain rows, one a mark.

``row`` is the id by which marks of one stack find each other, ``label`` its name, ``value`` what is printed
beside it, and ``tone`` how loud: ``best``, ``plain`` or ``weak``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from bench.matrix import Row
from bench.record import Code
from bench.report import names
from bench.report.gains import Layer
from bench.report.gpu_time import gpu_time
from bench.report.groups import may_win
from bench.report.matrix_table import memory_gb
from bench.report.pool import Measurement
from bench.report.scaling import Scaled
from bench.report.text import number, percent, quantile, ratio
from bench.verdicts import Verdict

MOST_STACKS = 20
"""A chart shows the fastest, the reference and the baseline; the table beside it shows all."""
MOST_DOTS = 21
"""Requests drawn a stack: evenly spaced order statistics, smallest and largest among them."""
LEAST_DOTS = 4
"""Of fewer in a plane the table tells as much at a glance."""
OVERLAP_FROM = 0.02
"""Of a request. Less is the difference between the profiled request and the others."""

Rows = list[dict[str, Any]]


def drawn(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Of those with numbers, fastest first, the ones that a chart has room for."""
    measured = [each for each in measurements if each.cell()]
    return [
        each
        for index, each in enumerate(measured)
        if index < MOST_STACKS or each.row.is_reference or each.row.is_baseline
    ]


def label(row: Row) -> str:
    role = "speed only" if row.skips_by_schedule else names.role(row)
    return names.stack(row) + (f" ({role})" if role else "")


def _named(measurement: Measurement) -> dict[str, str]:
    cell = measurement.cell()
    marks = f", {', '.join(cell.marks)}" if cell and cell.marks else ""
    return {"row": measurement.row.row, "label": label(measurement.row) + marks}


def latency_rows(shown: Sequence[Measurement], best: Measurement | None) -> Rows:
    """One row a dot; the statistics stand in each first row of a stack."""
    rows: Rows = []
    for each in shown:
        cell = each.cell()
        if cell is None:
            continue
        latency = cell.latency
        told: dict[str, Any] = {"value": quantile(latency.p50, latency), "tone": "weak"}
        if latency.p50.supported:
            low, high = latency.p50.ci95 or (None, None)
            told |= {"p50": latency.p50.value, "low": low, "high": high}
            told |= {"value": f"{told['value']} s", "tone": "best" if each is best else "plain"}
            told |= {"reference": latency.p50.value} if each.row.is_reference else {}
        rows.append(_named(each) | told)
        rows.extend(_named(each) | {"seconds": round(value, 6)} for value in thinned(latency.raw))
    return rows


def thinned(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    if len(ordered) <= MOST_DOTS:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (MOST_DOTS - 1))] for index in range(MOST_DOTS)]


MOMENTS = ("steady request, p50", "first request", "warm-up, all requests")


def life_rows(shown: Sequence[Measurement]) -> Rows:
    rows: Rows = []
    for each in shown:
        result, cell = each.warmed_up[0], each.cell()
        steady = cell.latency.p50.value if cell and cell.latency.p50.supported else None
        warmup = sum(result.warmup.seconds) if result.warmup else None
        moments = zip(MOMENTS, (steady, result.first_request_seconds, warmup), strict=True)
        rows.extend(_named(each) | {"series": name, "x": seconds} for name, seconds in moments if seconds)
    return rows


def kernel_rows(shown: Sequence[Measurement]) -> Rows:
    """One row a kind of kernel and one for the time in which the GPU idled; the request's own time stands in
    each first row of a stack."""
    rows: Rows = []
    for each in shown:
        spent = gpu_time(each)
        if spent is None:
            continue
        if spent.service_seconds is not None:
            over = spent.overlap_seconds
            beside = f"{number(over)} s overlap · " if over > OVERLAP_FROM * spent.service_seconds else ""
            value = f"{beside}{number(spent.service_seconds)} s"
            rows.append(_named(each) | {"service": spent.service_seconds, "value": value})
        parts = spent.seconds_by_kind | {"idle": spent.idle_seconds or 0.0}
        rows.extend(
            _named(each) | {"kind": kind, "seconds": round(seconds, 6)}
            for kind, seconds in parts.items()
            if seconds
        )
    return rows


def memory_rows(shown: Sequence[Measurement]) -> Rows:
    """A dot a cell, that with most images a second first."""
    rows: Rows = []
    for each in shown:
        dots: Rows = [
            {
                "cell": f"{cell.users}×{cell.images}",
                "x": peak,
                "y": cell.throughput_images_per_s,
                "may_win": may_win(each) and cell.code is Code.OK,
            }
            for cell in each.cells.values()
            if (peak := memory_gb(cell)) is not None and cell.throughput_images_per_s is not None
        ]
        rows.extend(_named(each) | dot for dot in sorted(dots, key=itemgetter("y"), reverse=True))
    return rows if len(rows) >= LEAST_DOTS else []


def quality_rows(shown: Sequence[Measurement]) -> Rows:
    rows: Rows = []
    for each in shown:
        cell = each.cell()
        error = 0.0 if each.row.is_reference else each.quality and each.quality.latent_relative_error
        if cell and cell.latency.p50.supported and error is not None:
            tier = each.quality.tier if each.quality else "reference"
            dot = {"cell": tier, "x": cell.latency.p50.value, "y": error, "may_win": may_win(each)}
            rows.append(_named(each) | dot)
    return rows if len(rows) >= LEAST_DOTS else []


def gain_rows(layers: Sequence[Layer]) -> Rows:
    rows: Rows = []
    for layer in layers:
        gain, measured = layer.gain, layer.measurement.row
        low, high = gain.ratio.interval() or (None, None)
        rows.append(
            {
                "row": measured.row,
                "label": names.layer(measured, layer.parent.row),
                "gain": gain.ratio.value,
                "low": low,
                "high": high,
                "value": ratio(gain.ratio.value),
                "tone": {Verdict.FASTER: "best", Verdict.SLOWER: "plain"}.get(gain.verdict, "weak"),
            }
        )
    return rows


BASES = ("same stack on one GPU", "fastest lossless stack on one GPU")
"""Whose T1 an efficiency is of."""


def efficiency_rows(scaled: Sequence[Scaled]) -> Rows:
    rows: Rows = []
    for each in scaled:
        shares = {name: each.efficiency(one) for name, one in zip(BASES, (each.own, each.best), strict=True)}
        percents = {name: None if share is None else 100 * share for name, share in shares.items()}
        told = " / ".join(map(percent, percents.values())) + " %"
        rows.extend(_series(each.measurement, percents, told))
    return rows


def throughput_rows(scaled: Sequence[Scaled]) -> Rows:
    """Empty where no replicas were measured: there is nothing to hold the others against."""
    if not any(each.throughputs() and not each.shares_requests for each in scaled):
        return []
    rows: Rows = []
    for each in scaled:
        found = each.throughputs()
        images = {f"{users} users": found.get(users) for users in (each.gpus, 2 * each.gpus)}
        rows.extend(_series(each.measurement, images, " / ".join(map(number, images.values()))))
    return rows


def _series(measurement: Measurement, points: Mapping[str, float | None], told: str) -> Rows:
    """One row a point, after the one with what is printed; none without any point."""
    rows = [_named(measurement) | {"series": name, "x": x} for name, x in points.items() if x is not None]
    return [_named(measurement) | {"value": told}, *rows] if rows else []
