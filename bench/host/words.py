"""What a campaign says before it runs and after: the plan and the summary, as lines and one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.table import Table

from bench.config import Budget
from bench.host import bill, packing
from bench.host.estimate import gpu_hours
from bench.host.fanout import Plan, Settings, Wanting
from bench.host.gpus import Gpu, misfit
from bench.host.local import cells_text
from bench.host.outcome import Outcome, Summary
from bench.host.plan import Action, Decision
from bench.host.progress import clock
from bench.matrix import Row, references_of
from bench.record import HAS_NUMBERS
from bench.runner.links import p2p_disabled, unsetting
from bench.typed import Asked

SKIPPED = {
    Action.DONE: "done",
    Action.MARKED: "measured and tried again, still unstable",
    Action.SETTLED: "failed before, not tried again",
    Action.UNSUPPORTED: "unsupported",
    Action.MISFIT: "do not fit this machine",
    Action.DAMAGED: "have a result that cannot be read",
}
"""action -> what the plan says of such rows"""

MOST_RUNS = 12
"""Of numbers of rows in one sentence."""


def plan_lines(plan: Plan, settings: Settings, gpus: Sequence[Gpu], *, every_row: bool) -> list[str]:
    """``every_row`` lists what will run row by row, in order."""
    budget = settings.budget
    wall_seconds = packing.wall_seconds(plan, settings, gpus)
    lines = [_headline(plan, settings, gpus, wall_seconds)]
    if plan.to_run:
        lines += _reference_lines(plan, settings, gpus)
        lines += bill.lines(plan, settings, gpus, wall_seconds)
    if every_row and plan.to_run:
        fit = {item.row.row for item in bill.fitting(plan, settings, wall_seconds)}
        lines += [
            f"  {number}. {_run_line(plan, item, budget)}"
            + ("" if item.row.row in fit else "; beyond --max-hours")
            for number, item in enumerate(plan.to_run, 1)
        ]
    stale = [item.row.row for item in plan.decisions if item.stale]
    if stale:
        lines.append(f"stale results, shown as stale and not counted as done: {rows_text(stale)}")
    for action, words in SKIPPED.items():
        for reason, ids in _by_reason(plan.having(action)):
            lines.append(f"{words}: {rows_text(ids)}{reason}")
    if every_row and not plan.to_run:
        lines += _rented_instead(plan)
    return lines


def links_advice(plan: Plan, variables: Mapping[str, str]) -> Iterator[str]:
    """What of the caller's environment will cost the rows of several GPUs."""
    several = [item.row.row for item in plan.to_run if item.row.gpu_count > 1]
    if several and (disabled := p2p_disabled(variables)):
        yield (
            f"{disabled} is set: the GPUs of {rows_text(several)} would talk through the host's memory, and a"
            f" link far below its kind ends a row; {unsetting(disabled)} first"
        )


def _rented_instead(plan: Plan) -> Iterator[str]:
    """Where nothing runs for want of GPUs."""
    for item in plan.having(Action.MISFIT)[:1]:
        if item.row.gpu is not None:
            yield f"to plan as if this machine had them: --dry-run --on {item.row.hardware}"


def _headline(plan: Plan, settings: Settings, gpus: Sequence[Gpu], wall_seconds: float) -> str:
    chosen = len(plan.decisions) - len(plan.added)
    count = _plural(chosen, "row") + " chosen"
    if plan.added:
        count += f" and {_plural(len(plan.added), 'reference')} added"
    count += f", {len(plan.to_run)} to run"
    if not plan.to_run:
        return count
    hours = bill.gpu_hours_of(plan, settings, packing.work(plan, settings, gpus))
    return f"{count} ({settings.budget.name}): about {clock(wall_seconds)}, {hours:.2f} GPU-hours (estimates)"


def _reference_lines(plan: Plan, settings: Settings, gpus: Sequence[Gpu]) -> Iterator[str]:
    """What references cost that nobody asked for."""
    if added := [item for item in plan.to_run if item.row.row in plan.added]:
        names = rows_text([item.row.row for item in added])
        yield f"references added, as the chosen rows lack theirs: {names}, {bill.cost(plan, settings, added)}"
    for again in packing.repeats(plan, settings, gpus):
        yield (
            f"{again.row.label} again between the rows and after them, to see whether the GPU changed: "
            f"{_plural(again.attempts, 'time')}, {bill.cost(plan, settings, [again])}"
        )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _run_line(plan: Plan, item: Decision, budget: Budget) -> str:
    times = f" in {item.attempts} processes" if item.attempts > 1 else ""
    about = clock(plan.seconds(item, budget))
    return f"{item.row.label} {cells_text(item.cells)}{times}: about {about}; {item.reason}"


