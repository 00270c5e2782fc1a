"""``fluxbench check``: does every file under results/ hold what its place and its neighbours say?

A results tree is evidence. What was edited, mixed up or cut off is found here: each fault names the file
and the expectation that failed. Nothing is repaired. What is merely old (code that has changed since, a
reference that was run again) is no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from bench import check_cell, identity, layout, record
from bench.attempts import complaints
from bench.check_cell import close, ranges
from bench.check_files import file_faults, request_faults
from bench.config import SINGLE
from bench.host.gpus import Gpu
from bench.matrix import AXIS_NAMES, IDENTITY, Row
from bench.record import HAS_NUMBERS, SERIOUSNESS, Code, Environment, Ingredients, Result
from bench.runner import window

NEEDS_A_TRACE = frozenset({Code.CRASHED, Code.OOM})
"""Runner and host leave the end of a log with them, or the exit code. After the last cell a row may still end
so, in its profile or its pictures."""


def check(wanted: Path, matrix: Iterable[Row]) -> Iterator[str]:
    """``file: expectation`` for everything that fails in ``attempts_of(wanted)`` and for results that stand
    below ``wanted`` and nowhere, in path order."""
    results = layout.root_of(wanted)
    rows = {row.row: row for row in matrix}
    folders = attempts_of(wanted)
    for folder in folders:
        yield from attempt_faults(results, folder, rows)
    known = set(folders)
    found = wanted.rglob(layout.RESULT) if wanted.is_dir() else iter([wanted])
    for stray in sorted(path for path in found if path.name == layout.RESULT):
        outside = stray.relative_to(results).parts[:1] in {("analysis",), ("demo",)}
        if stray.parent not in known and not outside:
            yield f"{stray}: stands nowhere in the tree of results (see bench/layout.py)"


def attempts_of(wanted: Path) -> list[Path]:
    """The attempts below a folder, or the one that a file or folder is part of."""
    return [
        folder
        for folder in layout.attempts(layout.root_of(wanted))
        if folder.is_relative_to(wanted) or wanted.is_relative_to(folder)
    ]


def attempt_faults(results: Path, folder: Path, rows: dict[str, Row]) -> Iterator[str]:
    path = folder / layout.RESULT
    try:
        result = record.load(path)
    except FileNotFoundError:
        yield f"{path}: missing; every attempt ends in one"
        return
    except ValidationError as error:
        yield from (f"{path}: {sentence}" for sentence in complaints(error))
        return
    for sentence in (*result_faults(result), *_place_faults(results, folder, result, rows)):
        yield f"{path}: {sentence}"
    for name, sentence in file_faults(folder, result):
        yield f"{folder / name}: {sentence}"


def figure_faults(folder: Path, result: Result) -> Iterator[str]:
    """What is wrong with the numbers themselves: result.json against itself, but for intervals by resampling,
    and its raw values against the requests that they are. A report asks this before it prints any: it takes
    milliseconds, where all that ``check`` looks at takes longer than the report."""
    yield from result_faults(result, resample=False)
    yield from (f"{layout.REQUESTS}: {sentence}" for sentence in request_faults(folder, result))


# --- result.json against itself ----------------------------------------------------------------------


def result_faults(result: Result, *, resample: bool = True) -> Iterator[str]:
    cells = {cell.shape: cell for cell in result.cells}
    if len(cells) < len(result.cells):
        yield "cells: one stands twice"
    uuids = [gpu.uuid for gpu in result.environment.gpus] if result.environment else []
    evidence = result.effective.get("parallel", {})
    servers = evidence.get("ranks", 1) if result.row.get("parallel") == "replicas" else 1
    for shape, cell in cells.items():
        place = f"cells[{shape}]"
        for sentence in check_cell.faults(cell, cells.get(SINGLE), servers, resample=resample):
            yield f"{place}.{sentence}"
        if cell.gpus and [gpu.uuid for gpu in cell.gpus] != uuids:
            yield f"{place}.gpus: they are not the GPUs of environment.gpus"
    yield from _agreement_faults(result)
    yield from _status_faults(result)
    yield from _stability_faults(result)
    yield from _cost_faults(result)
    if not _in_utc(result.started_at):
        yield f"started_at: {result.started_at!r} is not a time in UTC"


def _agreement_faults(result: Result) -> Iterator[str]:
    found = result.agreement
    if found is None or HAS_NUMBERS.isdisjoint(cell.status.code for cell in result.cells):
        return
    for of, error in found.outside().items():
        yield f"agreement: {of} are {error} apart, over {found.tolerance}, but cells have numbers"


def _status_faults(result: Result) -> Iterator[str]:
    code, codes = result.status.code, [cell.status.code for cell in result.cells]
    if code is not Code.OK and not result.status.reason:
        yield f"status.reason: empty, although the status is {code}"
    if code in HAS_NUMBERS:  # another code is its own reason, whatever the cells say
        worst = min(codes, key=SERIOUSNESS.index, default=None)
        if worst is None:
            yield f"status.code: {code} without a cell"
        elif SERIOUSNESS.index(code) > SERIOUSNESS.index(worst):
            yield f"status.code: {code}, but a cell is {worst}"
        if result.cost is None:
            yield f"cost: missing although the status is {code}"
    untold = not result.status.log_tail and result.status.exit_code is None
    if code in NEEDS_A_TRACE and untold and codes and HAS_NUMBERS.issuperset(codes):
        yield f"status.code: {code}, but all cells have numbers, and neither log_tail nor exit_code tells"
    if HAS_NUMBERS.isdisjoint(codes):
        return
    for name in ("weights", "environment", "manifest_sha256", "warmup"):
        if getattr(result, name) is None:
            yield f"{name}: missing although a cell has numbers"
    for axis in AXIS_NAMES:
        if not result.effective.get(axis):
            yield f"effective.{axis}: no evidence of {result.row.get(axis)}, but cells have numbers"


def _stability_faults(result: Result) -> Iterator[str]:
    """None in an attempt that the runner did not end itself."""
    stored, derived = result.stability, window.stability(result.cells)
    if stored is None:
        return
    for name, value in stored:
        again = getattr(derived, name, None)
        agree = value is again if value is None or again is None else close(value, again)
        if not agree:
            yield f"stability.{name}: {value}, but the cells give {again}"


def _cost_faults(result: Result) -> Iterator[str]:
    cost = result.cost
    if cost is None:
        return
    yield from ranges(cost)
    parts = cost.measuring_seconds + cost.warmup_seconds + cost.bookkeeping_seconds
    if not close(parts, cost.wall_seconds):
        yield f"cost.wall_seconds: {cost.wall_seconds}, but its parts are {parts} s together"
    explained = sum(phase.seconds for phase in result.phases)
    if explained > cost.wall_seconds * 1.01:
        yield f"phases: {explained} s together, but the attempt took {cost.wall_seconds} s"


def _in_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


# --- result.json against its place and the matrix ----------------------------------------------------


def _place_faults(results: Path, folder: Path, result: Result, rows: dict[str, Row]) -> Iterator[str]:
    try:
        row = Row.model_validate(result.row)
    except ValidationError as error:
        yield from (f"row.{sentence}" for sentence in complaints(error))
        return
    weights = result.weights.source if result.weights else folder.parent.name
    expected = layout.attempt_dir(results, row, weights, result.attempt)
    if folder != expected:
        yield f"row, weights, attempt: belong in {expected}"
    if row.row.isdigit():
        yield from _matrix_faults(row, rows.get(row.row))
    yield from _fingerprint_faults(result, row, weights)
    if result.environment:
        yield from _environment_faults(result.environment, row, result.ingredients)


def _environment_faults(found: Environment, row: Row, made_of: Ingredients | None) -> Iterator[str]:
    pinned = [part.split("==") for part in made_of.versions.split() if "==" in part] if made_of else []
    for package, version in pinned:  # a lock's hash instead names none
        if found.packages.get(package, version) != version:
            here = found.packages[package]
            yield f"environment.packages.{package}: {here}, but ingredients.versions has {version}"
    if not found.gpus:
        return
    if found.host_id != identity.host_id(gpu.uuid for gpu in found.gpus):
        yield f"environment.host_id: {found.host_id} does not stand for its GPUs"
    if len(found.gpus) != row.gpu_count:
        yield f"environment.gpus: {len(found.gpus)}, but the row is for {row.hardware}"
    for each in found.gpus:
        gpu = Gpu(0, each.name, each.uuid, int(each.memory_total_gb * 1e9))
        if row.gpu is None or not gpu.is_kind(row.gpu):
            yield f"environment.gpus: {each.name}, but the row is for {row.hardware}"
        if each.variant not in (None, gpu.variant):
            yield f"environment.gpus: the variant {each.variant}, but {each.name} is {gpu.variant}"


def _matrix_faults(row: Row, known: Row | None) -> Iterator[str]:
    if known is None:
        yield f"row.row: {row.row} is not in the matrix"
        return
    for column in IDENTITY:
        ours, theirs = getattr(row, column), getattr(known, column)
        if ours != theirs:
            yield f"row.{column}: {ours}, but the matrix says {theirs} for row {row.row}"


def _fingerprint_faults(result: Result, row: Row, weights: str) -> Iterator[str]:
    """Only the runner knows its ingredients; a result that the host wrote for it has none."""
    made_of = result.ingredients
    if made_of is None:
        return
    if made_of.weights != weights:
        yield f"ingredients.weights: {made_of.weights}, but the weights are {weights}"
    if identity.fingerprint_of(row, made_of) != result.fingerprint:
        yield "fingerprint: row and ingredients give another one"


def run(wanted: Path, matrix: Iterable[Row], say: Callable[[str], None]) -> int:
    """A line for each fault; 1 when there is one, 2 when there is nothing to check."""
    wanted = wanted.resolve()
    faults = 0
    for fault in check(wanted, matrix):
        say(fault)
        faults += 1
    count = len(attempts_of(wanted))
    if not count and not faults:
        looked_for = f"row-*/<weights>/<attempt>/{layout.RESULT}, laid out as in bench/layout.py"
        say(f"{wanted}: nothing to check; it holds no attempt and is part of none ({looked_for})")
        return 2
    say(f"{count} attempt{'s' * (count != 1)}, {faults or 'no'} fault{'s' * (faults != 1)}")
    return 1 if faults else 0
