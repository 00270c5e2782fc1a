"""What a campaign will do, decided before anything runs: which rows, which cells of them, in what order.

All pure: rows, earlier results and this machine in; decisions out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile

from bench.config import BUDGETS, Budget, Shape
from bench.host.history import Past
from bench.matrix import Group, Row
from bench.record import CLOSED, HAS_NUMBERS, RETRIES, Code, Result
from bench.rules import refusal


class Action(StrEnum):
    RUN = "run"
    DONE = "done"
    """Measured here, by this code, within this budget."""
    SETTLED = "settled"
    """Failed here in a way that another try would repeat."""
    MARKED = "marked"
    """Measured here and still ``unstable`` after the retry: its values are kept and marked."""
    UNSUPPORTED = "unsupported"
    """A rule says no; a result that says so is written."""
    MISFIT = "misfit"
    """This machine lacks the hardware."""
    DAMAGED = "damaged"
    """A result.json of the row is not what the bench wrote; a person has to look."""


@dataclass(frozen=True)
class Decision:
    row: Row
    action: Action
    reason: str
    cells: tuple[Shape, ...] = ()
    """The cells to measure; of an earlier attempt's cells only the missing ones."""
    attempts: int = 1
    """Fresh processes that the budget still asks for."""
    stale: int = 0
    """Earlier results of this row on this host that other code, packages or weights measured."""
    repeated: bool = False
    """Run though it is done here: the reference between other rows."""
    elsewhere: bool = False
    """Done, but on another machine."""


def may_run(decision: Decision) -> bool:
    """Whether the row has numbers here, or will try to get them."""
    return decision.action in (Action.RUN, Action.DONE, Action.MARKED)


@dataclass(frozen=True)
class Wanted:
    """What the campaign asks of every row."""

    budget: Budget
    cells: tuple[Shape, ...]
    host_ids: frozenset[str]
    """Ids of this machine: its GPU UUIDs and the id of its CPU."""
    retry: bool = False
    """Also run again what failed in a way that another try would repeat, or stayed unstable."""
    again: bool = False
    """Also run again what is done (``fluxbench bench``: attempts may be pooled)."""
    gpu_names: frozenset[str] = frozenset()
    """Models of GPU on which another host's work counts too: of a campaign that was preempted and goes on
    elsewhere. Its rows stay compared with the reference of the host that measured them."""


def decide(
    row: Row, past: Past, fingerprint: str, wanted: Wanted, misfit: str | None, weights: str | None = None
) -> Decision:
    """``misfit`` is what this machine lacks for the row, None when it fits; ``weights`` their source, for the
    rules that ask for it."""
    if refused := refusal(row, weights):
        return Decision(row, Action.UNSUPPORTED, str(refused))
    if misfit:
        return Decision(row, Action.MISFIT, misfit)
    if past.damaged:
        reason = f"{past.damaged[0]}; move the file away or restore it, then run the same command again"
        return Decision(row, Action.DAMAGED, reason)
    here = [result for _, result in past.results if is_of_host(result, wanted.host_ids)]
    current = [result for result in here if result.fingerprint == fingerprint]
    stale = len(here) - len(current)
    if wanted.again:
        return Decision(row, Action.RUN, "asked for", wanted.cells, wanted.budget.processes, stale)
    decision = _what_is_left(row, current, stale, wanted)
    if decision.action is Action.RUN and not row.is_reference:
        for host, results in _of_other_hosts(past, fingerprint, wanted).items():
            there = _what_is_left(row, results, stale, wanted)
            if there.action in (Action.DONE, Action.MARKED):
                return replace(there, reason=f"done on {host} ({results[-1].attempt})", elsewhere=True)
    return decision


def _what_is_left(row: Row, current: Sequence[Result], stale: int, wanted: Wanted) -> Decision:
    """From attempts of one host and of the present code. What arrived at a rate of its own (``--load
    poisson:RATE``) is no cell of the plan."""
    closed = [result for result in current if result.load == CLOSED]
    enough = [result for result in closed if BUDGETS[result.budget].n >= wanted.budget.n]
    states = {cell: _state(cell, enough, wanted) for cell in wanted.cells}
    missing = tuple(cell for cell, state in states.items() if state is Action.RUN)
    if missing:
        attempts = max(_processes_left(cell, enough, wanted.budget) for cell in missing)
        return Decision(row, Action.RUN, _why_run(enough, missing, stale, wanted), missing, attempts, stale)
    settled = [cell for cell, state in states.items() if state is Action.SETTLED]
    if settled:
        last = enough[-1].status
        reason = f"{last.code} earlier: {last.reason or 'see its cells'}; --retry runs it again"
        return Decision(row, Action.SETTLED, reason, stale=stale)
    if _pictures_missing(enough):
        reason = f"measured, but {enough[-1].status.code} before its pictures were saved"
        return Decision(row, Action.RUN, reason, wanted.cells[:1], stale=stale)
    if marked := [cell for cell, state in states.items() if state is Action.MARKED]:
        return Decision(row, Action.MARKED, _why_marked(marked, enough, wanted.budget), stale=stale)
    return Decision(row, Action.DONE, f"done here ({enough[-1].attempt})", stale=stale)


