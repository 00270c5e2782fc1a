"""What must hold for the files beside result.json: each can be read whole and agrees with the result.

A process may have been killed in the middle of a line, so the last line of a growing file may be cut
short where the attempt did not end by itself.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import layout, pictures, quality, steady
from bench.attempts import complaints
from bench.record import HAS_NUMBERS, Cell, Result
from bench.runner import telemetry

LINE_ROUNDING_SECONDS = 2e-6
"""requests.jsonl keeps microseconds of two times whose sum is a latency."""

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def file_faults(folder: Path, result: Result) -> Iterator[tuple[str, str]]:
    """(file, sentence)"""
    checks: dict[str, Callable[[Path, Result], Iterator[str]]] = {
        layout.REQUESTS: _request_faults,
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


def _request_faults(folder: Path, result: Result) -> Iterator[str]:
    path, cells = folder / layout.REQUESTS, _measured(result)
    if not path.exists():
        if cells:
            yield "missing, although cells have numbers"
        return
    lines, faults = _lines(path, result)
    yield from faults
    try:
        windows = _windows(lines)
        counts = {
            name: steady.summed(line.get("counts", {}) for line in each) for name, each in windows.items()
        }
        latencies = {
            name: [line["queue_seconds"] + line["service_seconds"] for line in each]
            for name, each in windows.items()
        }
    except (KeyError, TypeError) as error:
        yield f"a line lacks the field {error}"
        return
    for cell in cells:
        assert cell.latency is not None  # _measured() took no others
        name, raw = f"{cell.users}x{cell.images}", cell.latency.raw
        seconds = latencies.get(name, [])
        if len(seconds) != len(raw):
            yield f"cell {name}: {len(seconds)} requests of its window, but the result has {len(raw)}"
        elif any(abs(a - b) > LINE_ROUNDING_SECONDS for a, b in zip(seconds, raw, strict=True)):
            yield f"cell {name}: its latencies are not those of the result"
        elif counts.get(name, {}) != cell.counts:
            yield f"cell {name}: its lines count {counts.get(name)}, the result {cell.counts}"


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
        if (event, phase) != expected or not isinstance(line.get("t"), (int, float)):
            yield f"{event} of {phase}: expected {expected[0]} of {expected[1]}, with a time"
            return
        running = phase if event == "begin" else None
    if running is not None and result.status.code in HAS_NUMBERS:
        yield f"phase {running} never ends, although the attempt did"


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
