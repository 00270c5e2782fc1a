"""What must hold for the files beside result.json: each can be read whole and agrees with the result.

A process may have been killed in the middle of a line, so the last line of a growing file may be cut
short where the attempt did not end by itself.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import layout, pictures, quality, steady
from bench.attempts import complaints
from bench.check_cell import close, distributions
from bench.record import HAS_NUMBERS, Cell, Result
from bench.runner import telemetry
from bench.runner.telemetry import Device, Sample

LINE_ROUNDING_SECONDS = 2e-6
"""requests.jsonl keeps microseconds of two times whose sum is a latency."""

EVENT_SECONDS = 1e-3
"""A phase is marked by the wall clock, a window timed by another."""

NOT_SAMPLED = frozenset(
    {"uuid", "total_gb", "idle_gb", "limit_w", "torch_allocated_peak_gb", "torch_reserved_peak_gb"}
)
"""Figures beside telemetry's that come from elsewhere."""

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def file_faults(folder: Path, result: Result) -> Iterator[tuple[str, str]]:
    """(file, sentence)"""
    checks: dict[str, Callable[[Path, Result], Iterator[str]]] = {
        layout.REQUESTS: request_faults,
        layout.EVENTS: _event_faults,
        layout.TELEMETRY: _telemetry_faults,
        layout.IMAGES: _image_faults,
        quality.FILE: _quality_faults,
    }
    for name, faults in checks.items():
        yield from ((name, sentence) for sentence in faults(folder, result))


def _measured(result: Result) -> list[Cell]:
    return [cell for cell in result.cells if cell.status.code in HAS_NUMBERS and cell.latency]


def _lines(path: Path, result: Result) -> tuple[list[dict[str, Any]], list[str]]:
    """(objects, faults) of a JSON-lines file."""
    objects: list[dict[str, Any]] = []
    faults = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            objects.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            if not last or result.status.code in HAS_NUMBERS:
                faults.append(f"line {number}: is no JSON object")
    return objects, faults


def request_faults(folder: Path, result: Result) -> Iterator[str]:
    path, cells = folder / layout.REQUESTS, _measured(result)
    if not path.exists():
        if cells:
            yield "missing, although cells have numbers"
        return
    lines, faults = _lines(path, result)
    yield from faults
    try:
        yield from _request_figures(lines, cells, result.first_request_seconds)
    except (KeyError, TypeError, AttributeError) as error:
        yield f"a line lacks a field, or it is of another kind: {error}"


def _request_figures(
    lines: list[dict[str, Any]], cells: list[Cell], first_seconds: float | None
) -> Iterator[str]:
    windows = _windows(lines)
    if lines and first_seconds is not None:
        seconds = _seconds(lines[0])["latency"]
        if abs(seconds - first_seconds) > LINE_ROUNDING_SECONDS:
            yield f"its first request took {seconds} s, but first_request_seconds is {first_seconds}"
    for cell in cells:
        name = str(cell.shape)
        window = windows.get(name, [])
        if len(window) != cell.n:
            yield f"cell {name}: {len(window)} requests of its window, but the result has {cell.n}"
            continue
        timed = [_seconds(line) for line in window]
        for of, distribution in distributions(cell):
            pairs = zip(timed, distribution.raw, strict=False)  # how many there are is check_cell's
            if any(abs(each.get(of, math.inf) - raw) > LINE_ROUNDING_SECONDS for each, raw in pairs):
                yield f"cell {name}: its {of} is not that of the result"
        counts = steady.summed(line.get("counts", {}) for line in window)
        if counts != cell.counts:
            yield f"cell {name}: its lines count {counts}, the result {cell.counts}"


def _seconds(line: dict[str, Any]) -> dict[str, float]:
    """By the name of the distribution that they are a value of."""
    queue, service = line["queue_seconds"], line["service_seconds"]
    stages = {f"stages.{name}": seconds for name, seconds in line["stages"].items()}
    return {"latency": queue + service, "queue": queue, "service": service, **stages}


