"""README's tables of options: what each is, what proves it, where it ran, and what it alone is worth."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from bench.axes import AXES, EVIDENCE
from bench.axes.option import Option
from bench.images import IMAGES
from bench.matrix import PLAIN, REFERENCE
from bench.quality import Closeness, changes
from bench.quality import tier as tier_of
from bench.report import names
from bench.report.gains import one_of_each_stack
from bench.report.gpu_time import gpu_time
from bench.report.matrix_table import gain_entry, memory_gb, psnr
from bench.report.page import Page, Report
from bench.report.pool import Measurement
from bench.report.stacks import Stack, stacks
from bench.report.table import Column, Entry, Line, Table, figure, words
from bench.report.text import MISSING, number
from bench.tryout_report import Constructed

COLUMNS = (
    Column("Option", numeric=False),
    Column("Plan's name", numeric=False),
    Column("Image", numeric=False),
    Column("Ran on", numeric=False),
    Column("Row alone"),
    Column("p50 alone (s)"),
    Column("Speed-up alone"),
    Column("Memory peak (GB)"),
    Column("Quality", numeric=False),
)
COMBINATION_COLUMNS = (
    Column("Stack", numeric=False),
    Column("Row"),
    Column("p50 (s)"),
    Column("Speed-up"),
    Column("Memory peak (GB)"),
    Column("GPU idle (s)"),
    Column("Energy per image (J)"),
)
NOT_RUN = "not run yet"


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
            words(alone.measurement.row.row if alone else MISSING),
            *_figures(alone),
            words(_quality(report, axis, option.id)),
        )
    )


def _ran_on(report: Report, axis: str, option: str) -> list[str]:
    """Kinds of machine with numbers of a stack that holds the option; then those where every such stack
    failed, and how the last did; then those where the tiny model alone had it, or where it cannot be had. A
    row that was stopped says nothing of its options, so the tiny model is heard beside it."""
    attempted = [
        (_machine(page), each)
        for page in report.pages
        for each in page.measurements
        if each.row.stack[axis] == option
    ]
    measured = {machine for machine, each in attempted if each.cells and not each.only_pictures}
    failed = {
        machine: each.latest.status.code
        for machine, each in attempted
        if machine not in measured and not each.cells
    }
    small = {machine: _on_tiny(machine) for machine, each in attempted if each.cells}
    constructed = dict(filter(None, (_tried(each, axis, option) for each in report.constructed)))
    tried = {machine: said for machine, said in constructed.items() if machine not in failed}
    return [
        *sorted(measured),
        *(f"{code} on {machine}" for machine, code in sorted(failed.items())),
        *(said for machine, said in (tried | small).items() if machine not in measured),
    ]


def _machine(page: Page) -> str:
    """Its kind: ``H100`` of ``8 × H100``."""
    return page.title.rpartition(" ")[2]


def _on_tiny(machine: str) -> str:
    return f"{machine} (tiny model)"


def _tried(constructed: Constructed, axis: str, option: str) -> tuple[str, str] | None:
    """(machine, what to say of it)"""
    machine = names.hardware(constructed.hardware).rpartition(" ")[2]
    if constructed.constructed()[axis][option]:
        return machine, _on_tiny(machine)
    if lacking := constructed.lacking(axis, option):
        return machine, f"not on {machine}: {lacking}"
    return None


def _alone(report: Report, axis: str, option: str) -> Stack | None:
    wanted = {**REFERENCE, axis: option}
    found = (each for each in _usual(report) if each.measurement.row.stack == wanted)
    return max(found, key=lambda each: each.weight, default=None)


def _usual(report: Report) -> Iterator[Stack]:
    """txt2img on one GPU, full size."""
    for page in report.pages:
        for each in chain.from_iterable(map(stacks, page.sections)):
            row = each.measurement.row
            usual = row.gpu_count == 1 and row.use_case == ("txt2img", "none")
            if usual and not each.measurement.only_pictures:
                yield each


def combinations(report: Report) -> Table:
    """Stacks that differ from the reference in more than one option, the largest gain first: the seconds are
    of several machines."""
    combined = (each for each in _usual(report) if len(changes(each.measurement.row)) > 1)
    ordered = sorted(one_of_each_stack(combined), key=lambda each: each.log_gain, reverse=True)
    return Table("Combinations", "", COMBINATION_COLUMNS, tuple(map(_combination_line, ordered)))


def _combination_line(stack: Stack) -> Line:
    measurement = stack.measurement
    role, spent = names.role(measurement.row), gpu_time(measurement)
    entries = (
        Entry(names.stack(measurement.row), tags=(role,) if role else ()),
        words(measurement.row.row),
        *_figures(stack),
        figure(spent.idle_seconds if spent else None),
        figure(stack.cell.power.energy_per_image_j),
    )
    return Line(entries)


def _figures(alone: Stack | None) -> tuple[Entry, Entry, Entry]:
    if alone is None:
        return Entry(MISSING), Entry(MISSING), Entry(MISSING)
    latency = alone.cell.latency
    p50 = number(latency.p50.value) if latency.p50.supported else f"max {number(latency.max)}"
    row, sides, memory = alone.measurement.row, f"n={alone.cell.n}", number(memory_gb(alone.cell))
    if alone.reference is not None and not row.is_reference:
        sides += f" against {alone.reference.n}"
        memory += f" (reference {number(memory_gb(alone.reference))})"
    measured_with = f"{row.hardware}, {alone.measurement.machine}, {alone.measurement.weights} weights"
    return (
        Entry(
            p50,
            note=f"{measured_with}, {sides}; {alone.measurement.measured}",
            tags=(*alone.cell.marks, *alone.cell.oddities),
        ),
        gain_entry(
            alone.gain,
            is_reference=row.is_reference,
            refusal=alone.refusal,
        ),
        Entry(memory),
    )


def _quality(report: Report, axis: str, option: str) -> str:
    """Of the option alone, txt2img: real pictures before random weights."""
    found = [
        (each.weights == "synthetic", *alone, f"{each.weights} weights on {_machine(page)}")
        for page in report.pages
        for each in page.measurements
        if each.row.use_case == ("txt2img", "none") and (alone := _of_option_alone(each, axis, option))
    ]
    if not found:
        return ""
    numerical, closeness, tier, painted_by = min(found, key=lambda each: each[0])
    meaning = "numerical only" if numerical else painted_by
    return f"{tier} ({psnr(closeness)}, {meaning})"


def _of_option_alone(measurement: Measurement, axis: str, option: str) -> tuple[Closeness, str] | None:
    """With its tier. Against the reference; on other precisions (a CPU's layers stand on fp32) against the
    parent, for there the reference differs in the precision too. None of what a plain stack has anyway: such
    a row differs from its parent in the precision alone."""
    judged, row = measurement.quality, measurement.row
    if judged is None or row.stack != {**PLAIN, "precision": row.precision, axis: option}:
        return None
    if PLAIN.get(axis) == option:
        return None
    if axis == "precision" or row.precision == REFERENCE["precision"]:
        return judged, judged.tier
    return (judged.parent, tier_of(judged.parent, ())) if judged.parent else None
