"""Fake results on disk, with every file that an attempt leaves.

    folder = write_attempt(results, fake_result(row))   # result.json and its files, in the plan's tree
    fake_tree(results, [row, ...], attempts=2)          # many at once

A tree of them passes ``fluxbench check``.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from fakes import fake_result, fitting_weights

from bench import layout, record
from bench.matrix import Row


def write_attempt(
    results: Path, result: record.Result, *, images: bool = False, telemetry: bool = True, noise: float = 0.0
) -> Path:
    """Everything an attempt leaves, under its place in the tree. ``noise`` is the relative error of the
    quality latents, for tests of quality; the same row and noise give the same pictures."""
    row = Row.model_validate(result.row)
    source = result.weights.source if result.weights else fitting_weights(row)
    folder = layout.attempt_dir(results, row, source, result.attempt)
    folder.mkdir(parents=True)
    lines = [f"{row.label}: fake attempt {result.attempt}", *result.status.log_tail, str(result.status.code)]
    (folder / layout.LOG).write_text("\n".join(lines) + "\n")
    if result.cells:
        write_requests(folder, result)
        write_events(folder, result)
    if telemetry and result.cells:
        write_telemetry(folder, result)
    if images:
        write_images(folder, row, noise)
    record.save(result, folder)
    return folder


def write_requests(folder: Path, result: record.Result) -> None:
    """As the runner does: in the order in which requests finished, each cell's first round before."""
    first = result.first_request_seconds
    with (folder / layout.REQUESTS).open("w") as file:
        for cell in result.cells:
            if cell.queue is None or cell.service is None:
                continue
            queue = [0.0] * cell.users + cell.queue.raw
            service = cell.service.raw[: cell.users] + cell.service.raw
            if first is not None:
                service[0], first = first, None
            for index, (waited, served) in enumerate(zip(queue, service, strict=True)):
                counted = index - cell.users
                line = {
                    "cell": str(cell.shape),
                    "index": index,
                    "user": index % cell.users,
                    "counted": counted >= 0,
                    "queue_seconds": round(waited, 6),
                    "service_seconds": round(served, 6),
                    "stages": {
                        name: round(stage.raw[max(counted, 0)], 6) for name, stage in cell.stages.items()
                    },
                }
                file.write(json.dumps(line) + "\n")


def write_events(folder: Path, result: record.Result) -> None:
    now = datetime.fromisoformat(result.started_at).timestamp()
    with (folder / layout.EVENTS).open("w") as file:
        for phase in result.phases:
            for event, after in (("begin", 0.0), ("end", phase.seconds)):
                file.write(json.dumps({"t": now + after, "phase": phase.name, "event": event}) + "\n")
            now += phase.seconds


def write_telemetry(folder: Path, result: record.Result, samples: int = 50) -> None:
    """As many samples in each cell's window, from which its figures follow, and a line a second between."""
    from bench.runner.sampler import COLUMNS

    uuids = [gpu.uuid for gpu in result.environment.gpus] if result.environment else []
    begin = t = datetime.fromisoformat(result.started_at).timestamp()
    energy_j = 0.0
    cells = {f"cell {cell.shape}": cell for cell in result.cells if cell.latency}
    with gzip.open(folder / layout.TELEMETRY, "wt", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for phase in result.phases:
            cell = cells.get(phase.name)
            count = samples if cell else int(phase.seconds)
            power_w = (
                (cell.power.energy_per_image_j or 0) * (cell.throughput_images_per_s or 0) if cell else 90
            )
            for index in range(count):
                now = round(begin + phase.seconds * (index + 0.5) / count, 3)
                energy_j, t = energy_j + power_w * (now - t), now
                values = sample_of(cell, index, count) if cell else {"rss_bytes": 6_500_000_000}
                for uuid in uuids or [""]:
                    own = {"energy_j": energy_j / len(uuids)} if uuid else {}
                    if uuid and cell and cell.power.average_w is not None:
                        own["power_w"] = cell.power.average_w / len(uuids)
                    writer.writerow({"t": f"{now:.3f}", "gpu": uuid, **values, **own})
            begin += phase.seconds


def sample_of(cell: record.Cell, index: int, count: int) -> dict[str, float | None]:
    """Of ``count``: the first has the peak, and the others what makes the average."""
    from bench.config import TELEMETRY

    memory, use, power = cell.memory, cell.utilisation, cell.power

    def spread(average: float | None, peak: float | None) -> float | None:
        if average is None or peak is None:
            return None
        return peak if index == 0 else (count * average - peak) / (count - 1)

    def scaled(value: float | None) -> float | None:
        return None if value is None else value * 1e9

    capped = index < round((power.power_cap_share or 0) * count)
    slowed = index < round((power.slowdown_share or 0) * count)
    reasons = (TELEMETRY.power_cap_bit if capped else 0) | (TELEMETRY.slowdown_bits if slowed else 0)
    return {
        "gpu_busy_percent": spread(use.gpu_busy_avg_percent, use.gpu_busy_peak_percent),
        "memory_used_bytes": scaled(spread(memory.used_avg_gb, memory.used_peak_gb)),
        "sm_clock_mhz": use.sm_clock_avg_mhz,
        "memory_clock_mhz": use.memory_clock_avg_mhz,
        "temperature_c": use.temperature_peak_c,
        "clock_event_reasons": None if power.power_cap_share is None else reasons,
        "cpu_percent": use.cpu_avg_percent,
        "rss_bytes": scaled(memory.process_rss_peak_gb),
    }


def write_images(
    folder: Path, row: Row, noise: float = 0.0, prompts: Sequence[str] = ("p0", "p1", "p2")
) -> None:
    """A textured picture and its latents per quality prompt, moved ``noise`` away from the reference's."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    target = folder / layout.IMAGES
    target.mkdir()
    (target / layout.PROMPTS).write_text(json.dumps({prompt: f"waves, {prompt}" for prompt in prompts}))
    size = min(row.size, 128)
    for number, prompt in enumerate(prompts):
        rng = np.random.default_rng([number, zlib.crc32(f"{row.task}{row.control}".encode())])
        away = np.random.default_rng([number, zlib.crc32(repr(row.stack).encode())])
        latents = rng.standard_normal((1, 64, 64)).astype(np.float32)
        moved = latents + noise * away.standard_normal(latents.shape).astype(np.float32)
        save_file({"latents": torch.from_numpy(moved)}, target / f"{prompt}.latents.safetensors")
        y, x = np.mgrid[0:size, 0:size] / size
        waves = np.stack([np.sin(6 * x + number + c) * np.cos(4 * y - c) for c in range(3)], axis=-1)
        texture = 30 * rng.standard_normal(waves.shape)
        pixels = 127 + 50 * waves + texture + 60 * noise * away.standard_normal(waves.shape)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(target / f"{prompt}.png")


def fake_tree(
    results: Path, rows: Iterable[Row], *, attempts: int = 1, images: bool = False, **result: Any
) -> list[Path]:
    """``attempts`` at each row, oldest first; what is not a fake row's own is passed to ``fake_result``."""
    folders = []
    for number, row in enumerate(rows):
        for attempt in range(attempts):
            each = {"seed": attempt * 1000 + number, "minutes": 10 * (attempt * 100 + number), **result}
            folders.append(write_attempt(results, fake_result(row, **each), images=images))
    return folders
