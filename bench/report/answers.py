"""The headline: for each use case the fastest stack that was measured, beside the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from bench.report import names
from bench.report.gains import Gain, Gains
from bench.report.groups import LOSSLESS, Section, UseCase, fastest, is_lossless, may_win
from bench.report.matrix_table import (
    GPU_HOURS,
    N_HINT,
    answer_entry,
    certainty,
    count_entry,
    gain_entry,
    gpu_hours,
    memory_gb,
    on_tiny,
    p50_entry,
    quality_entry,
    scope,
    stack_entry,
)
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, figure, words
from bench.report.text import MISSING, number, plural, quantile

JOULES_A_KWH = 3.6e6

COLUMNS = (
    Column("Use case", numeric=False),
    Column("Fastest stack", numeric=False, hint="Lowest supported median, one user, one image"),
    Column("Of stacks", hint="That were measured here and may win, this one included"),
    Column("p50 (s)", hint="Median with its 95 % CI"),
    Column("n", hint=N_HINT),
    Column("Reference p50 (s)", hint="bf16, eager, SDPA, on the same host; of several GPUs on one of them"),
    Column("Speed-up", hint="Over the reference; verdict and 95 % CI"),
    Column("Quality", numeric=False, hint="Against the reference: same prompts, same seeds"),
    Column("Memory peak (GB)"),
    GPU_HOURS,
)


@dataclass(frozen=True)
class Answer:
    """None of the fields is missing: a use case without a clean, supported median has no answer."""

    case: UseCase
    winner: Measurement
    cell: PooledCell
    stacks: int
    """That were compared: those that may win, the winner included."""
    gain: Gain | None
    refusal: str
    """Why there is no gain though the reference was measured; empty otherwise."""
    base: Measurement | None
    """The reference, of several GPUs on one of them."""

    @property
    def stack(self) -> str:
        return names.stack(self.winner.row)

    @property
    def is_reference(self) -> bool:
        return self.winner.row.is_reference

    @property
    def reference(self) -> PooledCell | None:
        return self.base.cell() if self.base else None

    @property
    def one_gpu(self) -> str:
        """The GPU of the reference, where that is one of several."""
        alone = self.base is not None and self.base.row.hardware != self.winner.row.hardware
        return self.base.machine if self.base and alone else ""

    @property
    def compared(self) -> str:
        """What it is the fastest of."""
        by_schedule = sum(bool(each.row.skips_by_schedule and each.cell()) for each in self.case.measurements)
        of = (
            "the only stack that may win here"
            if self.stacks == 1
            else f"fastest of {self.stacks} stacks here"
        )
        if by_schedule == 0:
            return of
        return f"{of}; {plural(by_schedule, 'replay')} with a schedule of skipped steps may not win"

    @property
    def beside_the_reference(self) -> str:
        if self.is_reference:
            return "the reference itself"
        if self.reference is None:
            several = self.winner.row.gpu_count > 1
            return f"the reference was not measured on {'one of these GPUs' if several else 'this machine'}"
        seconds = quantile(self.reference.latency.p50, self.reference.latency)
        where = f" on one of these GPUs, {self.one_gpu}" if self.one_gpu else ""
        said = f"the reference took {seconds} s{where}"
        why = certainty(self.gain.ratio) if self.gain else self.refusal
        return f"{said}; {why}" if why else said

    @property
    def cost(self) -> str:
        """``1000 images: 0.693 GPU-hours, 0.474 kWh``; empty without a GPU. The energy is the GPUs' alone."""
        hours, joules = gpu_hours(self.winner, self.cell), self.cell.power.energy_per_image_j
        if hours is None:
            return ""
        energy = f", {number(joules * 1000 / JOULES_A_KWH)}\u00a0kWh" if joules else ""
        return f"1000 images: {number(hours)}\u00a0GPU-hours{energy}"

    @property
    def quality(self) -> str:
        """Of its pictures; where none were kept, what its options promise."""
        if self.winner.quality is None and not self.is_reference:
            known = f"{LOSSLESS}, promised by its options" if is_lossless(self.winner) else "not measured"
            return "; ".join(filter(None, (known, on_tiny(self.winner))))
        entry = quality_entry(self.winner)
        return ", ".join(part for part in (entry.text, entry.note, *entry.tags) if part)


def answer(case: UseCase, gains: Gains, among: Iterable[Measurement] | None = None) -> Answer | None:
    """``among``: the measurements that may win; None for all."""
    stacks = [each for each in (case.measurements if among is None else among) if may_win(each)]
    winner = fastest(stacks)
    cell = winner.cell() if winner else None
    if winner is None or cell is None:
        return None
    return Answer(
        case=case,
        winner=winner,
        cell=cell,
        stacks=len(stacks),
        gain=gains.of(winner, cell),
        refusal=gains.refusal(winner, cell),
        base=gains.reference,
    )


def headline(section: Section, answers: dict[str, Answer | None]) -> Table:
    """``answers`` by use case slug; a use case without one keeps its line and says so. No lines where no
    speed is asked for."""
    cases = () if section.only_pictures else section.use_cases
    lines = tuple(Line(entries(case, answers[case.slug])) for case in cases)
    return Table("Fastest stack of each use case", scope(section), COLUMNS, lines)


def entries(case: UseCase, answer: Answer | None) -> tuple[Entry, ...]:
    if answer is None:
        nothing = words("no stack with a supported median yet")
        return words(case.title), nothing, Entry("0", 0), *(Entry(MISSING) for _ in COLUMNS[3:])
    return (
        words(case.title),
        stack_entry(answer.winner),
        Entry(str(answer.stacks), answer.stacks),
        answer_entry(answer.cell),
        count_entry(answer.cell),
        _reference_entry(answer),
        gain_entry(answer.gain, is_reference=answer.is_reference, refusal=answer.refusal),
        quality_entry(answer.winner),
        figure(memory_gb(answer.cell)),
        figure(gpu_hours(answer.winner, answer.cell)),
    )


def _reference_entry(answer: Answer) -> Entry:
    reference = answer.reference
    if reference is None:
        return Entry(MISSING)
    return replace(p50_entry(reference), note=f"on {answer.one_gpu}" if answer.one_gpu else "")
