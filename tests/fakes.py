"""Realistic results without running anything: for tests of what reads results. Never for a table.

Numbers are drawn from a seeded generator around FACTS.md's sizes and agree with each other as a real
attempt's do (users queue behind one server, windows contain their requests, throughput follows from
both), so a fake tree passes ``fluxbench check``.

    row = fake_row(hardware="h100x1", compilation="inductor", row="42", parent="40")
    result = fake_result(row, median_seconds=3.9)

``fake_attempts.py`` puts them on disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from bench import record, stats
from bench.identity import fingerprint_of
from bench.matrix import REFERENCE, Row
from bench.runner.window import stability

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NEVER_BEGUN = {record.Code.UNSUPPORTED, record.Code.UNAVAILABLE, record.Code.INFRA}
"""A row that ended so was not loaded."""
STEPS_SHARE = 0.97
"""Denoising's share of a request; the rest is text encoding and decoding."""

GPU_NAMES = {
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "a100": "NVIDIA A100-SXM4-80GB",
}
GPU_MEMORY_GB = {"h100": 85.5, "h200": 150.8, "a100": 85.9}

SAME_ROWS: tuple[dict[str, str], ...] = ({}, {"compilation": "inductor"}, {"quantization": "quanto-int4"})
SAME_ROWS_IDS = ("plain", "inductor", "quanto-int4")
"""Changes of a tiny row that every executor runs for real: two of them compile at run time."""


def fake_row(**changes: Any) -> Row:
    """The reference row on one H100, but for ``changes``."""
    row: dict[str, Any] = {
        "row": "1",
        "tier": "core",
        "hardware": "h100x1",
        "model": "tiny" if changes.get("hardware") == "cpu" else "flux.1-dev",
        "task": "txt2img",
        "control": "none",
        "size": 1024,
        "steps": 28,
        **REFERENCE,
        "parent": None,
        "why": "a fake row of the tests",
        **changes,
    }
    if row["model"] == "tiny" and "size" not in changes:
        row["size"] = 128
    return Row(**row)


def fake_latencies(
    median_seconds: float, users: int, n: int, rng: np.random.Generator, spread: float = 0.004
) -> tuple[list[float], list[float], float]:
    """(latency, service, window): closed-loop users behind one server, the first round dropped. The last
    ``users - 1`` requests of that round finish inside the window."""
    tails = np.where(rng.random(n + users - 1) < 0.03, rng.uniform(1.02, 1.08, n + users - 1), 1.0)
    services = median_seconds * rng.lognormal(0.0, spread, n + users - 1) * tails
    latencies = np.convolve(services, np.ones(users), "valid")
    return latencies.tolist(), services[users - 1 :].tolist(), float(services.sum())


def fake_cell(
    users: int,
    images: int,
    *,
    n: int = 36,
    median_seconds: float = 5.25,
    code: record.Code = record.Code.OK,
    reason: str = "",
    seed: int = 0,
    gpu: bool = True,
) -> record.Cell:
    """``median_seconds`` is the service time of one image; four take 3.95 times as long."""
    status = record.Status(code=code, reason=reason or ("" if code is record.Code.OK else f"fake {code}"))
    if code not in record.HAS_NUMBERS:
        return record.Cell(users=users, images=images, status=status)
    rng = np.random.default_rng([seed, users, images])
    one = median_seconds * (images * 0.9875 if images > 1 else 1.0)
    latency, service, window = fake_latencies(one, users, n, rng)
    queue = [max(0.0, total - own) for total, own in zip(latency, service, strict=True)]
    shares = {"text": 0.01, "denoise": STEPS_SHARE, "decode": 0.02, "step": STEPS_SHARE / 28}
    return record.Cell(
        users=users,
        images=images,
        status=status,
        n=n,
        window_seconds=window,
        latency=stats.summarise(latency, users),
        queue=stats.summarise(queue, users),
        service=stats.summarise(service),
        stages={name: stats.summarise([s * share for s in service]) for name, share in shares.items()},
        throughput_images_per_s=(n + users - 1) * images / window,
        memory=fake_memory(images, gpu),
        utilisation=record.Utilisation(
            gpu_busy_avg_percent=99.1 if gpu else None,
            gpu_busy_peak_percent=100.0 if gpu else None,
            cpu_avg_percent=12.5,
            sm_clock_avg_mhz=1755.0 if gpu else None,
            memory_clock_avg_mhz=2619.0 if gpu else None,
            temperature_peak_c=61.0 if gpu else None,
        ),
        power=record.Power(
            average_w=655.0,
            limit_w=700.0,
            energy_per_image_j=655.0 * window / (n + users - 1) / images,
            power_cap_share=0.02,
            slowdown_share=0.0,
        )
        if gpu
        else record.Power(),
        warmup_seconds=[one * 1.4, one * 1.01, one, one],
    )


