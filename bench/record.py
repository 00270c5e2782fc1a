"""result.json: what one attempt at one row leaves behind.

Two properties are deliberate:

* every attempt ends in exactly one ``result.json``, whatever killed it: the runner rewrites the file
  after each cell, and the host writes the verdict if the runner could not;
* a missing value is ``None``, never 0. Zero is a measurement.

Files are written beside their final name and renamed, so a reader never sees half of one.
Unknown fields are rejected when reading: a result edited by hand fails loudly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench import layout
from bench.config import Shape
from bench.flux import Source

SCHEMA_VERSION: Literal[1] = 1
CLOSED = "closed"
"""The load of the plan's cells: every user sends its next request when the last one returned."""


class Code(StrEnum):
    """How an attempt, or one cell of it, ended. Exactly one applies."""

    OK = "ok"  # measured, verified, stable
    UNSUPPORTED = "unsupported"  # a rule says no; nothing was run
    UNAVAILABLE = "unavailable"  # this machine lacks a package, a file or a GPU feature
    NOT_APPLIED = "not_applied"  # ran, but an option left no evidence
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    INVALID_OUTPUT = "invalid_output"  # NaN, constant image, wrong size, outside a tolerance
    UNSTABLE = "unstable"  # drift, throttling, or a warm-up that never settled; values kept, marked
    SUSPECT = "suspect"  # the neighbouring references disagree
    PRUNED = "pruned"  # stopped early: it could no longer win
    INTERRUPTED = "interrupted"  # Ctrl-C, SIGTERM, preemption; finished cells kept
    INFRA = "infra"  # Docker, driver, disk or network failed before measuring


HAS_NUMBERS = frozenset({Code.OK, Code.UNSTABLE, Code.SUSPECT})
"""Statuses whose latencies may be shown (marked, unless OK)."""

RETRIES: dict[Code, int | None] = {
    Code.UNAVAILABLE: None,
    Code.INTERRUPTED: None,
    Code.SUSPECT: None,
    Code.UNSTABLE: 1,
    Code.INFRA: 3,
}
"""How often a status is tried again (None: whenever asked); a code not named here never is."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Status(Strict):
    code: Code
    reason: str = ""
    """What happened and what to do next. Empty only when the code is ``ok``."""
    log_tail: list[str] = Field(default_factory=list)
    exit_code: int | None = None


class Quantile(Strict):
    """An order statistic of the raw values, never interpolated."""

    value: float
    supported: bool
    """Whether n is large enough to print the value (METHOD.md section 3)."""
    ci95: tuple[float, float] | None = None


class Distribution(Strict):
    """Seconds, one value a request, in the order in which the requests finished."""

    raw: list[float]
    p25: Quantile
    p50: Quantile
    p90: Quantile
    p99: Quantile
    mean: float
    min: float
    max: float


class Memory(Strict):
    """GB are 10^9 bytes. Device figures are NVML's, minus nothing; ``idle_gb`` stands beside them."""

    total_gb: float | None = None
    idle_gb: float | None = None
    used_avg_gb: float | None = None
    used_peak_gb: float | None = None
    used_avg_percent: float | None = None
    used_peak_percent: float | None = None
    together_avg_gb: float | None = None
    """Of several GPUs the sum; the figures above are means over them, and the peak is the fullest one's."""
    together_peak_gb: float | None = None
    torch_allocated_peak_gb: float | None = None
    torch_reserved_peak_gb: float | None = None
    process_rss_peak_gb: float | None = None
    """Resident memory of the runner, or of all its ranks together; the memory figure of a CPU row."""


class Utilisation(Strict):
    gpu_busy_avg_percent: float | None = None
    """Share of time in which any kernel ran, not share of the GPU's arithmetic."""
    gpu_busy_peak_percent: float | None = None
    cpu_avg_percent: float | None = None
    sm_clock_avg_mhz: float | None = None
    memory_clock_avg_mhz: float | None = None
    temperature_peak_c: float | None = None


class Power(Strict):
    average_w: float | None = None
    limit_w: float | None = None
    energy_per_image_j: float | None = None
    """From the energy counter's difference over the window, never from averaged power."""
    power_cap_share: float | None = None
    """Share of samples in which the power cap held the clocks down."""
    slowdown_share: float | None = None
    """Share of samples in which heat or hardware did; above 0 the cell is ``unstable``."""


class GpuFigures(Strict):
    """One of several GPUs of a row, over the steady window; what they are together stands in ``Memory``,
    ``Utilisation`` and ``Power``."""

    uuid: str
    memory_used_avg_gb: float | None = None
    memory_used_peak_gb: float | None = None
    torch_allocated_peak_gb: float | None = None
    gpu_busy_avg_percent: float | None = None
    gpu_busy_peak_percent: float | None = None
    sm_clock_avg_mhz: float | None = None
    memory_clock_avg_mhz: float | None = None
    power_average_w: float | None = None
    temperature_peak_c: float | None = None


