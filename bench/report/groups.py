"""What may stand in one table: same hardware, same host, same weights, same workload.

METHOD.md section 4 (speed-ups on one host only) and section 9 (rows of different weights never share a
table) hold because every table is made from one ``Section``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from bench.config import QUALITY_TIERS
from bench.matrix import Row
from bench.quality import keeps_the_arithmetic
from bench.record import Code
from bench.report import names, slugs
from bench.report.pool import Measurement

LOSSLESS = QUALITY_TIERS[0].name


@dataclass(frozen=True)
class UseCase:
    """The stacks measured for one task and control, fastest single image first."""

    task: str
    control: str
    measurements: tuple[Measurement, ...]

    @property
    def title(self) -> str:
        return names.use_case(self.task, self.control)

    @property
    def slug(self) -> str:
        return names.use_case_slug(self.task, self.control)

    @property
    def gpu_count(self) -> int:
        return self.measurements[0].row.gpu_count

    @cached_property
    def reference(self) -> Measurement | None:
        return next((each for each in self.measurements if each.row.is_reference), None)

    def parent(self, of: Measurement) -> Measurement | None:
        return next((each for each in self.measurements if each.row.row == of.row.parent), None)


@dataclass(frozen=True)
class Section:
    """One world of comparable numbers."""

    slug: str
    """``h100x1-synthetic``; longer where that alone would name two sections (``slugs``)."""
    hardware: str
    weights: str
    host_id: str
    use_cases: tuple[UseCase, ...]

    @property
    def measurements(self) -> list[Measurement]:
        return [each for case in self.use_cases for each in case.measurements]

    @property
    def row(self) -> Row:
        """Any row: hardware and workload are the same in all."""
        return self.use_cases[0].measurements[0].row

    @property
    def workload(self) -> str:
        return names.workload(self.row)

    @property
    def machine(self) -> str:
        """``NVIDIA H100 80GB HBM3 (GPU-1a2b3c4d)``, or the processor and ``(cpu-1a2b3c4d)``."""
        environment = self.measurements[0].latest.environment
        if environment is None:
            return self.host_id
        if not environment.gpus:
            return f"{environment.cpu_model}, {environment.cpu_count} CPUs ({self.devices})"
        return f"{environment.gpus[0].name} ({self.devices})"

    @property
    def only_pictures(self) -> bool:
        return all(each.only_pictures for each in self.measurements)

    @property
    def devices(self) -> str:
        """``GPU-1a2b3c4d`` or ``cpu-1a2b3c4d``: as short as tells it from the others."""
        return self.measurements[0].machine


def sections(measurements: Iterable[Measurement]) -> list[Section]:
    """Sorted by hardware and weights; a world without any measured cell or status is not there."""

    def key(each: Measurement) -> tuple[object, ...]:
        row = each.row
        return row.hardware, each.weights, row.model, row.size, row.steps, each.host_id

    worlds = [list(group) for _, group in groupby(sorted(measurements, key=key), key=key)]
    of = [
        slugs.World(first.row.hardware, first.weights, first.row.size, first.row.steps, first.host_id)
        for first, *_ in worlds
    ]
    return [_section(world, slug) for world, slug in zip(worlds, slugs.slugs(of), strict=True)]


def _section(measurements: Sequence[Measurement], slug: str) -> Section:
    changed = [bool(each.changed) for each in measurements if each.cells]
    mixed = any(changed) and not all(changed)
    by_case: dict[tuple[str, str], list[Measurement]] = {}
    for each in measurements:
        tagged = replace(each, tagged=mixed and bool(each.changed))
        by_case.setdefault(each.row.use_case, []).append(tagged)
    cases = [
        UseCase(*case, tuple(sorted(by_case[case], key=_speed)))
        for case in sorted(by_case, key=names.use_case_order)
    ]
    first = measurements[0]
    return Section(slug, first.row.hardware, first.weights, first.host_id, tuple(cases))


def fastest(measurements: Iterable[Measurement]) -> Measurement | None:
    """By the median of one user and one image, where it is supported and nothing marks it. A stack whose
    cache follows a schedule is no answer to anyone's question, and the tiny model on a GPU none to what is
    fast."""
    clean = [
        (cell.latency.p50.value, each) for each in measurements if (cell := each.cell()) and may_win(each)
    ]
    return min(clean, key=lambda pair: pair[0])[1] if clean else None


def may_win(measurement: Measurement) -> bool:
    cell = measurement.cell()
    supported = cell is not None and cell.code is Code.OK and cell.latency.p50.supported
    return supported and not measurement.row.skips_by_schedule and not measurement.only_pictures


def quality_tier(measurement: Measurement) -> str | None:
    """By its pictures; where none were kept, by what its options promise. None for the lowest, and where
    nobody knows."""
    if measurement.quality is None:
        return LOSSLESS if keeps_the_arithmetic(measurement.row) else None
    return None if measurement.quality.tier == QUALITY_TIERS[-1].name else measurement.quality.tier


def is_lossless(measurement: Measurement) -> bool:
    return quality_tier(measurement) == LOSSLESS


def _speed(measurement: Measurement) -> tuple[float, str]:
    cell = measurement.cell()
    return (cell.latency.p50.value if cell else float("inf")), names.stack(measurement.row)
