"""Each GPU of rows that several serve, and what they are together."""

from __future__ import annotations

from collections.abc import Iterator

from bench.record import Cell, GpuFigures
from bench.report.groups import Section, UseCase
from bench.report.matrix_table import MATRIX, STACK, scope, shape_entries, stack_entry
from bench.report.pool import Measurement
from bench.report.table import Column, Entry, Line, Table, figure, words
from bench.report.text import percent

COLUMNS = (
    STACK,
    *MATRIX[:2],
    Column("GPU", numeric=False),
    Column("Memory avg (GB)"),
    Column("Memory peak (GB)", hint="Together: the highest sum at one moment, not the sum of the peaks"),
    Column("GPU busy avg (%)", hint="Share of time in which any kernel ran"),
    Column("SM clock avg (MHz)"),
    Column("Memory clock avg (MHz)"),
    Column("Power avg (W)"),
    Column("Temperature peak (°C)"),
)


def table(section: Section, case: UseCase) -> Table:
    """Of the latest attempt; without lines where one GPU serves, or none."""
    lines = tuple(
        line
        for each in case.measurements
        for cell in each.latest.cells
        if cell.gpus and (cell.users, cell.images) in each.cells
        for line in _lines(each, cell)
    )
    return Table(f"Each GPU: {case.title}", scope(section), COLUMNS, lines)


def _lines(measurement: Measurement, cell: Cell) -> Iterator[Line]:
    shape = cell.users, cell.images
    begin = stack_entry(measurement), *shape_entries(shape)
    for rank, gpu in enumerate(cell.gpus):
        yield Line((*begin, words(f"rank {rank}, {gpu.uuid[:12]}"), *_figures(gpu)), f"{shape[0]}x{shape[1]}")
    memory, used, power = cell.memory, cell.utilisation, cell.power
    together = GpuFigures(
        uuid="",
        memory_used_avg_gb=memory.together_avg_gb,
        memory_used_peak_gb=memory.together_peak_gb,
        gpu_busy_avg_percent=used.gpu_busy_avg_percent,
        sm_clock_avg_mhz=used.sm_clock_avg_mhz,
        memory_clock_avg_mhz=used.memory_clock_avg_mhz,
        power_average_w=power.average_w,
        temperature_peak_c=used.temperature_peak_c,
    )
    yield Line((*begin, words("together"), *_figures(together)), f"{shape[0]}x{shape[1]}")


def _figures(of: GpuFigures) -> tuple[Entry, ...]:
    return (
        figure(of.memory_used_avg_gb),
        figure(of.memory_used_peak_gb),
        figure(of.gpu_busy_avg_percent, percent(of.gpu_busy_avg_percent)),
        figure(of.sm_clock_avg_mhz),
        figure(of.memory_clock_avg_mhz),
        figure(of.power_average_w),
        figure(of.temperature_peak_c),
    )