def fake_memory(images: int, gpu: bool) -> record.Memory:
    if not gpu:
        return record.Memory(total_gb=16.8, process_rss_peak_gb=1.1 + 0.1 * images)
    peak = 36.0 + 1.5 * images
    return record.Memory(
        total_gb=85.5,
        idle_gb=0.6,
        used_avg_gb=peak - 1,
        used_peak_gb=peak,
        used_avg_percent=(peak - 1) / 0.855,
        used_peak_percent=peak / 0.855,
        torch_allocated_peak_gb=peak - 2,
        torch_reserved_peak_gb=peak - 1,
        process_rss_peak_gb=6.5,
    )


def fake_environment(row: Row, host: int = 0) -> record.Environment:
    """``host`` tells machines of one kind apart."""
    uuids = [f"GPU-{host:08x}-0000-0000-0000-{index:012x}" for index in range(row.gpu_count)]
    gpus = [
        record.Gpu(
            name=GPU_NAMES.get(row.gpu or "", (row.gpu or "").upper()),
            uuid=uuid,
            memory_total_gb=GPU_MEMORY_GB.get(row.gpu or "", 80.0),
            power_limit_w=700.0,
            ecc=True,
            mig=False,
        )
        for uuid in uuids
    ]
    return record.Environment(
        gpus=gpus,
        driver="580.65.06" if gpus else None,
        cuda="13.0" if gpus else None,
        cudnn="9.15.1" if gpus else None,
        host_id="+".join(uuids) or f"cpu-{host:016x}",
        cpu_model="Fake CPU @ 2.00GHz",
        cpu_count=16,
        memory_total_gb=137.4,
        load_average=(0.3, 0.2, 0.1),
        python="3.11.2",
        packages={"torch": "2.11.0", "diffusers": "0.42.1", "transformers": "5.17.0"},
        git_commit="0" * 40,
        git_dirty=False,
    )


def fake_weights(row: Row, source: str) -> record.Weights:
    parameters = 3_000_000 if source == "tiny" else 11_901_408_320
    size = 4 if row.precision in {"fp32", "tf32"} else 2
    return record.Weights(
        source=source,  # type: ignore[arg-type]
        id=f"{source}@fake",
        transformer_parameters=parameters,
        transformer_bytes=parameters * size,
    )


def fake_result(
    row: Row | None = None,
    *,
    weights: str | None = None,
    cells: Sequence[record.Cell] | None = None,
    shapes: Iterable[tuple[int, int]] = ((1, 1), (1, 4), (4, 1), (4, 4)),
    n: int = 36,
    median_seconds: float = 5.25,
    code: record.Code | None = None,
    reason: str = "",
    budget: str = "standard",
    seed: int = 0,
    host: int = 0,
    minutes: float = 0,
    fingerprint: str | None = None,
    log_tail: Sequence[str] = (),
) -> record.Result:
    """One attempt. ``minutes`` after START it began; ``seed`` changes the values, ``host`` the machine.
    A ``fingerprint`` of one's own does not recompute, so ``ingredients`` are left out then.

    ``cells`` as given, or one of each of ``shapes``. With a ``code`` that has no numbers the attempt ends
    with that status and no cell; otherwise the status follows from the cells, the worst wins.
    """
    row = row or fake_row()
    weights = weights or fitting_weights(row)
    if cells is None and (code is None or code in record.HAS_NUMBERS):
        alike: Any = {"n": n, "median_seconds": median_seconds, "seed": seed, "gpu": row.gpu is not None}
        cells = [fake_cell(users, images, code=code or record.Code.OK, **alike) for users, images in shapes]
    cells = as_one_attempt(cells or [])
    status = fake_ending(cells, code, reason, log_tail)
    started = START + timedelta(minutes=minutes)
    made_of = record.Ingredients(weights=weights, data="", code="fake", versions="torch==2.11.0")
    return record.Result(
        status=status,
        row=row.model_dump(),
        attempt=f"{started:%Y%m%dT%H%M%SZ}-{(seed * 7919 + host) % 65536:04x}",
        budget=budget,  # type: ignore[arg-type]
        started_at=started.isoformat(),
        fingerprint=fingerprint or fingerprint_of(row, made_of),
        ingredients=None if fingerprint else made_of,
        manifest_sha256=f"{zlib.crc32(repr((row.task, row.control, row.size)).encode()):08x}" * 8,
        environment=fake_environment(row, host),
        cells=cells,
        cost=fake_cost(row, cells),
        **({} if status.code in NEVER_BEGUN else began(row, weights, cells)),
        **(measured(row, cells) if cells else {}),
    )


