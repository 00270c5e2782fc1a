"""What several GPUs gain over one of them, and over as many replicas (METHOD.md section 1).

Everything is compared on the same GPUs of one host: T1 is measured on one of the GPUs that the row of several
used, and replicas on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench import steady
from bench.compare import Ratio, speedup
from bench.matrix import PLAIN
from bench.record import Agreement, Environment, Result
from bench.report.gains import Gain, comparable, refusal, told
from bench.report.gpu_time import communication_seconds
from bench.report.groups import Section, UseCase, fastest, is_lossless
from bench.report.matrix_table import STACK, gain_entry, p50_entry, quantile_entry, scope, stack_entry
from bench.report.names import stack
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, figure, percentage
from bench.report.text import MISSING, ratio
from bench.verdicts import verdicts

MB = 1e6


@dataclass(frozen=True)
class Scaled:
    """One stack on all GPUs of a section."""

    measurement: Measurement
    own: Measurement | None
    """The same stack on one of them, the faster one where it was measured on several."""
    best: Measurement | None
    """The fastest lossless stack on one of them."""
    replicas: Measurement | None
    """The same stack as one replica a GPU; None for replicas themselves."""
    gain: Gain | None = None
    """Of one request over ``own``; None for replicas, each of which takes as long as one GPU."""

    @property
    def gpus(self) -> int:
        return self.measurement.row.gpu_count

    @property
    def shares_requests(self) -> bool:
        return self.measurement.row.parallel != "replicas"

    @property
    def ratio(self) -> Ratio | None:
        """Of one request over ``own``, before any correction for the others in the table."""
        one, several = comparable(self.own), comparable(self.measurement)
        if one is None or several is None or not self.shares_requests or self.refusal(self.own):
            return None
        return told(speedup(one.side, several.side), self.gpus, one_GPU=one, row=several)

    def refusal(self, other: Measurement | None) -> str:
        """Why nothing is divided by or into the other's figures."""
        return refusal(self.measurement, other) if other else ""

    def efficiency(self, over: Measurement | None) -> float | None:
        """T1 / (N * TN)"""
        one, several = p50(over), p50(self.measurement)
        if one is None or several is None or not self.shares_requests or self.refusal(over):
            return None
        return steady.scaling_efficiency(one, several, self.gpus)

    def throughputs(self) -> dict[int, float]:
        """users -> images a second, one image a request, where there are as many users as GPUs or twice as
        many."""
        return images_per_s(self.measurement, (self.gpus, 2 * self.gpus))

    def marks_of_replicas(self) -> tuple[str, ...]:
        cells = [self.replicas.cell(users) for users in self.throughputs()] if self.replicas else []
        return tuple(dict.fromkeys(mark for cell in cells if cell for mark in cell.marks))

    def against_replicas(self) -> float | None:
        """Images a second over the replicas', at the most users that both were measured with."""
        others = images_per_s(self.replicas, (self.gpus, 2 * self.gpus)) if self.replicas else {}
        own = self.throughputs()
        both = own.keys() & others.keys()
        return own[max(both)] / others[max(both)] if both and not self.refusal(self.replicas) else None


def communication_share(result: Result) -> float | None:
    """Of one image's denoising; what overlaps with computing counts. None where neither was profiled."""
    seconds, cell = communication_seconds(result), result.cell()
    denoise = cell.stages.get("denoise") if cell else None
    return seconds / denoise.p50.value if seconds is not None and denoise else None


def p50(measurement: Measurement | None) -> float | None:
    """Of one user and one image, where it may be printed."""
    cell = measurement.cell() if measurement else None
    return cell.latency.p50.value if cell and cell.latency.p50.supported else None


def images_per_s(measurement: Measurement, users: Iterable[int]) -> dict[int, float]:
    cells: dict[int, PooledCell | None] = {count: measurement.cell(count, 1) for count in users}
    return {
        count: cell.throughput_images_per_s
        for count, cell in cells.items()
        if cell and cell.throughput_images_per_s is not None
    }


def of_one_gpu(section: Section, sections: Sequence[Section]) -> list[Section]:
    """Those measured on one of this section's GPUs, of the same weights and workload."""
    uuids = set(section.host_id.split("+"))
    return [
        each
        for each in sections
        if each.row.gpu_count == 1
        and each.host_id in uuids
        and (each.row.gpu, each.weights, each.workload)
        == (section.row.gpu, section.weights, section.workload)
    ]


def reference_on_one(section: Section, case: UseCase, sections: Sequence[Section]) -> Measurement | None:
    """What several GPUs are held against: the reference on one of them, the faster one where several
    measured it."""
    found = (
        other.reference
        for one in of_one_gpu(section, sections)
        for other in one.use_cases
        if (other.task, other.control) == (case.task, case.control)
    )
    measured = [each for each in found if each and p50(each)]
    return min(measured, key=lambda each: p50(each) or 0.0, default=None)


