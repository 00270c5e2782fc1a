"""The plan's Basic Performance Matrix, with n, intervals and quality beside the plan's columns.

Pure: from measurements to a table that knows neither Markdown nor HTML.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bench import stats
from bench.compare import Ratio
from bench.config import CELLS, SINGLE, Shape
from bench.quality import Closeness
from bench.record import CLOSED, HAS_NUMBERS, Code, Distribution, Quantile
from bench.report import names
from bench.report.gains import Gain, Gains
from bench.report.groups import Section, UseCase, fastest
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, figure, percentage
from bench.report.text import MISSING, interval, number, plural, quantile, ratio, ratio_bounds
from bench.verdicts import Verdict

SHAPE = (
    Column(
        "Concurrent Users",
        hint="Each sends its next request when the last one returned; those of a Poisson load send theirs at"
        " random moments, at this rate each, and are compared with nothing",
    ),
    Column("Images", hint="Per request, as one batch"),
)
MATRIX = (
    *SHAPE,
    Column("p25 (s)", hint="A quarter of the requests took at most this long"),
    Column("p50 (s)", hint="Median latency, scheduled to decoded image, queueing included; with 95 % CI"),
    Column("p90 (s)", hint="Nine requests in ten took at most this long; needs n of 36"),
    Column("p99 (s)", hint="99 requests in 100 took at most this long; needs n of 368"),
    Column("Avg (s)", hint="Arithmetic mean"),
    Column("GPU Util (%)", hint="Share of time in which any kernel ran, averaged over the steady window"),
    Column("Memory Usage (GB)", hint="Peak device memory; on a CPU the resident memory of the process"),
)
"""The columns of the plan's Basic Performance Matrix, its headings unchanged."""

N_HINT = (
    "Steady requests, warm-up left out. A run is a process of its own, and the CI of a p50 does not know how"
    " far the p50s of runs lie apart. A round is one request of every user"
)
BESIDE = (
    Column("n", hint=N_HINT),
    Column("Images/s", hint="Images delivered over the steady window"),
    Column(
        "Speed-up",
        hint="Median of the reference over this one, same host and cell, of several GPUs on one of them;"
        " verdict and 95 % CI",
    ),
    Column(
        "Quality", numeric=False, hint="Tier and PSNR of the same prompts and seeds against the reference"
    ),
    Column("Status", numeric=False, hint="And what was odd while it was measured"),
)
GPU_HOURS = Column(
    "GPU-hours per 1000 images",
    hint="At this load, every GPU of the row counted, start and warm-up not: times the price of a GPU-hour,"
    " what 1000 images cost",
)
STACK = Column("Stack", numeric=False, hint="What differs from plain eager execution")


def scope(section: Section) -> str:
    """What every caption says: whose numbers these are."""
    return f"{any_machine(section)} · {section.machine}"


def any_machine(section: Section) -> str:
    """The same of all machines with this hardware."""
    return " · ".join((names.hardware(section.hardware), f"{section.weights} weights", section.workload))


# --- The Basic Performance Matrix --------------------------------------------------------------------


def comparison(section: Section, case: UseCase, gains: Gains) -> Table:
    """Every stack of a use case in one matrix, fastest first; a cell that failed keeps its line."""
    lines = []
    best = fastest(case.measurements)
    for each in case.measurements:
        for shape in sorted({*each.cells, *each.failed}):
            entries = (stack_entry(each), *matrix_entries(each, shape, gains))
            lines.append(Line(entries, str(shape), best=each is best and shape == SINGLE))
        for cell in each.opened:
            entries = (stack_entry(each), *cell_entries(each, cell, gains))
            lines.append(Line(entries, str(cell.shape)))
        if not each.cells and not each.failed and not each.opened:
            lines.append(Line((stack_entry(each), *blank_entries((MISSING, MISSING), each.status))))
    return Table(
        f"Basic Performance Matrix: {case.title}", scope(section), (STACK, *MATRIX, *BESIDE), tuple(lines)
    )