def fitting_weights(row: Row) -> str:
    return "tiny" if row.model == "tiny" else "synthetic"


def fake_ending(
    cells: Sequence[record.Cell], code: record.Code | None, reason: str, log_tail: Sequence[str]
) -> record.Status:
    """With ``code``, or as the worst cell; all but ``ok`` have a reason."""
    ended = code or worst(cells)
    if ended is not record.Code.OK:
        reason = reason or f"fake {ended}: see log.txt"
    exit_code = None if code is None else 1
    return record.Status(code=ended, reason=reason, log_tail=list(log_tail), exit_code=exit_code)


def began(row: Row, weights: str, cells: Sequence[record.Cell]) -> dict[str, Any]:
    """What only a row has that was loaded and applied."""
    return {
        "weights": fake_weights(row, weights),
        "effective": {axis: {"fake evidence of": option} for axis, option in row.stack.items()},
        "phases": fake_phases(cells),
    }


def measured(row: Row, cells: Sequence[record.Cell]) -> dict[str, Any]:
    """What only a row has that served requests."""
    services = [cell.service.raw[0] for cell in cells if cell.service]
    return {
        "warmup": fake_warmup(row, cells),
        "first_request_seconds": services[0] * 1.02 if services else None,
        "stability": stability(cells),
    }


def fake_cost(row: Row, cells: Sequence[record.Cell]) -> record.Cost:
    measuring = sum(cell.window_seconds or 0.0 for cell in cells)
    warming = sum(sum(cell.warmup_seconds) for cell in cells)
    wall = measuring + warming + 40
    return record.Cost(
        wall_seconds=wall,
        measuring_seconds=measuring,
        warmup_seconds=warming,
        bookkeeping_seconds=40.0,
        gpu_hours=None if row.gpu is None else wall * row.gpu_count / 3600,
    )


def as_one_attempt(cells: Sequence[record.Cell]) -> list[record.Cell]:
    """Batch efficiency against the 1x1 cell; a warm-up only on the cell that came first with its batch."""
    single = next((c.latency for c in cells if c.shape == (1, 1) and c.latency), None)
    warm: set[int] = set()
    together = []
    for cell in cells:
        update: dict[str, Any] = {"warmup_seconds": []} if cell.images in warm else {}
        warm.add(cell.images)
        if single and cell.latency and cell.users == 1 and cell.images > 1:
            update["batch_efficiency"] = cell.images * single.p50.value / cell.latency.p50.value
        together.append(cell.model_copy(update=update))
    return together


def worst(cells: Sequence[record.Cell]) -> record.Code:
    codes = [cell.status.code for cell in cells]
    return next((code for code in codes if code is not record.Code.OK), record.Code.OK)


def fake_phases(cells: Sequence[record.Cell]) -> list[record.Phase]:
    """The arrows of METHOD.md section 2, as ``bench/runner/row.py`` names and orders them."""
    phases = [("idle", 0.5), ("imports", 7.0), ("load", 12.0), ("quantise", 0.1), ("apply", 0.2)]
    warm: set[int] = set()
    for cell in cells:
        if cell.images not in warm:
            phases += [(f"warm-up x{cell.images}", sum(cell.warmup_seconds))]
            phases += [] if warm else [("verify", 3.0)]
            warm.add(cell.images)
        phases += [(f"cell {cell.shape}", cell.window_seconds or 1.0)]
    phases += [("quality", 4.0)] if cells else []
    return [record.Phase(name=name, seconds=seconds) for name, seconds in phases]


def fake_warmup(row: Row, cells: Sequence[record.Cell]) -> record.Warmup:
    compiled = row.compilation != "none"
    return record.Warmup(
        seconds=cells[0].warmup_seconds,
        settled=True,
        compile_seconds=22.0 if compiled else None,
        compile_cache="cold" if compiled else None,
    )