def scaled(section: Section, case: UseCase, sections: Sequence[Section]) -> tuple[Scaled, ...]:
    """Of every stack with numbers; empty for a section of one GPU or none."""
    if section.row.gpu_count < 2:
        return ()
    alone = [
        each
        for one in of_one_gpu(section, sections)
        for other in one.use_cases
        if (other.task, other.control) == (case.task, case.control)
        for each in other.measurements
    ]
    best = fastest(each for each in alone if is_lossless(each))
    found = [
        Scaled(
            measurement=each,
            own=fastest(one for one in alone if _same_but_parallel(one, each)),
            best=best,
            replicas=_replicas(each, case),
        )
        for each in case.measurements
        if each.cells
    ]
    ratios = {index: ratio for index, each in enumerate(found) if (ratio := each.ratio)}
    words = dict(zip(ratios, verdicts([*ratios.values()]), strict=True))
    return tuple(
        replace(each, gain=Gain(ratios[index], words[index])) if index in ratios else each
        for index, each in enumerate(found)
    )


def _same_but_parallel(one: Measurement, other: Measurement) -> bool:
    return _beside_parallel(one) == _beside_parallel(other) and one.row.parallel == PLAIN["parallel"]


def _beside_parallel(measurement: Measurement) -> dict[str, str]:
    """The rest of the stack. A parallel VAE exists on several GPUs only; on one it is the whole decode."""
    axes = measurement.row.stack | {"parallel": PLAIN["parallel"]}
    return axes | ({"vae": PLAIN["vae"]} if axes["vae"] == "parallel" else {})


def _replicas(measurement: Measurement, case: UseCase) -> Measurement | None:
    if measurement.row.parallel == "replicas":
        return None
    wanted = _beside_parallel(measurement)
    return next(
        (
            each
            for each in case.measurements
            if each.row.parallel == "replicas" and _beside_parallel(each) == wanted
        ),
        None,
    )


COLUMNS = (
    STACK,
    Column("p50 (s)", hint="One user, one image, on all GPUs"),
    Column("One GPU, same stack, p50 (s)"),
    Column("Speed-up", hint="Of one request, over the same stack on one of these GPUs; verdict and 95 % CI"),
    Column("Efficiency (%)", hint="T1 / (N × TN), T1 of the same stack on one of these GPUs"),
    Column("Efficiency over the fastest (%)", hint="T1 of the fastest lossless stack on one of these GPUs"),
    Column(
        "Apart from one GPU",
        hint="Relative error of what all paint against what one paints: of the latents and, where the VAE is"
        " shared, of the pictures",
    ),
    Column("Communication (%)", hint="Its kernels' seconds over denoising's, of the rank that waited least"),
    Column("Sent per step (MB)", hint="By one GPU in one denoising step, in collectives and messages"),
    Column(
        "Link (GB/s)",
        hint="The slowest between two of its GPUs, each way at once, measured before weights were loaded",
    ),
    Column("Images/s, users = N", hint="One image a request"),
    Column("Images/s, users = 2N", hint="One image a request"),
    Column("Over replicas", hint="Images/s over those of as many replicas of the same stack"),
)


def table(section: Section, case: UseCase, of: Sequence[Scaled]) -> Table:
    return Table(f"Scaling: {case.title}", scope(section), COLUMNS, tuple(_line(each) for each in of))


def _line(of: Scaled) -> Line:
    cell, one = of.measurement.cell(), of.own.cell() if of.own else None
    own, best = of.efficiency(of.own), of.efficiency(of.best)
    against, images = of.against_replicas(), of.throughputs()
    t1 = f"T1 of {stack(of.best.row)}" if of.best and best else ""
    sent, share = of.measurement.latest.communication, communication_share(of.measurement.latest)
    entries = (
        stack_entry(of.measurement, cell, *(of.measurement.cell(users) for users in images)),
        quantile_entry(cell.latency.p50, cell.latency) if cell else Entry(MISSING),
        p50_entry(one),
        gain_entry(of.gain, refusal=of.refusal(of.own)),
        _share(own),
        _share(best, of.refusal(of.best) or t1),
        agreement_entry(of.measurement.latest.agreement),
        _share(share),
        figure(sent.sent_bytes_per_step / MB if sent else None),
        link_entry(of.measurement.latest.environment),
        figure(images.get(of.gpus)),
        figure(images.get(2 * of.gpus)),
        Entry(ratio(against), against, note=of.refusal(of.replicas), tags=of.marks_of_replicas()),
    )
    return Line(entries)


def agreement_entry(found: Agreement | None) -> Entry:
    if found is None:
        return Entry(MISSING)
    errors = [e for e in (found.latent_relative_error, found.image_relative_error) if e is not None]
    return Entry(
        " / ".join(f"{error:.1g}" for error in errors),
        sort=max(errors),
        note=f"after {found.steps} steps; at most {found.tolerance:g} is what the options declare",
    )


def link_entry(environment: Environment | None) -> Entry:
    links = environment.links if environment else []
    if not links:
        return Entry(MISSING)
    slowest = min(links, key=lambda link: link.gb_per_s)
    return figure(slowest.gb_per_s, note=slowest.kind or "of a kind that nobody told")


def _share(share: float | None, note: str = "") -> Entry:
    return percentage(None if share is None else 100 * share, note)
