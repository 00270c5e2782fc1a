"""What stands beside the Basic Performance Matrix: memory and power, warm-up, gains by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.config import BUDGETS
from bench.kernel_kinds import HINTS
from bench.quality import Closeness, Quality, tiers
from bench.record import Result
from bench.report import names
from bench.report.gains import Gains, Layer, RefusedLayer
from bench.report.gpu_time import GpuTime, gpu_time
from bench.report.groups import Section, UseCase
from bench.report.matrix_table import (
    GPU_HOURS,
    SHAPE,
    STACK,
    certainty,
    gain_entry,
    gpu_hours,
    memory_entry,
    p50_entry,
    quantile_entry,
    scope,
    shape_entries,
    stack_entry,
)
from bench.report.pool import Measurement, PooledCell
from bench.report.table import Column, Entry, Line, Table, figure, percentage, words
from bench.report.text import MISSING, number, ratio

MEDIAN_HINT = "median of the prompts (of an even number the lower of the middle two), and the worst prompt"


def memory(section: Section, case: UseCase) -> Table:
    columns = (
        STACK,
        *SHAPE,
        Column("Images/s", hint="Images delivered over the steady window"),
        GPU_HOURS,
        Column("Batch efficiency", hint="images × t(1 image) ÷ t(these images) at one user; 1 means no gain"),
        Column("Memory avg (GB)", hint="Device memory in use, averaged over the steady window"),
        Column("Memory peak (GB)"),
        Column("Memory avg (%)", hint="Of the device"),
        Column("Memory peak (%)", hint="Of the device"),
        Column("Torch allocated peak (GB)"),
        Column("GPU busy avg (%)", hint="Share of time in which any kernel ran"),
        Column("GPU busy peak (%)"),
        Column("Power avg (W)"),
        Column("Energy per image (J)", hint="Difference of the energy counter over the window"),
    )
    lines = tuple(_memory_line(each, cell) for each in case.measurements for cell in each.cells.values())
    return Table(f"Memory, throughput and power: {case.title}", scope(section), columns, lines)


def _memory_line(measurement: Measurement, cell: PooledCell) -> Line:
    device, busy = cell.memory, cell.utilisation
    entries = (
        stack_entry(measurement, cell),
        *shape_entries(cell.shape),
        figure(cell.throughput_images_per_s),
        figure(gpu_hours(measurement, cell)),
        figure(cell.batch_efficiency),
        figure(device.used_avg_gb),
        memory_entry(cell),
        percentage(device.used_avg_percent),
        percentage(device.used_peak_percent),
        figure(device.torch_allocated_peak_gb),
        percentage(busy.gpu_busy_avg_percent),
        percentage(busy.gpu_busy_peak_percent),
        figure(cell.power.average_w),
        figure(cell.power.energy_per_image_j),
    )
    return Line(entries, shape=str(cell.shape))


def life(section: Section, case: UseCase) -> Table:
    """Warm-up, first and steady requests, never pooled; and where the wall time of the attempt went."""
    columns = (
        STACK,
        Column("Load (s)"),
        Column("Warm-up time (s)", hint="All warm-up requests of the first cell; includes compiling"),
        Column(
            "Compile (s)",
            hint="Warm: every graph came from the compile cache. Cold: not every one did; an earlier row may"
            " have left some",
        ),
        Column("First inference (s)", hint="First request after ready: its shape is already warm"),
        Column("Subsequent inference, p50 (s)", hint="Steady requests, one user, one image"),
        Column("Attempt (s)", hint="Wall time of the latest attempt, cold or warm"),
        Column("Measuring (s)"),
        Column("Bookkeeping (s)", hint="Neither warm-up nor measuring: start, load, verify, saving"),
    )
    lines = tuple(_life_line(each, result) for each in case.measurements for result in each.warmed_up)
    return Table(f"Warm-up, first and steady: {case.title}", scope(section), columns, lines)


def _life_line(measurement: Measurement, result: Result) -> Line:
    cell = measurement.cell()
    load = next((phase.seconds for phase in result.phases if phase.name == "load"), None)
    warmup, cost = result.warmup, result.cost
    waited = BUDGETS[result.budget].settle
    settled = "" if warmup is None or warmup.settled else "never settled" if waited else "two requests only"
    batch = _first_batch(result)
    compiled = (warmup and warmup.compile_cache) or ""
    entries = (
        stack_entry(measurement, cell),
        figure(load),
        figure(
            sum(warmup.seconds) if warmup else None,
            note="; ".join(filter(None, (batch if warmup else "", settled))),
        ),
        figure(warmup.compile_seconds if warmup else None, note=compiled),
        figure(result.first_request_seconds, note=batch if result.first_request_seconds else ""),
        quantile_entry(cell.latency.p50, cell.latency) if cell else Entry(MISSING),
        figure(cost.wall_seconds if cost else None),
        figure(cost.measuring_seconds if cost else None),
        figure(cost.bookkeeping_seconds if cost else None),
    )
    return Line(entries)


def _first_batch(result: Result) -> str:
    """``4 images``, where the attempt began with a cell of so many a request; else empty. Cells stand in the
    order in which they ran, and one that failed before it was warm left the warm-up to the next."""
    began = next((cell for cell in result.cells if cell.warmup_seconds), next(iter(result.cells), None))
    return f"{began.images} images" if began and began.images > 1 else ""


def stages(section: Section, case: UseCase) -> Table:
    """Where a request's time goes: medians of waiting, service and each stage."""
    columns = (
        STACK,
        *SHAPE,
        Column("Queue p50 (s)", hint="Waiting for the requests of other users"),
        Column("Service p50 (s)"),
        Column("Text p50 (s)", hint="Text encoders"),
        Column("Denoise p50 (s)", hint="All steps"),
        Column("Step p50 (s)", hint="One denoising step"),
        Column("Decode p50 (s)", hint="VAE decode to an image in host memory"),
    )
    lines = tuple(
        Line(
            (
                stack_entry(each, cell),
                *shape_entries(cell.shape),
                *(
                    figure(cell.medians.get(name) if cell.latency.p50.supported else None)
                    for name in ("queue", "service", "text", "denoise", "step", "decode")
                ),
            ),
            shape=str(cell.shape),
        )
        for each in case.measurements
        for cell in each.cells.values()
    )
    return Table(f"Stages of a request: {case.title}", scope(section), columns, lines)


