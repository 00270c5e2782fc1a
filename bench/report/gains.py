"""What each stack gained: against the reference, against its parent, and beyond the product of its parts.

Every ratio compares cells of one host, because a ``UseCase`` holds no others; several GPUs are held against
the reference on one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from bench import stats
from bench.compare import ONE_RUN, Ratio, interaction, reference_spread, speedup
from bench.config import SINGLE, Shape
from bench.record import CLOSED
from bench.report import names, packages
from bench.report.groups import Section, UseCase
from bench.report.pool import Measurement, PooledCell
from bench.verdicts import Verdict, interacts, verdicts

SEVERAL_GPUS = "one run a side; of several GPUs both sides need two"


@dataclass(frozen=True)
class Gain:
    ratio: Ratio
    verdict: Verdict


@dataclass(frozen=True)
class Layer:
    """One row against the row it changes one thing from, one user and one image."""

    measurement: Measurement
    parent: Measurement
    change: str
    gain: Gain
    interaction: Ratio | None
    """Gain of this change here over its gain alone on the reference; None where that was not measured."""

    @property
    def interacts(self) -> bool:
        return self.interaction is not None and interacts(self.interaction)

    @property
    def weight(self) -> Weight:
        return weight(self.measurement, self.measurement.cells[SINGLE], self.gain)


@dataclass(frozen=True)
class RefusedLayer:
    """A row and its parent that were not measured with the same packages."""

    measurement: Measurement
    parent: Measurement
    change: str
    refusal: str


@dataclass(frozen=True)
class Gains:
    """Of one use case."""

    reference: Measurement | None
    spread: float | None
    """``compare.reference_spread`` of the host."""
    speedups: dict[tuple[str, Shape], Gain]
    """(row id, cell) -> gain over the reference's same cell."""
    layers: tuple[Layer, ...]
    refusals: dict[tuple[str, Shape], str]
    """(row id, cell) -> why there is no speed-up though both sides have a median."""
    refused_layers: tuple[RefusedLayer, ...]

    def refusal(self, measurement: Measurement, cell: PooledCell) -> str:
        return self.refusals.get((measurement.row.row, cell.shape), "") if cell.load == CLOSED else ""

    def of(self, measurement: Measurement, cell: PooledCell) -> Gain | None:
        """None where there is none to give, and for a cell whose load is not closed."""
        return self.speedups.get((measurement.row.row, cell.shape)) if cell.load == CLOSED else None


Weight = tuple[bool, bool, bool, int, str]


def weight(measurement: Measurement, cell: PooledCell, gain: Gain | None) -> Weight:
    """Of the machines that measured a stack the one with the greatest speaks for it, whatever its figure is:
    to let the largest gain speak would be to publish luck. Its median is supported, it has a speed-up, that
    has an interval, it has the most requests, it is the newest."""
    certain = bool(gain and gain.ratio.errors)
    return cell.latency.p50.supported, gain is not None, certain, cell.n, measurement.latest.attempt


class Weighed(Protocol):
    @property
    def measurement(self) -> Measurement: ...

    @property
    def weight(self) -> Weight: ...


W = TypeVar("W", bound=Weighed)


def one_of_each_stack(found: Iterable[W]) -> list[W]:
    """The weightiest of each row, in the order in which the rows came."""
    of_each: dict[tuple[str, ...], W] = {}
    for each in found:
        identity = each.measurement.row.identity
        of_each[identity] = max(of_each.get(identity, each), each, key=lambda one: one.weight)
    return list(of_each.values())


def host_spread(section: Section) -> float | None:
    """From every reference of the host that ran in several processes, each by the cell that most of them
    measured: what moves one cell of a process moves its others, so that they are no further evidence."""
    references = [case.reference for case in section.use_cases if case.reference and case.reference.cells]
    cells = (max(each.cells.values(), key=lambda cell: len(cell.runs)) for each in references)
    return reference_spread([stats.median(run) for run in cell.runs] for cell in cells)


def gains(case: UseCase, spread: float | None, of_one_gpu: Measurement | None = None) -> Gains:
    """``of_one_gpu``: the reference, where it runs on fewer GPUs than the use case."""
    base = case.reference or of_one_gpu
    unlike = {each.row.row: refusal(each, base) for each in case.measurements if base and each is not base}
    refusals = {
        (each.row.row, shape): unlike[each.row.row]
        for each in case.measurements
        if unlike.get(each.row.row)
        for shape in each.cells
        if comparable(each, shape) and comparable(base, shape)
    }
    return Gains(
        reference=base,
        spread=spread,
        speedups=_speedups(case, base, spread),
        layers=tuple(_layers(case, spread)),
        refusals=refusals,
        refused_layers=tuple(_refused_layers(case)),
    )