def _windows(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """cell -> lines of its last window. One that was discarded may stand before it: each begins with a
    first round, which is not counted."""
    windows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if not line["counted"]:
            windows[line["cell"]] = []
        else:
            windows.setdefault(line["cell"], []).append(line)
    return windows


def _event_faults(folder: Path, result: Result) -> Iterator[str]:
    """Phases follow each other and never nest."""
    path = folder / layout.EVENTS
    if not path.exists():
        if _measured(result):
            yield "missing, although cells have numbers"
        return
    lines, faults = _lines(path, result)
    yield from faults
    running = None
    for line in lines:
        phase, event = line.get("phase"), line.get("event")
        expected = ("begin", phase) if running is None else ("end", running)
        known = isinstance(phase, str) and isinstance(line.get("t"), (int, float))
        if (event, phase) != expected or not known:
            yield f"{event} of {phase}: expected {expected[0]} of {expected[1]}, with a time"
            return
        running = phase if event == "begin" else None
    if running is not None and result.status.code in HAS_NUMBERS:
        yield f"phase {running} never ends, although the attempt did"
    phases = _phases(lines)
    for cell in _measured(result):
        name = _phase_of(cell)
        begin, end = phases.get(name, (0.0, 0.0))
        if cell.window_seconds is not None and cell.window_seconds > end - begin + EVENT_SECONDS:
            yield f"{name}: took {end - begin:.3f} s, but window_seconds is {cell.window_seconds}"


def _phases(lines: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """phase -> unix time of its begin and its end; the last time, where it was there more than once."""
    times: dict[str, list[float]] = {}
    for line in lines:
        times.setdefault(line["phase"], []).append(line["t"])
    return {phase: (each[-2], each[-1]) for phase, each in times.items() if len(each) % 2 == 0}


def _phase_of(cell: Cell) -> str:
    return f"cell {cell.shape}"


def _telemetry_faults(folder: Path, result: Result) -> Iterator[str]:
    try:
        samples = telemetry.read(folder)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        yield f"cannot be read: {type(error).__name__}: {error}"
        return
    if not samples and _measured(result):
        yield "missing or empty, although cells have numbers"
    for sample in samples:
        for name, value in sample.values.items():
            top = 100.0 if name.endswith("_percent") else math.inf
            if not 0 <= value <= top or not math.isfinite(value):
                yield f"{name} at {sample.t}: {value} is out of range"
                return
    if samples and (folder / layout.EVENTS).exists() and not any(_event_faults(folder, result)):
        phases = _phases(_lines(folder / layout.EVENTS, result)[0])
        for cell in _measured(result):
            if _phase_of(cell) in phases:
                yield from _sampled_faults(result, cell, samples, *phases[_phase_of(cell)])


def _sampled_faults(
    result: Result, cell: Cell, samples: Sequence[Sample], begin: float, end: float
) -> Iterator[str]:
    """``begin``, ``end``: unix times of the cell's phase. Its window lies somewhere in it: how much later the
    phase ended is not recorded, so the figures must be those of one window of that length."""
    gpus = result.environment.gpus if result.environment else []
    devices = [Device(gpu.uuid, gpu.memory_total_gb, None, gpu.power_limit_w) for gpu in gpus]
    nearest: list[str] | None = None
    for window in _cuts(samples, begin, end, cell.window_seconds or 0.0):
        found = list(_contradictions(cell, devices, window))
        if nearest is None or len(found) < len(nearest):
            nearest = found
        if not found:
            return
    yield from (f"{_phase_of(cell)}: {sentence}" for sentence in nearest or ())


def _cuts(samples: Sequence[Sample], begin: float, end: float, seconds: float) -> Iterator[Sequence[Sample]]:
    """What the runner may have seen of a window of this length, the latest first. It looked at once, so lines
    of the last moment may have been written later, but none before them: the sampler writes in order."""
    times = [sample.t for sample in samples]
    slack = max(0.0, end - begin - seconds)
    edges = (edge - t for t in times for edge in (end - seconds, end))
    shifts = sorted({0.0, *(edge for edge in edges if 0 <= edge <= slack)})
    seen = set()
    for shift in (s + side for s in shifts for side in (-EVENT_SECONDS / 2, EVENT_SECONDS / 2)):
        first = bisect_left(times, end - seconds - shift)
        last = bisect_right(times, end - shift)
        unwritten = last - bisect_left(times, times[last - 1]) if last else 0
        for cut in range(last, last - unwritten - 1, -1):
            if first < cut and (first, cut) not in seen:
                seen.add((first, cut))
                yield samples[first:cut]


def _contradictions(cell: Cell, devices: Sequence[Device], window: Sequence[Sample]) -> Iterator[str]:
    stored = (cell.memory, cell.utilisation, cell.power, *cell.gpus)
    derived = (
        telemetry.memory(window, devices),
        telemetry.utilisation(window),
        telemetry.power(window, devices, cell.throughput_images_per_s or math.inf),
        *telemetry.by_gpu(window, devices, [(0, 0)] * len(devices)),
    )
    for ours, theirs in zip(stored, derived, strict=False):
        for name, value in ours:
            again = getattr(theirs, name)
            if value is None or name in NOT_SAMPLED or (again is not None and close(value, again)):
                continue
            yield f"{type(ours).__name__.lower()}.{name}: {value}, but the samples of its window give {again}"


def _image_faults(folder: Path, result: Result) -> Iterator[str]:
    images = folder / layout.IMAGES
    size = result.row.get("size")
    for path in sorted(images.glob("*.png")):
        data = path.read_bytes()
        if not data.startswith(PNG_START) or not data.endswith(PNG_END):
            yield f"{path.name} is no whole PNG"
        elif struct.unpack(">II", data[16:24]) != (size, size):
            yield f"{path.name} is not {size}x{size}"
    pairs = {path.stem for path in images.glob("*.png")} ^ {
        path.name.removesuffix(pictures.LATENTS) for path in images.glob(f"*{pictures.LATENTS}")
    }
    yield from (f"{prompt} has either image or latents, not both" for prompt in sorted(pairs))


def _quality_faults(folder: Path, result: Result) -> Iterator[str]:
    try:
        stored = quality.load(folder)
    except ValidationError as error:
        yield from complaints(error)
        return
    if stored is None:
        return
    if result.weights is None:
        yield "there, although no weights were loaded"
        return
    again = quality.assemble(
        result, stored.reference, stored.prompts, stored.noise_floor, parent=stored.parent
    )
    for name, value in stored:
        derived = getattr(again, name)
        if value != derived:
            yield f"{name}: {value}, but result and prompts give {derived}; run fluxbench quality"
