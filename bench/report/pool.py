"""Attempts at one row on one host become one measurement (METHOD.md section 2, "Pooling").

Only attempts of one fingerprint and one load are pooled. The newest fingerprint that has numbers is the one
shown; it is stale when a newer one exists without numbers, or when this checkout would measure the row with
other code, tiny weights or locked packages.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TypeVar

from bench import identity, stats, steady
from bench.compare import Side
from bench.config import SINGLE, Shape
from bench.matrix import Row
from bench.quality import Quality
from bench.record import (
    CLOSED,
    HAS_NUMBERS,
    Anomaly,
    Cell,
    Code,
    Distribution,
    Memory,
    Power,
    Result,
    Utilisation,
)
from bench.report.load import Attempt
from bench.report.packages import locked_otherwise

Figures = TypeVar("Figures", Memory, Utilisation, Power)


@dataclass(frozen=True)
class PooledCell:
    """One cell over every attempt that measured it."""

    users: int
    images: int
    load: str
    """``closed``, or ``poisson:RATE`` in requests per second and user."""
    code: Code
    """``ok``, ``unstable`` or ``suspect``: without numbers there is no pooled cell."""
    runs: tuple[tuple[float, ...], ...]
    """Latencies in seconds, one tuple a process, each in order of finishing."""
    left_out: tuple[Code, ...]
    """How the other processes ended whose numbers are not among these: marked, where some are ``ok``."""
    latency: Distribution
    medians: dict[str, float]
    """Seconds, of ``queue`` (waiting), ``service``, ``text``, ``denoise``, ``step`` and ``decode``."""
    throughput_images_per_s: float | None
    batch_efficiency: float | None
    memory: Memory
    utilisation: Utilisation
    power: Power
    anomalies: tuple[Anomaly, ...]
    """Of the cell, and of the machine in the attempts that measured it."""

    @property
    def shape(self) -> Shape:
        return Shape(self.users, self.images)

    @property
    def marks(self) -> tuple[str, ...]:
        """``unstable`` or ``suspect``: said wherever a number of the cell stands."""
        return () if self.code is Code.OK else (self.code,)

    @property
    def oddities(self) -> dict[str, list[str]]:
        """Kind of anomaly, in words -> what was seen, each once."""
        found: dict[str, list[str]] = {}
        for each in self.anomalies:
            details = found.setdefault(each.kind.replace("_", " ").replace("-", " "), [])
            if each.detail not in details:
                details.append(each.detail)
        return found

    @property
    def remarks(self) -> str:
        """``power cap: held the clocks down in 98% of samples``; empty where nothing was odd."""
        return "; ".join(f"{kind}: {', '.join(details)}" for kind, details in self.oddities.items())

    @property
    def n(self) -> int:
        return len(self.latency.raw)

    @cached_property
    def side(self) -> Side:
        """As comparisons take it; one object, because it keeps an interval that may be a bootstrap."""
        return Side(self.runs, self.users)


@dataclass(frozen=True)
class Measurement:
    """A row on one host with one kind of weights."""

    row: Row
    weights: str
    host_id: str
    attempts: tuple[Attempt, ...]
    """Those of the fingerprint that is shown, oldest first; of closed load where there are any."""
    cells: dict[Shape, PooledCell]
    """Of closed load: comparisons know no other."""
    opened: tuple[PooledCell, ...]
    """Of other loads, of the same fingerprint."""
    open_attempts: tuple[Attempt, ...]
    """Those that ``opened`` is made of, where they do not stand in ``attempts``."""
    failed: dict[Shape, Code]
    """How the cells ended that have no numbers, by their latest attempt."""
    superseded: str
    """How a newer attempt ended that has no numbers; empty where these are of the newest."""
    changed: frozenset[str]
    """``code``, ``weights``, ``packages`` (those that are locked): what this checkout has otherwise than the
    numbers were measured with."""
    quality: Quality | None
    on_tiny: Quality | None = None
    """What the same stack on the same hardware paints with the tiny model, where this has other weights."""
    tagged: bool = False
    """Whether ``changed`` is said of the row: its section holds rows of which it is not true."""

    @property
    def only_pictures(self) -> bool:
        """Of the tiny model on a GPU, which waits for its kernels to be launched: its speed says nothing."""
        return self.weights == "tiny" and self.row.gpu is not None

    @property
    def latest(self) -> Result:
        return self.attempts[-1].result

    @property
    def warmed_up(self) -> tuple[Result, ...]:
        """The latest attempt; of a stack that compiled both cold and from the compile cache the latest of
        each, cold first: they are two times, and a reader of one waits the other."""
        by_cache = {
            each.result.warmup.compile_cache: each.result for each in self.attempts if each.result.warmup
        }
        found = tuple(by_cache[state] for state in ("cold", "warm") if state in by_cache)
        return found or (self.latest,)

    @property
    def machine(self) -> str:
        return self.attempts[-1].machine

    @property
    def measured(self) -> str:
        """Of the newest attempt that is shown."""
        return measured(self.latest)

    def cell(self, users: int = 1, images: int = 1) -> PooledCell | None:
        return self.cells.get(Shape(users, images))

    @property
    def status(self) -> Code:
        return self.latest.status.code


def measured(result: Result) -> str:
    """``2026-11-23, commit 20e1c234``"""
    environment = result.environment
    day, commit = result.started_at[:10], environment.git_commit if environment else None
    edited = " and uncommitted changes" if environment and environment.git_dirty else ""
    return f"{day}, commit {commit[:8]}{edited}" if commit else day


def measurements(attempts: Iterable[Attempt]) -> list[Measurement]:
    """One a row, kind of weights and host; attempts that never saw their machine belong to none."""

    def key(attempt: Attempt) -> tuple[str, ...]:
        return (*attempt.row.identity, attempt.weights, attempt.host_id or "")

    known = sorted((attempt for attempt in attempts if attempt.host_id), key=key)
    found = [_measurement(list(group)) for _, group in groupby(known, key=key)]
    painted = {_painter(each.row): each.quality for each in found if each.only_pictures and each.quality}
    return [
        each if each.weights == "tiny" else replace(each, on_tiny=painted.get(_painter(each.row)))
        for each in found
    ]


def _painter(row: Row) -> tuple[object, ...]:
    return row.hardware, row.use_case, *row.stack.values()


def _measurement(attempts: list[Attempt]) -> Measurement:
    """``attempts`` share row, weights and host."""
    attempts.sort(key=lambda attempt: attempt.result.attempt)
    closed = [each for each in attempts if each.result.load == CLOSED]
    eligible = closed or attempts
    newest = eligible[-1]
    by_fingerprint: dict[str, list[Attempt]] = {}
    for attempt in reversed(eligible):
        by_fingerprint.setdefault(attempt.result.fingerprint, []).insert(0, attempt)
    candidates = [(shown, _pool(shown)) for shown in by_fingerprint.values()]
    shown, cells = next(((shown, cells) for shown, cells in candidates if cells), candidates[0])
    same = [each for each in attempts if each.result.fingerprint == shown[-1].result.fingerprint]
    opened = [each for each in same if each.result.load != CLOSED]
    return Measurement(
        row=newest.row,
        weights=newest.weights,
        host_id=newest.host_id or "",
        attempts=tuple(shown),
        cells=cells if closed else {},
        opened=tuple(_pool_open(opened)),
        open_attempts=tuple(opened) if closed else (),
        failed=_failed(shown, cells) if closed else {},
        superseded=_superseded(shown[-1], newest),
        changed=_changed(shown[-1]),
        quality=next((each.quality for each in reversed(shown) if each.quality), None),
    )


def _superseded(shown: Attempt, newest: Attempt) -> str:
    if newest.result.fingerprint == shown.result.fingerprint:
        return ""
    return f"a newer attempt ({newest.result.attempt}) ended {newest.result.status.code}"


def _changed(attempt: Attempt) -> frozenset[str]:
    packages = {"packages"} if locked_otherwise(attempt) else set()
    made_of = attempt.result.ingredients
    if made_of is None:
        return frozenset(packages)
    here = identity.ingredients(attempt.row, made_of.weights)
    pairs = {"code": (made_of.code, here.code), "weights": (made_of.data, here.data)}
    return frozenset(packages | {name for name, (then, now) in pairs.items() if then != now})


def shown_code(result: Result, cell: Cell) -> Code:
    """The cell's own status, unless the attempt's forbids or marks every number in it."""
    if cell.status.code is Code.OK and result.status.code in {Code.NOT_APPLIED, Code.SUSPECT}:
        return result.status.code
    return cell.status.code


def _pool_open(attempts: Sequence[Attempt]) -> Iterator[PooledCell]:
    by_load: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_load.setdefault(attempt.result.load, []).append(attempt)
    for _, alike in sorted(by_load.items()):
        yield from _pool(alike).values()


def _pool(attempts: Sequence[Attempt]) -> dict[Shape, PooledCell]:
    """``attempts`` share their load."""
    found: dict[Shape, list[tuple[Code, Cell, Sequence[Anomaly]]]] = {}
    for attempt in attempts:
        for cell in attempt.result.cells:
            code = shown_code(attempt.result, cell)
            if code in HAS_NUMBERS and cell.latency is not None:
                entry = code, cell, attempt.result.anomalies
                found.setdefault(cell.shape, []).append(entry)
    pooled: dict[Shape, PooledCell] = {}
    for shape, marked in sorted(found.items()):
        code = Code.OK if any(code is Code.OK for code, _, _ in marked) else marked[-1][0]
        alike = [(cell, anomalies) for other, cell, anomalies in marked if other is code]
        left_out = tuple(other for other, _, _ in marked if other is not code)
        of_machines = [anomaly for _, anomalies in alike for anomaly in anomalies]
        pooled[shape] = _pool_cell(code, [cell for cell, _ in alike], left_out, of_machines, pooled)
    return pooled


def _failed(attempts: Sequence[Attempt], measured: Container[Shape]) -> dict[Shape, Code]:
    return {
        cell.shape: shown_code(attempt.result, cell)
        for attempt in attempts
        for cell in attempt.result.cells
        if cell.shape not in measured
    }


def _pool_cell(
    code: Code,
    cells: Sequence[Cell],
    left_out: tuple[Code, ...],
    of_machines: Sequence[Anomaly],
    smaller: dict[Shape, PooledCell],
) -> PooledCell:
    """``smaller`` holds the cells of fewer images, from which a batch efficiency follows."""
    first = cells[0]
    runs = tuple(tuple(cell.latency.raw) for cell in cells if cell.latency)
    latency = first.latency
    if latency is None or len(runs) > 1:
        latency = stats.summarise([value for run in runs for value in run], first.users)
    alone = smaller.get(SINGLE)
    efficiency = first.batch_efficiency if len(cells) == 1 else None
    if efficiency is None and alone is not None and first.users == 1 and first.images > 1:
        efficiency = steady.batch_efficiency(alone.latency.raw, latency.raw, first.images)
    return PooledCell(
        users=first.users,
        images=first.images,
        load=first.load,
        code=code,
        runs=runs,
        left_out=left_out,
        latency=latency,
        medians=_medians(cells),
        throughput_images_per_s=_throughput(cells),
        batch_efficiency=efficiency,
        memory=_merge(Memory, [(cell.memory, cell.n) for cell in cells]),
        utilisation=_merge(Utilisation, [(cell.utilisation, cell.n) for cell in cells]),
        power=_merge(Power, [(cell.power, cell.n) for cell in cells]),
        anomalies=(*(anomaly for cell in cells for anomaly in cell.anomalies), *of_machines),
    )


def _medians(cells: Sequence[Cell]) -> dict[str, float]:
    parts: dict[str, list[float]] = {}
    for cell in cells:
        for name, part in {"queue": cell.queue, "service": cell.service, **cell.stages}.items():
            if part is not None:
                parts.setdefault(name, []).extend(part.raw)
    return {name: stats.median(values) for name, values in parts.items()}


def _throughput(cells: Sequence[Cell]) -> float | None:
    """Images of all windows over the seconds of all windows."""
    images = seconds = 0.0
    for cell in cells:
        if cell.throughput_images_per_s is None or cell.window_seconds is None:
            return None
        images += cell.throughput_images_per_s * cell.window_seconds
        seconds += cell.window_seconds
    return images / seconds


def _merge(kind: type[Figures], parts: Sequence[tuple[Figures, int]]) -> Figures:
    """Peaks and limits by their maximum, the rest by its mean over n requests; missing stays missing."""
    merged: dict[str, float | None] = {}
    for name in kind.model_fields:
        values = [(value, n) for part, n in parts if (value := getattr(part, name)) is not None]
        if "peak" in name or "limit" in name:
            merged[name] = max((value for value, _ in values), default=None)
        else:
            total = sum(n for _, n in values)
            merged[name] = sum(value * n for value, n in values) / total if total else None
    return kind.model_validate(merged)
