"""README's tables of options: what each is, what proves it, where it ran, and what it alone is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.axes import AXES, EVIDENCE
from bench.axes.option import Option
from bench.images import IMAGES
from bench.matrix import PLAIN, REFERENCE
from bench.report.gains import Gains
from bench.report.matrix_table import gain_entry, memory_gb, psnr
from bench.report.page import Report
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, words
from bench.report.text import MISSING, number

COLUMNS = (
    Column("Option", numeric=False),
    Column("Plan's name", numeric=False),
    Column("Image", numeric=False),
    Column("Ran on", numeric=False),
    Column("p50 alone (s)"),
    Column("Speed-up alone"),
    Column("Memory peak (GB)"),
    Column("Quality", numeric=False),
)
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Alone:
    """The reference with one option changed, txt2img, one user and one image, beside that reference."""

    measurement: Measurement
    cell: PooledCell
    gains: Gains
    reference: PooledCell | None


def options_tables(report: Report) -> Iterator[Table]:
    """One an axis, for every option but the absence of one; the evidence is the axis' and stands in the
    scope."""
    for axis, options in AXES.items():
        lines = tuple(_line(report, axis, option) for option in options.values() if option.id != "none")
        if lines:
            yield Table(axis, f"Evidence: {EVIDENCE[axis]}.", COLUMNS, lines)


def _line(report: Report, axis: str, option: Option) -> Line:
    ran_on = _ran_on(report, axis, option.id)
    alone = _alone(report, axis, option.id)
    return Line(
        (
            words(f"`{option.id}`"),
            words(option.title),
            words(next((image for image in IMAGES if image in option.images and image != "cpu"), "cpu")),
            words(", ".join(ran_on) or NOT_RUN),
            *_figures(alone),
            words(_quality(report, axis, option.id)),
        )
    )


def _ran_on(report: Report, axis: str, option: str) -> list[str]:
    """Kinds of machine with numbers of a stack that holds the option."""
    return [
        page.title.rpartition(" ")[2]
        for page in report.pages
        if any(each.cells and each.row.stack[axis] == option for each in page.measurements)
    ]


def _alone(report: Report, axis: str, option: str) -> Alone | None:
    """On a GPU, of the attempts with most requests; speed on a CPU with the tiny model says nothing."""
    wanted = {**REFERENCE, axis: option}
    found = [
        Alone(each, cell, view.gains, view.case.reference.cell() if view.case.reference else None)
        for page in report.pages
        for section in page.sections
        for view in section.cases
        for each in view.case.measurements
        if each.row.stack == wanted and each.row.gpu_count == 1 and each.row.use_case == ("txt2img", "none")
        if (cell := each.cell()) is not None
    ]
    return max(found, key=lambda alone: alone.cell.n, default=None)


def _figures(alone: Alone | None) -> tuple[Entry, Entry, Entry]:
    if alone is None:
        return Entry(MISSING), Entry(MISSING), Entry(MISSING)
    latency, gain = alone.cell.latency, alone.gains.of(alone.measurement, alone.cell)
    p50 = number(latency.p50.value) if latency.p50.supported else f"max {number(latency.max)}"
    row, sides, memory = alone.measurement.row, f"n={alone.cell.n}", number(memory_gb(alone.cell))
    if alone.reference is not None and not row.is_reference:
        sides += f" against {alone.reference.n}"
        memory += f" (reference {number(memory_gb(alone.reference))})"
    return (
        Entry(p50, note=f"{row.hardware}, {sides}"),
        gain_entry(gain, is_reference=row.is_reference),
        Entry(memory),
    )


def _quality(report: Report, axis: str, option: str) -> str:
    """Of the option alone, txt2img: real pictures before random weights."""
    found = [
        (each.weights == "synthetic", each.quality)
        for page in report.pages
        for each in page.measurements
        if each.quality is not None and each.row.use_case == ("txt2img", "none")
        if each.row.stack == {**PLAIN, "precision": each.row.precision, axis: option}
    ]
    if not found:
        return ""
    numerical, quality = min(found, key=lambda pair: pair[0])
    meaning = "numerical only" if numerical else f"{quality.weights} weights"
    return f"{quality.tier} ({psnr(quality)}, {meaning})"