def configuration(section: Section, case: UseCase, measurement: Measurement, gains: Gains) -> Table:
    """The plan's matrix of one configuration: always its four cells, and any other that was measured."""
    shapes = sorted({*CELLS, *measurement.cells, *measurement.failed})
    closed = (Line(matrix_entries(measurement, shape, gains)) for shape in shapes)
    opened = (Line(cell_entries(measurement, cell, gains)) for cell in measurement.opened)
    return Table(case.title, scope(section), (*MATRIX, *BESIDE), (*closed, *opened))


def stack_entry(measurement: Measurement, *cells: PooledCell | None) -> Entry:
    """``cells``: whose numbers stand beside it, where no column of the table tells their status."""
    role = names.role(measurement.row)
    tags = [role] if role else []
    if measurement.superseded or measurement.tagged:
        tags.append("stale")
    tags += dict.fromkeys(mark for cell in cells if cell for mark in cell.marks)
    return Entry(
        names.stack(measurement.row),
        names.stack(measurement.row),
        note=", ".join(filter(None, (f"row {measurement.row.row}", measurement.superseded))),
        tags=tuple(tags),
    )


def matrix_entries(measurement: Measurement, shape: Shape, gains: Gains) -> tuple[Entry, ...]:
    cell = measurement.cells.get(shape)
    if cell is None:
        known = measurement.cells or measurement.failed or measurement.opened
        return blank_entries(shape, measurement.failed.get(shape, None if known else measurement.status))
    return cell_entries(measurement, cell, gains)


def cell_entries(measurement: Measurement, cell: PooledCell, gains: Gains) -> tuple[Entry, ...]:
    latency = cell.latency
    gain = gains.of(measurement, cell)
    return (
        *shape_entries(cell.shape, cell.load),
        quantile_entry(latency.p25, latency),
        median_entry(latency),
        quantile_entry(latency.p90, latency),
        quantile_entry(latency.p99, latency),
        figure(latency.mean),
        percentage(cell.utilisation.gpu_busy_avg_percent),
        memory_entry(cell),
        count_entry(cell),
        figure(cell.throughput_images_per_s),
        gain_entry(
            gain,
            is_reference=measurement.row.is_reference and cell.load == CLOSED,
            refusal=gains.refusal(measurement, cell),
        ),
        quality_entry(measurement),
        status_entry(cell.code, cell),
    )


def shape_entries(shape: tuple[int | str, int | str], load: str = CLOSED) -> tuple[Entry, Entry]:
    """``4 (Poisson 0.6/s)`` users of a load that is not closed."""
    users, images = shape
    kind, _, rate = load.partition(":")
    sent = "" if load == CLOSED else f" ({kind.capitalize()} {rate}/s)"
    return Entry(f"{users}{sent}", users), Entry(str(images), images)


def blank_entries(shape: tuple[int | str, int | str], code: Code | None) -> tuple[Entry, ...]:
    """A line without numbers; ``None``: the cell was never asked for."""
    numbers = len(MATRIX) - len(SHAPE) + len(BESIDE) - 1
    blank = (Entry(MISSING) for _ in range(numbers))
    return *shape_entries(shape), *blank, status_entry(code) if code else Entry("not run")


def quantile_entry(value: Quantile, latency: Distribution) -> Entry:
    """An unsupported percentile shows n and the maximum, and sorts with the missing."""
    return Entry(quantile(value, latency), value.value if value.supported else None)


def answer_entry(cell: PooledCell) -> Entry:
    """The p50 where no status stands beside it: kinds of anomalies are its tags."""
    return replace(median_entry(cell.latency), tags=(*cell.marks, *cell.oddities), hint=cell.remarks)


def median_entry(latency: Distribution) -> Entry:
    """The p50 with its interval below."""
    note = f"CI {interval(latency.p50.ci95)}" if latency.p50.supported and latency.p50.ci95 else ""
    return replace(quantile_entry(latency.p50, latency), note=note)


