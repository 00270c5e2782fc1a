"""Clocks, temperature, power and load while a cell was measured: what its latency depends on too.

Of rows that several GPUs serve also each GPU, by the latest attempt at the cell.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.config import Shape
from bench.record import Cell, GpuFigures, Power
from bench.report.groups import Section, UseCase
from bench.report.matrix_table import SHAPE, STACK, scope, shape_entries, stack_entry
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, figure, percentage, words
from bench.report.text import MISSING

GPU_COLUMNS = (
    Column("GPU", numeric=False),
    Column("Memory avg (GB)"),
    Column("Memory peak (GB)", hint="Together: the highest sum at one moment, not the sum of the peaks"),
    Column("GPU busy avg (%)", hint="Share of time in which any kernel ran"),
    Column("SM clock avg (MHz)"),
    Column("Memory clock avg (MHz)"),
    Column("Temperature peak (°C)"),
    Column("Power avg (W)"),
    Column("Power limit (W)"),
    Column("Power cap (% of samples)", hint="Share of samples in which the power cap held the clocks down"),
)
MACHINE_COLUMNS = (
    Column("CPU busy avg (%)"),
    Column("Load before", numeric=False, hint="One-minute load average before the row began, of processors"),
    Column("Anomalies", numeric=False),
)


def table(section: Section, case: UseCase) -> Table:
    """A line a measured cell; of several GPUs one each and one for all."""
    on_gpu = bool(section.row.gpu_count)
    lines = tuple(
        line
        for each in case.measurements
        for shape, cell in each.cells.items()
        for line in _lines(each, shape, cell, on_gpu)
    )
    columns = (STACK, *SHAPE, *(GPU_COLUMNS if on_gpu else ()), *MACHINE_COLUMNS)
    return Table(f"{'Each GPU' if on_gpu else 'Machine'}: {case.title}", scope(section), columns, lines)


def _lines(measurement: Measurement, shape: Shape, cell: PooledCell, on_gpu: bool) -> Iterator[Line]:
    begin, name = (stack_entry(measurement, cell), *shape_entries(shape)), str(shape)
    several = _latest(measurement, shape)
    nothing = (Entry(MISSING),) * len(MACHINE_COLUMNS)
    for rank, gpu in enumerate(several.gpus if several else ()):
        title = words(f"rank {rank}, {gpu.uuid[:12]}")
        yield Line((*begin, title, *_figures(gpu, Power()), *nothing), name)
    together = _gpus(several, several.power) if several else _gpus(cell, cell.power)
    title = words("together" if several else measurement.machine)
    yield Line((*begin, *((title, *together) if on_gpu else ()), *_machine(measurement, shape, cell)), name)


def _latest(measurement: Measurement, shape: Shape) -> Cell | None:
    """None where one GPU serves, or none."""
    found = (attempt.result.cell(*shape) for attempt in reversed(measurement.attempts))
    return next((cell for cell in found if cell and cell.gpus), None)


def _gpus(of: Cell | PooledCell, power: Power) -> tuple[Entry, ...]:
    """Of the one GPU, or of several together."""
    memory, used = of.memory, of.utilisation
    return _figures(
        GpuFigures(
            uuid="",
            memory_used_avg_gb=_first(memory.together_avg_gb, memory.used_avg_gb),
            memory_used_peak_gb=_first(memory.together_peak_gb, memory.used_peak_gb),
            gpu_busy_avg_percent=used.gpu_busy_avg_percent,
            sm_clock_avg_mhz=used.sm_clock_avg_mhz,
            memory_clock_avg_mhz=used.memory_clock_avg_mhz,
            power_average_w=power.average_w,
            temperature_peak_c=used.temperature_peak_c,
        ),
        power,
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _figures(of: GpuFigures, power: Power) -> tuple[Entry, ...]:
    return (
        figure(of.memory_used_avg_gb),
        figure(of.memory_used_peak_gb),
        percentage(of.gpu_busy_avg_percent),
        figure(of.sm_clock_avg_mhz),
        figure(of.memory_clock_avg_mhz),
        figure(of.temperature_peak_c),
        figure(of.power_average_w),
        figure(power.limit_w),
        percentage(None if power.power_cap_share is None else 100 * power.power_cap_share),
    )


def _machine(measurement: Measurement, shape: Shape, cell: PooledCell) -> tuple[Entry, ...]:
    loads = [
        (environment.load_average[0], environment.cpu_count)
        for attempt in measurement.attempts
        if (found := attempt.result.cell(*shape)) and found.latency
        if (environment := attempt.result.environment)
    ]
    load, processors = max(loads)
    return (
        percentage(cell.utilisation.cpu_avg_percent),
        Entry(f"{load:.1f} of {processors}", load, note="highest of its runs" if len(loads) > 1 else ""),
        words(cell.remarks),
    )