def kernels(section: Section, case: UseCase) -> Table:
    """Where the GPU's time goes within one request: seconds of kernels by kind, and what is left of the
    unprofiled service time."""
    columns = (
        STACK,
        Column("Service p50 (s)", hint="Unprofiled, one user, one image"),
        *(Column(f"{kind.capitalize()} (s)", hint=hint) for kind, hint in HINTS.items()),
        Column("GPU idle (s)", hint="Service time in which no kernel ran: launches that came too late"),
        Column("Launches", hint="GPU kernels and copies in one request"),
    )
    lines = tuple(
        _kernels_line(each, spent) for each in case.measurements if (spent := gpu_time(each)) and each.cell()
    )
    return Table(f"Where the GPU's time goes: {case.title}", scope(section), columns, lines)


def _kernels_line(measurement: Measurement, spent: GpuTime) -> Line:
    entries = (
        stack_entry(measurement, measurement.cell()),
        figure(spent.service_seconds),
        *(figure(spent.seconds_by_kind.get(kind)) for kind in HINTS),
        figure(spent.idle_seconds),
        Entry(str(spent.launches), spent.launches),
    )
    return Line(entries)


def closeness(section: Section, case: UseCase) -> Table:
    """Pictures against the reference's: medians over the quality prompts and the worst prompt, and the noise
    floor."""
    columns = (
        STACK,
        Column("Tier", numeric=False, hint="The best that more than half of the prompts reach"),
        Column("Latent relative error", hint=f"Euclidean, against the reference's latents; {MEDIAN_HINT}"),
        Column("PSNR (dB)", hint=MEDIAN_HINT),
        Column("SSIM", hint=MEDIAN_HINT),
        Column("Prompts"),
        Column("p50 (s)", hint="One user, one image"),
    )
    measured = [(each, each.quality) for each in case.measurements if each.quality]
    lines = [
        _closeness_line(stack_entry(each, each.cell()), each, quality, _tier(quality))
        for each, quality in measured
    ]
    floors = {floor.against.row: floor for _, quality in measured for floor in quality.noise_floor}
    for floor in floors.values():
        name = Entry(f"noise floor: {floor.against.label}", note="the reference but for an exact change")
        lines.append(_closeness_line(name, None, floor, words(MISSING)))
    return Table(f"Quality: {case.title}", scope(section), columns, tuple(lines))


