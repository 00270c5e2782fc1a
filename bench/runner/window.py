"""From what one cell's window recorded to the cell of result.json. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bench import config, record, stats, steady
from bench.axes.option import Counts
from bench.record import Code, Status
from bench.runner import judge, telemetry
from bench.runner.load import Served
from bench.runner.telemetry import Device, Sample

Stages = dict[str, float]
"""stage -> seconds of one request"""


@dataclass(frozen=True)
class Facts:
    """What is kept of a request once its pictures are forgotten."""

    stages: Stages
    counts: dict[str, Counts] = field(default_factory=dict)
    """axis -> what its option counted"""

    def counting(self, axis: str, **more: int) -> Facts:
        return replace(self, counts={**self.counts, axis: {**self.counts.get(axis, {}), **more}})


@dataclass(frozen=True)
class Window:
    """All that was recorded while one cell ran: ``served`` begins with the round that no figure uses."""

    users: int
    images: int
    load: str
    served: Sequence[Served[Facts]]
    """In the order in which word of them came: of two that were done together, on two servers, the later may
    be first."""
    devices: Sequence[Device]
    recompiles: int
    torch_peak_bytes: Sequence[tuple[int, int]]
    """(allocated, reserved) at most, by GPU; empty without one."""
    samples: Sequence[Sample] = ()
    """Telemetry between ``begin`` and ``end``."""

    def seeing(self, samples: Sequence[Sample]) -> Window:
        return replace(self, samples=samples)

    @property
    def steady(self) -> Sequence[Served[Facts]]:
        return self.served[self.users :]

    @property
    def begin(self) -> float:
        """When as many requests are done as servers were at work at first. Servers begin together, and so are
        done almost together: a window that began with the first of them would end with the last, and count a
        round too many."""
        finished = sorted(request.finished for request in self.served)
        servers = sum(request.begun < finished[0] for request in self.served)
        return finished[servers - 1]

    @property
    def end(self) -> float:
        return max(request.finished for request in self.served)


def cell_of(window: Window, settled: bool) -> record.Cell:
    """``settled``: whether the warm-up at this batch did, where the budget asks for that."""
    requests, seconds = window.steady, window.end - window.begin
    latencies = [request.latency_seconds for request in requests]
    services = [request.service_seconds for request in requests]
    throughput = steady.throughput(
        [request.finished for request in window.served], window.begin, window.images
    )
    power = telemetry.power(window.samples, window.devices, images_per_s=throughput)
    counts = steady.summed(request.output.counts for request in requests)
    return record.Cell(
        users=window.users,
        images=window.images,
        status=_status(services, power.slowdown_share, settled),
        n=len(requests),
        window_seconds=seconds,
        latency=stats.summarise(latencies, window.users),
        queue=stats.summarise([request.queue_seconds for request in requests], window.users),
        service=stats.summarise(services),
        stages={name: stats.summarise(values) for name, values in _by_stage(requests).items()},
        throughput_images_per_s=throughput,
        memory=_memory(window),
        utilisation=telemetry.utilisation(window.samples),
        power=power,
        gpus=_by_gpu(window),
        counts=counts,
        anomalies=judge.anomalies(latencies, window.samples, window.recompiles, counts),
        load=window.load,
    )


def add_batch_efficiency(cells: Sequence[record.Cell]) -> None:
    """Fills it in for one user, where the attempt also measured one image."""
    one_user = {cell.images: cell for cell in cells if cell.users == 1 and cell.latency is not None}
    one = one_user.get(1)
    for images, cell in one_user.items():
        if one is not None and one.latency is not None and cell.latency is not None and images > 1:
            cell.batch_efficiency = steady.batch_efficiency(one.latency.raw, cell.latency.raw, images)


def stability(cells: Sequence[record.Cell]) -> record.Stability | None:
    """Of the attempt; None where no cell has numbers."""
    measured = [cell for cell in cells if cell.service is not None]
    if not measured:
        return None
    alone = next((cell for cell in measured if (cell.users, cell.images) == (1, 1)), None)
    drift = None if alone is None or alone.service is None else steady.drift(alone.service.raw)
    shares = [cell.power.slowdown_share for cell in measured if cell.power.slowdown_share is not None]
    return record.Stability(
        drift_percent=None if drift is None else 100 * drift, throttled_share=max(shares, default=None)
    )


def _status(services: Sequence[float], slowdown_share: float | None, settled: bool) -> Status:
    reasons = []
    if not settled:
        reasons.append(f"the warm-up had not settled after {config.WARMUP.maximum} requests")
    drift = steady.drift(services)
    if drift is not None and abs(drift) > config.ANOMALIES.drift_share and _thirds_apart(services):
        reasons.append(f"service time drifted by {drift:+.1%} from the window's first third to its last")
    if slowdown_share:
        reasons.append(f"heat or hardware slowed the GPU in {slowdown_share:.1%} of samples, twice")
    if not reasons:
        return Status(code=Code.OK)
    return Status(code=Code.UNSTABLE, reason=f"{'; '.join(reasons)}; run it again on a quiet, cool machine")


def _thirds_apart(values: Sequence[float]) -> bool:
    """Whether chance is no likely reason for the drift: the medians' intervals of the first and the last
    third do not overlap, nor do the values themselves where a third is too small for an interval."""
    third = len(values) // 3
    (low, high), (other_low, other_high) = (
        stats.quantile(part, 50).ci95 or (min(part), max(part)) for part in (values[:third], values[-third:])
    )
    return high < other_low or other_high < low


def _by_gpu(window: Window) -> list[record.GpuFigures]:
    if len(window.torch_peak_bytes) < 2:
        return []
    return telemetry.by_gpu(window.samples, window.devices, window.torch_peak_bytes)


def _memory(window: Window) -> record.Memory:
    memory = telemetry.memory(window.samples, window.devices)
    if window.torch_peak_bytes:
        memory.torch_allocated_peak_gb = max(each for each, _ in window.torch_peak_bytes) / telemetry.GB
        memory.torch_reserved_peak_gb = max(each for _, each in window.torch_peak_bytes) / telemetry.GB
    return memory


def _by_stage(requests: Sequence[Served[Facts]]) -> dict[str, list[float]]:
    """Stages that every request has: a mean over some of them would be one over others' prompts."""
    stages = [request.output.stages for request in requests]
    names = [name for name in stages[0] if all(name in each for each in stages)]
    return {name: [each[name] for each in stages] for name in names}