def refusal(of: Measurement, against: Measurement) -> str:
    """Why no ratio of the two is a gain of the options: other packages measured one of them."""
    found = packages.difference(of.attempts, against.attempts)
    return f"not compared: {found}" if found else ""


def _speedups(case: UseCase, base: Measurement | None, spread: float | None) -> dict[tuple[str, Shape], Gain]:
    """Holm's correction spans the candidates of one cell: that is the ranking a reader sees."""
    found: dict[tuple[str, Shape], Gain] = {}
    for shape in base.cells if base else ():
        reference = comparable(base, shape)
        if reference is None:
            continue
        candidates = {
            each.row.row: cell
            for each in case.measurements
            if base and each is not base and not refusal(each, base) and (cell := comparable(each, shape))
        }
        ratios = [
            told(speedup(reference.side, cell.side, spread), case.gpu_count, reference=reference, row=cell)
            for cell in candidates.values()
        ]
        for row, ratio, word in zip(candidates, ratios, verdicts(ratios), strict=True):
            found[row, shape] = Gain(ratio, word)
    return found


def comparable(measurement: Measurement | None, shape: Shape = SINGLE) -> PooledCell | None:
    """A ratio of medians that may not be printed may not be printed either."""
    cell = measurement.cells.get(shape) if measurement else None
    return cell if cell and cell.latency.p50.supported else None


def told(ratio: Ratio, gpus: int, **sides: PooledCell) -> Ratio:
    """Without an interval, so without a verdict, where a side is not ``ok``: what drifted while it was
    measured has no median that another process would find again. ``sides``: by what they are called.

    Of several GPUs there is no reference to repeat in their stead, and one GPU's says nothing of how far
    their processes differ."""
    if gpus > 1 and ratio.missing == ONE_RUN:
        ratio = replace(ratio, missing=SEVERAL_GPUS)
    marked = [f"the {name.replace('_', ' ')} is {cell.code}" for name, cell in sides.items() if cell.marks]
    return replace(ratio, errors=(), added=0.0, missing=" and ".join(marked)) if marked else ratio


def _layers(case: UseCase, spread: float | None) -> Iterable[Layer]:
    steps = []
    for each in case.measurements:
        parent = case.parent(each)
        cell, before = comparable(each), comparable(parent)
        if parent and cell and before and not refusal(each, parent):
            gain = told(speedup(before.side, cell.side, spread), case.gpu_count, parent=before, row=cell)
            steps.append((each, parent, gain))
    for (each, parent, ratio), word in zip(steps, verdicts([step[2] for step in steps]), strict=True):
        yield Layer(
            measurement=each,
            parent=parent,
            change=names.change(each.row, parent.row),
            gain=Gain(ratio, word),
            interaction=_interaction(case, each, parent, spread),
        )


def _refused_layers(case: UseCase) -> Iterable[RefusedLayer]:
    for each in case.measurements:
        parent = case.parent(each)
        if parent and comparable(each) and comparable(parent) and (why := refusal(each, parent)):
            yield RefusedLayer(each, parent, names.change(each.row, parent.row), why)


def _interaction(case: UseCase, both: Measurement, one: Measurement, spread: float | None) -> Ratio | None:
    """``both`` adds to its parent ``one`` what another row adds to the reference alone."""
    base = case.reference
    if base is None or one is base:
        return None
    changed = {axis for axis, option in both.row.stack.items() if option != one.row.stack[axis]}
    wanted = base.row.stack | {axis: both.row.stack[axis] for axis in changed}
    other = next((each for each in case.measurements if each.row.stack == wanted), None)
    if other is None or other is both or any(refusal(each, base) for each in (one, other, both)):
        return None
    cells = [cell for each in (base, one, other, both) if (cell := comparable(each))]
    if len(cells) < 4:
        return None
    reference, parent, alone, row = cells
    crossed = interaction(reference.side, parent.side, alone.side, row.side, spread)
    return told(crossed, case.gpu_count, reference=reference, parent=parent, change_alone=alone, row=row)