def _tier(quality: Quality) -> Entry:
    """Prompts that differ in it are counted."""
    counts = Counter(tiers(quality.prompts, quality.noise_floor))
    split = ", ".join(f"{name} on {count}" for name, count in counts.items()) if len(counts) > 1 else ""
    return words(quality.tier, note=split)


def _worst(prompts: Sequence[Closeness]) -> tuple[str, str, str]:
    """Of latent error, PSNR and SSIM; of no prompts nothing."""
    if not prompts:
        return "", "", ""
    psnr = min((each.psnr_db for each in prompts if each.psnr_db is not None), default=None)
    error, ssim = max(each.latent_relative_error for each in prompts), min(each.ssim for each in prompts)
    return (
        f"worst {number(error)}",
        "" if psnr is None else f"worst {number(psnr)}",
        f"worst {ssim:.4f}",
    )


def _closeness_line(name: Entry, measurement: Measurement | None, of: Closeness, tier: Entry) -> Line:
    cell = measurement.cell() if measurement else None
    prompts = of.prompts if isinstance(of, Quality) else []
    error, psnr, ssim = _worst(prompts)
    entries = (
        name,
        tier,
        figure(of.latent_relative_error, note=error),
        figure(of.psnr_db, "identical" if of.psnr_db is None else None, note=psnr),
        figure(of.ssim, f"{of.ssim:.4f}", note=ssim),
        Entry(str(len(prompts)) if prompts else MISSING, len(prompts) or None),
        quantile_entry(cell.latency.p50, cell.latency) if cell else Entry(MISSING),
    )
    return Line(entries)


def layers(section: Section, case: UseCase, gains: Gains) -> Table:
    """Gain of each change over the row it was made to, one user and one image."""
    columns = (
        STACK,
        Column("Change from parent", numeric=False),
        Column("Parent p50 (s)"),
        Column("p50 (s)"),
        Column("Gain", hint="Parent's median over this one; verdict and 95 % CI"),
        Column("Interaction", hint="Gain here over the gain of the same change alone on the reference"),
    )
    lines = (
        *(_layer_line(layer) for layer in gains.layers),
        *(_refused_line(layer) for layer in gains.refused_layers),
    )
    return Table(f"Gains by layer: {case.title}", scope(section), columns, lines)


def _refused_line(layer: RefusedLayer) -> Line:
    return Line((*_layer_medians(layer), gain_entry(None, refusal=layer.refusal), Entry(MISSING)))


def _layer_medians(layer: Layer | RefusedLayer) -> tuple[Entry, ...]:
    return (
        stack_entry(layer.measurement),
        words(layer.change, note=f"parent: {names.stack(layer.parent.row)}"),
        p50_entry(layer.parent.cell()),
        p50_entry(layer.measurement.cell()),
    )


def _layer_line(layer: Layer) -> Line:
    return Line((*_layer_medians(layer), gain_entry(layer.gain), _interaction_entry(layer)))


def _interaction_entry(layer: Layer) -> Entry:
    """With its interval: four medians with errors of their own are seldom just the product of their parts."""
    crossed = layer.interaction
    if crossed is None:
        return Entry(MISSING)
    shown = "; not the product of its parts" if layer.interacts else ""
    return Entry(ratio(crossed.value), crossed.value, note=f"{certainty(crossed)}{shown}")