def count_entry(cell: PooledCell) -> Entry:
    """n, with what a reader needs to weigh it: rounds of users, p50 of the fastest run and the slowest, and
    runs that are not in n. A run of too few requests for a p50 is counted and has none."""
    medians = [stats.median(run) for run in cell.runs if stats.supported(len(run), 50)]
    apart = f", p50 {number(min(medians))} to {number(max(medians))}" if len(medians) > 1 else ""
    runs = f"{len(cell.runs)} runs{apart}" if len(cell.runs) > 1 else ""
    rounds = plural(cell.n // cell.users, "round") if cell.users > 1 and cell.load == CLOSED else ""
    others = Counter(cell.left_out)
    left_out = (f"{count} {code} left out" for code, count in others.items())
    return Entry(str(cell.n), cell.n, note="; ".join(filter(None, (rounds, runs, *left_out))))


def p50_entry(cell: PooledCell | None) -> Entry:
    """Of another stack than the line's, so that what marks it has to stand here."""
    return (
        replace(quantile_entry(cell.latency.p50, cell.latency), tags=cell.marks) if cell else Entry(MISSING)
    )


def memory_gb(cell: PooledCell) -> float | None:
    """Peak on the device, or of the process where there is no device."""
    return (
        cell.memory.used_peak_gb if cell.memory.used_peak_gb is not None else cell.memory.process_rss_peak_gb
    )


def gpu_hours(measurement: Measurement, cell: PooledCell) -> float | None:
    """Of all its GPUs, for 1000 images at the rate of the steady window. None without a GPU, and where speed
    says nothing."""
    gpus, images_per_s = measurement.row.gpu_count, cell.throughput_images_per_s
    if not gpus or not images_per_s or measurement.only_pictures:
        return None
    return 1000 * gpus / images_per_s / 3600


def memory_entry(cell: PooledCell) -> Entry:
    peak = memory_gb(cell)
    return figure(peak, note="process" if peak and cell.memory.used_peak_gb is None else "")


def gain_entry(gain: Gain | None, *, is_reference: bool = False, refusal: str = "") -> Entry:
    """``1.35× FASTER`` with the interval below; ``refusal``: why there is none."""
    if gain is None and refusal:
        return Entry(MISSING, note=refusal)
    if gain is None:
        return Entry("1" if is_reference else MISSING, 1.0 if is_reference else None)
    strong = gain.verdict is Verdict.FASTER
    text = f"{ratio(gain.ratio.value)} {gain.verdict}"
    return Entry(text, gain.ratio.value, note=certainty(gain.ratio), strong=strong)


def certainty(of: Ratio) -> str:
    """``CI 1.337–1.355``, or what is missing for one."""
    bounds = of.interval()
    return f"CI {ratio_bounds(bounds)}" if bounds else f"no interval: {of.missing}"


def quality_entry(measurement: Measurement) -> Entry:
    quality = measurement.quality
    if measurement.row.is_reference:
        return Entry("reference", "reference")
    if quality is None:
        return Entry(MISSING, note=on_tiny(measurement))
    tags = ("numerical only",) if quality.weights == "synthetic" else ()
    return Entry(quality.tier, -quality.latent_relative_error, note=psnr(quality), tags=tags)


def on_tiny(measurement: Measurement) -> str:
    """Of the same stack, where that was painted; else empty."""
    painted = measurement.on_tiny
    return f"tiny model: {painted.tier}, {psnr(painted)}" if painted else ""


def psnr(closeness: Closeness) -> str:
    return "identical" if closeness.psnr_db is None else f"PSNR {number(closeness.psnr_db)} dB"


def status_entry(code: Code, cell: PooledCell | None = None) -> Entry:
    """With the kinds of anomalies; their details stand in the machine's table."""
    tags = ("marked",) if code in HAS_NUMBERS - {Code.OK} else ()
    oddities, remarks = (tuple(cell.oddities), cell.remarks) if cell else ((), "")
    return Entry(code, code, tags=(*tags, *oddities), hint=remarks)
