"""Every budget and threshold of METHOD.md, once. Shares are fractions (0.01 = 1 %), times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

BudgetName = Literal["probe", "quick", "standard", "full"]
ExecutorName = Literal["local", "venv", "docker"]


@dataclass(frozen=True)
class Budget:
    """How much one cell may measure (METHOD.md section 2)."""

    name: BudgetName
    n: int
    """Steady requests a cell, over all its processes; rounded up to a multiple of the users."""
    cap: int
    """A cell goes on past ``n`` while its median is uncertain, but never past this."""
    processes: int = 1
    """Fresh processes that the n requests are spread over, at the least."""
    settle: bool = True
    """False: the minimum of warm-up requests is all there is, settled or not."""
    profile: bool = True
    """Whether one more request is paid for that shows where the GPU's time goes."""

    @property
    def n_per_process(self) -> int:
        return -(-self.n // self.processes)


PROBE = Budget("probe", n=3, cap=3, settle=False, profile=False)
QUICK = Budget("quick", n=13, cap=26)
STANDARD = Budget("standard", n=36, cap=72, processes=2)
FULL = Budget("full", n=368, cap=368, processes=3)
"""For finalists: between-run spread stands next to within-run spread, and takes three runs."""
BUDGETS: dict[str, Budget] = {budget.name: budget for budget in (PROBE, QUICK, STANDARD, FULL)}

MEDIAN_CI_HALF_WIDTH = 0.01
"""A cell may stop once its median's 95 % CI is within this share of the median, on either side."""


class Shape(NamedTuple):
    """What a cell asks for at once."""

    users: int
    images: int
    """Per request, as one batch."""

    def __str__(self) -> str:
        """``4x1``"""
        return f"{self.users}x{self.images}"


SINGLE = Shape(1, 1)
CELLS = (SINGLE, Shape(1, 4), Shape(4, 1), Shape(4, 4))
"""Those of the plan's Basic Performance Matrix."""


def cells_of(gpus: int) -> tuple[Shape, ...]:
    """The usual cells of a row on so many GPUs: on several also as many users, and twice as many
    (METHOD.md section 1), for only then has every replica work."""
    crowds = (Shape(gpus, 1), Shape(2 * gpus, 1)) if gpus > 1 else ()
    return CELLS + tuple(crowd for crowd in crowds if crowd not in CELLS)


@dataclass(frozen=True)
class WarmupRule:
    """When a shape counts as warm: no compile event in the last few requests and the last ones agree."""

    minimum: int = 2
    maximum: int = 8
    """One more than this and the cell is ``unstable``."""
    quiet: int = 2
    """Requests at the end without a compile event."""
    agreeing: int = 3
    """Requests at the end whose spread ``(max - min) / min`` is within ``spread``."""
    spread: float = 0.03


WARMUP = WarmupRule()
CPU_WARMUP = WarmupRule(spread=0.1)
"""Without a GPU: there other processes move a request of half a second by several per cent, warm or not, and
every other row would end ``unstable`` and run twice."""

QUANTILE_SUPPORT = {25: 13, 50: 6, 90: 36, 99: 368}
"""percentile -> smallest n for which a table prints it (METHOD.md section 3)."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class ComparisonRule:
    """METHOD.md section 4."""

    smallest_effect: float = 0.015
    """A ratio whose CI lies within 1 +- this is SAME."""
    processes_a_side: int = 2
    """With fewer, how far the host's references may be apart is added to the CI."""
    reference_drift: float = 0.02
    """Neighbouring references further apart than this make the rows between them ``suspect``."""
    reference_every: int = 8
    """The reference is run again after this many rows on one GPU."""


COMPARISON = ComparisonRule()


@dataclass(frozen=True)
class TelemetryRule:
    """METHOD.md section 5."""

    hertz: float = 10.0
    cpu_hertz: float = 5.0
    """Without a GPU the sampler shares processors with what it watches, and has less to see."""
    slowdown_bits: int = 0x8 | 0x20 | 0x40 | 0x80
    """NVML clock event reasons: hardware slowdown, thermal slowdowns, power brake."""
    power_cap_bit: int = 0x4
    overhead_share: float = 0.005
    """Most that sampling and load generation may cost: of the median on a GPU, of CPU time on CPU."""
    cool_down_seconds: float = 30.0
    """Pause before the one repetition of a cell whose window saw a slowdown bit."""
    idle_wait_seconds: float = 20.0
    """How long a row waits for the GPU to be free before it refuses."""
    idle_memory_gb: float = 1.0
    """Device memory in use above which a GPU is not free."""
    curve_points: int = 200
    """Most points that a drawn telemetry curve keeps."""


TELEMETRY = TelemetryRule()


@dataclass(frozen=True)
class AnomalyRule:
    """What a cell remarks on. Values past these are kept and marked, never dropped."""

    drift_share: float = 0.03
    """Median of the window's last third against its first third."""
    outlier_ratio: float = 1.5
    """A request this many times the median."""
    load_per_cpu: float = 1.0
    """Load average per CPU before the row started: somebody else is at work."""
    power_cap_share: float = 0.05
    temperature_c: float = 85.0


ANOMALIES = AnomalyRule()


@dataclass(frozen=True)
class RanksRule:
    """When ranks that share a row count as lost, and when their pictures are not one."""

    collective_seconds: float = 1200.0
    """What gloo and NCCL wait for a peer inside one collective: longer than ``silence_seconds`` and what is
    done after it, so that a rank that hangs is asked where while the others still wait for it."""
    apart_seconds: float = 300.0
    """How long one rank may still be at work on what another has done: weights read, graphs compiled."""
    silence_seconds: float = 900.0
    """How long all of them may be: a cold load, or TorchAO's 330 s of compiling. Seldom more than the host's
    own limit for the row (``estimate.timeout_seconds``), which could not ask the ranks where they hang."""
    stopped_looks: int = 10
    """A rank that is stopped (SIGSTOP) in so many looks in a row, one a second, will not go on."""
    settle_seconds: float = 3.0
    """After the first failure: what the others say until then helps to tell cause from consequence."""
    end_seconds: float = 10.0
    """For ranks to end by themselves once they are told to."""
    picture_levels: float = 2.0
    """Of 255: most that the means of two ranks' pictures, on a grid, may differ. Kernels that were tuned on
    each rank by itself round differently; ranks that decided or drew differently are tens apart."""


RANKS = RanksRule()


@dataclass(frozen=True)
class AgreementRule:
    """How ranks are held against one GPU (``bench.runner.agreement``)."""

    steps: int = 4
    """Of a method that is exact; an approximate one is held against a whole request."""


AGREEMENT = AgreementRule()


@dataclass(frozen=True)
class LinkRule:
    """When a link between two GPUs is far below its kind."""

    bytes: int = 256_000_000
    """One exchange: 0.6 ms over NVLink, 5 ms over PCIe."""
    cpu_bytes: int = 1_000_000
    nvlink_gb_per_s: float = 25.0
    """Each way, of one NVLink of the third or fourth generation: 12 make an A100's 600 GB/s both ways, 18 an
    H100's and H200's 900 (NVIDIA's data sheets of the three)."""
    least_share: float = 0.25
    """Of that, which NCCL's point-to-point does not reach in full; an eighth is what PCIe would give."""
    least_pcie_gb_per_s: float = 2.0
    """PCIe 4.0 x16 is 32 GB/s each way (PCI-SIG), less across sockets and far less through busy host memory:
    only a link that is broken or not one at all is below this."""


LINKS = LinkRule()


@dataclass(frozen=True)
class OutputRule:
    """When an image is ``invalid_output``: not finite, of the wrong size, or flat."""

    min_standard_deviation: float = 1.0
    """Of the uint8 pixels, in the channel that varies most. Random full-size weights give about 43, one
    plain colour 0."""


OUTPUT = OutputRule()


@dataclass(frozen=True)
class QualityTier:
    """A row belongs to the first tier of which it holds every bound, as the median over the quality
    prompts against the reference of its use case."""

    name: str
    max_latent_relative_error: float
    """|latents - reference| / |reference|, Euclidean."""
    min_psnr_db: float
    min_ssim: float


QUALITY_TIERS = (
    QualityTier("lossless", max_latent_relative_error=0.02, min_psnr_db=35.0, min_ssim=0.98),
    QualityTier("near", max_latent_relative_error=0.15, min_psnr_db=22.0, min_ssim=0.85),
    QualityTier("lossy", max_latent_relative_error=float("inf"), min_psnr_db=0.0, min_ssim=-1.0),
)
NOISE_FLOOR_MARGIN = 1.1
"""A row whose errors (of latents, of pixels, and 1 - SSIM) are all within this factor of the noise floor of
its use case is lossless too: compile alone moves PSNR to 19-40 dB, and no reader can tell such a row from
the reference run again."""