def _of_other_hosts(past: Past, fingerprint: str, wanted: Wanted) -> dict[str, list[Result]]:
    """host -> what it measured with the present code on GPUs that count like those of this machine."""
    hosts: dict[str, list[Result]] = {}
    for _, result in past.results:
        place = result.environment
        if place is None or result.fingerprint != fingerprint or is_of_host(result, wanted.host_ids):
            continue
        names = {gpu.name for gpu in place.gpus}
        if names and names <= wanted.gpu_names:
            hosts.setdefault(place.host_id, []).append(result)
    return hosts


def is_of_host(result: Result, host_ids: Collection[str]) -> bool:
    """Whether every GPU that the result was measured on (or its CPU) is one of this machine."""
    if result.environment is None:
        return False
    return set(result.environment.host_id.split("+")) <= set(host_ids)


def _state(cell: Shape, attempts: Sequence[Result], wanted: Wanted) -> Action:
    """DONE, MARKED, SETTLED or RUN for one cell, from the attempts of this fingerprint on this host. Each
    process that the budget asks for has its own retries."""
    codes = _codes(cell, attempts)
    if not _processes_left(cell, attempts, wanted.budget):
        return Action.DONE
    failed = list(takewhile(lambda code: code is not Code.OK, reversed(codes)))
    if not failed or wanted.retry or may_retry(failed[0], failed.count(failed[0])):
        return Action.RUN
    return Action.MARKED if failed[0] in HAS_NUMBERS else Action.SETTLED