class Anomaly(Strict):
    kind: str
    detail: str


class Cell(Strict):
    """users x images, measured after its own warm-up at the exact batch."""

    users: int = Field(ge=1)
    images: int = Field(ge=1)
    status: Status
    n: int = 0
    window_seconds: float | None = None
    """Wall time of the steady window: from when each server has been done once to the last request's end."""
    latency: Distribution | None = None
    """From *scheduled* to decoded image in host memory: queueing included."""
    queue: Distribution | None = None
    service: Distribution | None = None
    stages: dict[str, Distribution] = Field(default_factory=dict)
    """``text``, ``denoise``, ``decode`` and ``step`` (one denoising step; one mean per request)."""
    throughput_images_per_s: float | None = None
    batch_efficiency: float | None = None
    """images * t(1 image) / t(this many images), one user; None where the 1x1 cell is missing."""
    memory: Memory = Field(default_factory=Memory)
    utilisation: Utilisation = Field(default_factory=Utilisation)
    power: Power = Field(default_factory=Power)
    gpus: list[GpuFigures] = Field(default_factory=list)
    """Each of several, in the order of their ranks; empty for one."""
    warmup_seconds: list[float] = Field(default_factory=list)
    """The warm-up at this batch, on the cell that came first with it; empty on those that found it warm."""
    counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    """axis -> what its option counted in the n requests together, e.g. steps that a cache skipped; absent for
    options that count nothing per request."""
    load: str = CLOSED
    """``closed``, or ``poisson:RATE`` in requests per second and user."""
    anomalies: list[Anomaly] = Field(default_factory=list)

    @property
    def shape(self) -> Shape:
        return Shape(self.users, self.images)


class Phase(Strict):
    """One arrow of a row's life (METHOD.md section 2), timed on its own."""

    name: str
    seconds: float


class Warmup(Strict):
    seconds: list[float]
    settled: bool
    compile_seconds: float | None = None
    compile_cache: Literal["cold", "warm"] | None = None
    """None where nothing is compiled."""


GpuVariant = Literal["SXM", "PCIe", "NVL"]


class Gpu(Strict):
    name: str
    variant: GpuVariant | None = None
    """Which build of the model; None where its name does not tell, and in results older than the field."""
    uuid: str
    memory_total_gb: float
    power_limit_w: float | None = None
    ecc: bool | None = None
    mig: bool | None = None


class Link(Strict):
    """Between two GPUs of the row, measured before weights were loaded."""

    ranks: tuple[int, int]
    kind: str | None
    """As ``nvidia-smi topo -m`` calls it: ``NV18``, ``PIX``, ``SYS``."""
    gb_per_s: float
    """10^9 bytes a second, each way while both ways are busy."""
    least_gb_per_s: float | None
    """Below this the row is ``infra``."""


class Environment(Strict):
    gpus: list[Gpu] = Field(default_factory=list)
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    nccl: str | None = None
    topology: str | None = None
    links: list[Link] = Field(default_factory=list)
    """Of each pair of GPUs that share the row."""
    host_id: str
    """Stands for 'the same host': the GPU UUIDs, or a hash of the CPU model and machine id."""
    cpu_model: str
    cpu_count: int
    memory_total_gb: float
    load_average: tuple[float, float, float]
    python: str
    packages: dict[str, str]
    image_digest: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    """Environment variables that change speed (NCCL_*, CUDA_*, TORCH*, OMP_*), never secrets."""


class Weights(Strict):
    source: Source
    id: str
    """Repository and revision, or a hash of configuration, seed and dtype."""
    transformer_parameters: int
    transformer_bytes: int


class KernelTime(Strict):
    """All launches of one GPU kernel in one request."""

    name: str
    kind: str
    calls: int
    seconds: float


class Profile(Strict):
    """GPU kernels of one request at 1x1, after the cells (``bench.runner.profile``)."""

    request_seconds: float
    """Under the profiler, so longer than any measured one."""
    busy_seconds: float
    """In which at least one kernel ran."""
    launches: int
    seconds_by_kind: dict[str, float]
    """``bench.kernel_kinds``; kernels that ran side by side count each."""
    top: list[KernelTime]
    """The kernels that took longest, in falling order."""


class Communication(Strict):
    """Between ranks that share a request; those of replicas send nothing."""

    calls_per_step: int
    """Collectives and messages of one rank in one denoising step; of PipeFusion in one of those in which
    patches travel."""
    sent_bytes_per_step: int
    """By one rank, counted from what they were given (``bench.runner.traffic``)."""
    kernel_seconds_by_rank: list[float] = Field(default_factory=list)
    """Of one profiled request; empty on CPU, for a probe, and where 1x1 was not measured. NCCL's kernels run
    from when their rank is ready until all are, so that of the rank that waited least is the fairest."""