def _by_reason(decisions: Iterable[Decision]) -> list[tuple[str, list[str]]]:
    """Rows of one reason on one line; a reason that names the attempt is different for every row."""
    grouped: dict[str, list[str]] = {}
    for item in decisions:
        reason = "" if item.action is Action.DONE else f": {item.reason}"
        grouped.setdefault(reason, []).append(item.row.row)
    return list(grouped.items())


def rows_text(ids: Sequence[str]) -> str:
    """``row 4``, ``rows 1-3, 7``: runs of numbers drawn together; the count in place of the end of a long
    list."""
    numbers = sorted(int(row) for row in ids if row.isdigit())
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    parts += sorted(row for row in ids if not row.isdigit())
    if len(parts) > MOST_RUNS:
        parts[MOST_RUNS:] = [f"... ({len(ids)} in all)"]
    return f"row{'s' * (len(ids) != 1)} {', '.join(parts)}"


def summary_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="What ran", title_justify="left")
    for name in ("row", "status", "cells", "p50 1x1 (s)", "took", "result"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        result = outcome.result
        cells = " ".join(
            str(cell.shape) + ("" if cell.status.code == "ok" else f" {cell.status.code}")
            for cell in result.cells
        )
        took = clock(outcome.seconds)
        table.add_row(
            outcome.row.label, result.status.code.value, cells, _p50(outcome), took, str(outcome.path)
        )
    return table


def _p50(outcome: Outcome) -> str:
    cell = outcome.result.cell()
    if cell is None or cell.latency is None:
        return "-"
    p50 = cell.latency.p50
    return f"{p50.value:.3f}" if p50.supported else f"n={cell.n}, max {cell.latency.max:.3f}"


def ending_lines(summary: Summary, price_per_gpu_hour: float | None = None) -> list[str]:
    lines = []
    hours = sum(gpu_hours(outcome.row, outcome.seconds) for outcome in summary.outcomes)
    if hours:
        price = (
            f", {hours * price_per_gpu_hour:.2f} at {price_per_gpu_hour:g} each" if price_per_gpu_hour else ""
        )
        lines.append(f"used: {hours:.2f} GPU-hours{price}")
    if summary.left_out:
        lines.append(f"left out: {rows_text([row.row for row, _ in summary.left_out])} (reasons above)")
    if summary.broke_off:
        lines.append(f"broken off: {summary.broke_off}")
    if summary.stopped_by is not None:
        lines.append("stopped on request; every finished cell is kept and the same command goes on from here")
    return lines


def misfit_advice(row: Row, rows: Iterable[Row], gpus: Sequence[Gpu], asked: Asked) -> str:
    """What somebody with this machine and that row can do."""
    lines = [
        f"{row.label} does not run here: {misfit(row, gpus)}.",
        f"To run it, take a machine with {row.gpu_count} x {row.gpu} (rented by the hour is enough), clone "
        f"the repository there and run `{asked.bench(row)}`; then bring its results back.",
    ]
    alike = [other for other in rows if other.use_case == row.use_case and misfit(other, gpus) is None]
    same = next((other for other in alike if other.stack == row.stack), None)
    other = same or next((other for other in alike if other.is_reference), None)
    if other is not None:
        what = "the same use case and stack" if same else "the reference of the same use case"
        size = " on the tiny model" if other.model == "tiny" else ""
        lines.append(f"What fits here: {other.label} is {what}{size}: `{asked.bench(other)}`.")
    return "\n".join(lines)


def comparison_advice(
    summary: Summary, wanting: Wanting, matrix: Sequence[Row], asked: Asked
) -> Iterator[str]:
    """For rows that were run alone: the command that gives them something to be compared with, unless their
    GPU has it."""
    for outcome in summary.outcomes:
        host = outcome.host_id
        if outcome.result.status.code not in HAS_NUMBERS or outcome.row.is_reference or host is None:
            continue
        there = wanting.on(*host.split("+"))
        for reference in references_of([outcome.row], matrix):
            if there.decide(reference, there.past(reference), again=False).action is Action.RUN:
                yield (
                    f"row {outcome.row.row} has nothing to be compared with here yet; "
                    f"`{asked.bench(reference)}` runs its reference, {reference.label}"
                )