def _processes_left(cell: Shape, attempts: Sequence[Result], budget: Budget) -> int:
    """Fresh processes that the cell still needs: as many as the budget asks for, and enough for its requests.
    One that made fewer (``run --requests``) counts as a process, but not as a whole share."""
    stable = _stable(cell, attempts)
    # Not the budget's own share: a campaign may ask for more processes, and each measures the usual one.
    share = BUDGETS[budget.name].n_per_process
    for_requests = -(-max(budget.n - sum(stable), 0) // share)
    return max(budget.processes - len(stable), for_requests)


def _stable(cell: Shape, attempts: Sequence[Result]) -> list[int]:
    """Steady requests of each attempt at which the cell ended ``ok``."""
    measured = [found for each in attempts if (found := each.cell(*cell)) is not None]
    return [each.n for each in measured if each.status.code is Code.OK]


def _why_marked(cells: Sequence[Shape], attempts: Sequence[Result], budget: Budget) -> str:
    """``1x1 has 1 of its 3 processes stable (123 of 368 requests); the last one: ...``"""
    parts, reason = [], ""
    for shape in cells:
        measured = [cell for each in attempts if (cell := each.cell(*shape)) is not None]
        stable = _stable(shape, attempts)
        has = f"{shape} has {len(stable)} of its {budget.processes} processes stable"
        parts.append(f"{has} ({sum(stable)} of {budget.n} requests)")
        reason = measured[-1].status.reason
    return f"{', '.join(parts)}; the last one: {reason}; --retry runs it again"


def _pictures_missing(attempts: Sequence[Result]) -> bool:
    """Whether no attempt lived to its end, where the quality pictures are saved, and another one may."""
    broken_off = [result.status.code for result in attempts if broke_off(result)]
    all_broken = len(broken_off) == len(attempts)
    return all_broken and may_retry(broken_off[-1], broken_off.count(broken_off[-1]))


def _codes(cell: Shape, attempts: Sequence[Result]) -> list[Code]:
    return [code for result in attempts if (code := code_of(cell, result)) is not None]


def code_of(cell: Shape, result: Result) -> Code | None:
    """How the cell ended in this attempt; where the attempt broke off before the cell, as the attempt did.
    None when the attempt was not about this cell."""
    codes = {measured.shape: measured.status.code for measured in result.cells}
    if cell in codes:
        return codes[cell]
    return result.status.code if broke_off(result) else None


def broke_off(result: Result) -> bool:
    """Whether the attempt ended of something that is no cell's own."""
    codes = {cell.status.code for cell in result.cells}
    return result.status.code not in HAS_NUMBERS and result.status.code not in codes


def may_retry(code: Code, times: int) -> bool:
    """Whether what ended ``times`` times with this code is tried once more (METHOD.md section 7)."""
    if code not in RETRIES:
        return False
    limit = RETRIES[code]
    return limit is None or times <= limit


def _why_run(attempts: Sequence[Result], missing: Sequence[Shape], stale: int, wanted: Wanted) -> str:
    if not attempts:
        return f"only stale results ({stale}): measured by other code or packages" if stale else "new"
    if len(missing) < len(wanted.cells):
        done = len(wanted.cells) - len(missing)
        return f"goes on: {done} of {len(wanted.cells)} cells are done" + _what_is_there(
            attempts, missing, wanted
        )
    last = attempts[-1].status.code
    again = f"{last} earlier, tried again" if last is not Code.OK else f"process {len(attempts) + 1}"
    return again + _what_is_there(attempts, missing, wanted)


def _what_is_there(attempts: Sequence[Result], missing: Sequence[Shape], wanted: Wanted) -> str:
    """``; 1x1 has 4 of 368 requests, 364 are missing``, of the cells that have some."""
    n = wanted.budget.n
    there = {shape: sum(_stable(shape, attempts)) for shape in missing}
    return "".join(
        f"; {shape} has {requests} of {n} requests, {max(n - requests, 0)} are missing"
        for shape, requests in there.items()
        if requests
    )


PROMISE = {
    ("precision", "fp32"): 0.14,
    ("precision", "tf32"): 0.6,
    ("quantization", "bnb-int8"): 0.45,
    ("quantization", "torchao-int4wo"): 0.1,
    ("quantization", "torchao-int8dq"): 1.2,
    ("quantization", "torchao-fp8dq-row"): 1.3,
    ("quantization", "torchao-fp8dq-tensor"): 1.3,
    ("quantization", "scaledmm-fp8-row"): 1.3,
    ("attention", "flash3"): 1.02,
    ("attention", "native-flash"): 0.9,
    ("attention", "cudnn"): 0.95,
    ("attention", "sage2"): 0.97,
    ("compilation", "inductor"): 1.35,
    ("compilation", "inductor-max"): 1.36,
    ("compilation", "inductor-fused"): 1.45,
    ("compilation", "inductor-graphs"): 1.47,
    ("compilation", "tensorrt"): 1.4,
    ("vae", "tiled"): 0.95,
    ("vae", "sliced"): 0.99,
}
"""Speed against the reference to expect of an option, before anything is measured here: FACTS.md sections
1 and 7; of graphs what an H100 gave with flash3, of fused a little less. It orders rows and estimates their
hours."""

CACHE_PROMISE = 1.8
WEIGHT_ONLY_PROMISE = 0.95


def promise(row: Row) -> float:
    """The speed-up that the stack is a guess at; the product of its options', per GPU that works on it."""
    guess = float(max(row.gpu_count, 1)) ** 0.8
    for axis, option in row.stack.items():
        if axis == "cache" and option != "none":
            guess *= CACHE_PROMISE
        elif axis == "quantization" and option != "none":
            guess *= PROMISE.get((axis, option), WEIGHT_ONLY_PROMISE)
        else:
            guess *= PROMISE.get((axis, option), 1.0)
    return guess


def by_value(rows: Iterable[Row]) -> list[Row]:
    """Most valuable first, so that a budget that runs out still leaves an answer: the rows most likely to be
    the fastest, each reference before the first row that is held against it. What several GPUs do with a
    stack says how it scales only beside what one of them does with it, which goes first."""
    chosen = list(rows)
    best: dict[object, float] = {}
    for row in chosen:
        best[_anywhere(row)] = max(promise(row), best.get(_anywhere(row), 0.0))

    def value(row: Row) -> tuple[bool, bool, float, int, float]:
        return row.tier != "core", row.control != "none", -best[_anywhere(row)], row.gpu_count, -promise(row)

    opened: dict[Group, tuple[bool, bool, float, int, float]] = {}
    for row in chosen:
        if not row.is_reference:
            opened[row.group] = min(value(row), opened.get(row.group, value(row)))

    groups = list(dict.fromkeys(row.group for row in chosen))

    def turn(row: Row) -> tuple[object, ...]:
        when = opened.get(row.group, value(row)) if row.is_reference else value(row)
        return when, groups.index(row.group), not row.is_reference

    return sorted(chosen, key=turn)


def _anywhere(row: Row) -> object:
    """What rows have in common that run one stack on more GPUs or fewer."""
    return row.group, tuple(option for axis, option in row.stack.items() if axis != "parallel")