class Agreement(Strict):
    """Of what the ranks paint together with what one of them paints alone (``bench.runner.agreement``): the
    norm of the difference over one's own, of the rank where it is largest."""

    steps: int
    latent_relative_error: float
    image_relative_error: float | None = None
    """Of the decoded pictures, where ranks share the VAE."""
    tolerance: float
    """Of either; over it the row is ``invalid_output``."""

    def outside(self) -> dict[str, float]:
        """Latents and pictures that are over the tolerance, with their error."""
        errors = {"latents": self.latent_relative_error, "pictures": self.image_relative_error}
        return {of: error for of, error in errors.items() if error is not None and error > self.tolerance}


class Stability(Strict):
    drift_percent: float | None = None
    """Median service time of the last third of the 1x1 window against its first third."""
    throttled_share: float | None = None
    """Of the worst cell."""


class Cost(Strict):
    """Where the attempt's wall time went."""

    wall_seconds: float
    measuring_seconds: float
    warmup_seconds: float
    bookkeeping_seconds: float
    """Everything that is neither warm-up nor measuring: start, load, verify, saving."""
    gpu_hours: float | None = None


class Ingredients(Strict):
    """What the fingerprint hashes beside the row's identity (``identity.fingerprint_of``)."""

    weights: str
    """Source: ``hub``, ``synthetic`` or ``tiny``."""
    data: str
    """Hash of the weights' files where they are part of this repository, else empty."""
    code: str
    """Hash of the runner's and the axes' code."""
    versions: str
    """Hash of the image's lock, or the versions of the packages that can move a result."""


class Result(Strict):
    schema_version: Literal[1] = SCHEMA_VERSION
    status: Status
    row: dict[str, Any]
    """The row as it stood in matrix.csv, by column."""
    attempt: str
    budget: Literal["probe", "quick", "standard", "full"]
    started_at: str
    """ISO 8601, UTC."""
    weights: Weights | None = None
    fingerprint: str
    ingredients: Ingredients | None = None
    """None where the runner did not get as far as its first line."""
    manifest_sha256: str | None = None
    """Hash of prompts, seeds and input images."""
    effective: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """axis -> the evidence that its option ran."""
    environment: Environment | None = None
    phases: list[Phase] = Field(default_factory=list)
    warmup: Warmup | None = None
    first_request_seconds: float | None = None
    """The first request after ready: the cold shape is already warm."""
    cells: list[Cell] = Field(default_factory=list)
    profile: Profile | None = None
    """None on CPU, for a probe, and where 1x1 was not measured."""
    communication: Communication | None = None
    agreement: Agreement | None = None
    """None where no ranks share a request, and where one GPU alone ran out of memory."""
    anomalies: list[Anomaly] = Field(default_factory=list)
    """What was odd about the machine rather than about one cell."""
    stability: Stability | None = None
    cost: Cost | None = None

    @property
    def load(self) -> str:
        """An attempt has one; of its cells only those with requests say so."""
        return next((cell.load for cell in self.cells if cell.load != CLOSED), CLOSED)

    def cell(self, users: int = 1, images: int = 1) -> Cell | None:
        """None where it was not reached."""
        return next((each for each in self.cells if each.shape == (users, images)), None)


SERIOUSNESS = (
    Code.INTERRUPTED,
    Code.INFRA,
    Code.CRASHED,
    Code.INVALID_OUTPUT,
    Code.NOT_APPLIED,
    Code.UNAVAILABLE,
    Code.UNSUPPORTED,
    Code.TIMEOUT,
    Code.OOM,
    Code.PRUNED,
    Code.SUSPECT,
    Code.UNSTABLE,
    Code.OK,
)
"""An attempt is called by the first of these that one of its cells has."""


def status_of_cells(cells: Sequence[Cell]) -> Status:
    """The attempt's status. Raises ``ValueError`` without cells: then something else decided."""
    code = min((cell.status.code for cell in cells), key=SERIOUSNESS.index)
    if code is Code.OK:
        return Status(code=code)
    of_code = [cell for cell in cells if cell.status.code is code]
    reason = "; ".join(f"{cell.shape}: {cell.status.reason}" for cell in of_code)
    return Status(code=code, reason=reason, log_tail=of_code[0].status.log_tail)


def write_atomically(path: Path, text: str) -> None:
    """Write and rename; a reader sees the old file or the new one, whatever kills this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = layout.temporary(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(result: Result, attempt_dir: Path) -> Path:
    path = attempt_dir / layout.RESULT
    write_atomically(path, json.dumps(result.model_dump(mode="json"), indent=1) + "\n")
    return path


def load(path: Path) -> Result:
    """Raises ``pydantic.ValidationError`` naming each wrong field."""
    return Result.model_validate_json(path.read_bytes())
