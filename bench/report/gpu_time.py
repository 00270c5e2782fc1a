"""Where the GPU's time goes within one request: one definition for the chart, the table of kernels, and the
share of communication."""

from __future__ import annotations

from dataclasses import dataclass

from bench.record import Result
from bench.report.pool import Measurement


@dataclass(frozen=True)
class GpuTime:
    """Of one user and one image, by the newest profile; rank 0's where several GPUs serve."""

    seconds_by_kind: dict[str, float]
    """Of kernels; those side by side count each. What communicates is of the rank that waited least."""
    idle_seconds: float | None
    """Of ``service_seconds``, the time in which no kernel ran; None too where the profiled request's kernels
    ran for longer than the unprofiled request took: then it is not known."""
    service_seconds: float | None
    """Of the median request, unprofiled; None where too few were measured."""
    launches: int

    @property
    def overlap_seconds(self) -> float:
        """By how much the parts exceed the request: kernels ran beside each other."""
        if self.service_seconds is None:
            return 0.0
        parts = sum(self.seconds_by_kind.values()) + (self.idle_seconds or 0.0)
        return max(0.0, parts - self.service_seconds)


def gpu_time(measurement: Measurement) -> GpuTime | None:
    """None where no request was profiled."""
    profiled = (each.result for each in reversed(measurement.attempts) if each.result.profile)
    result = next(profiled, None)
    if result is None or result.profile is None:
        return None
    cell, least = measurement.cell(), communication_seconds(result)
    service = cell.medians["service"] if cell and cell.latency.p50.supported else None
    busy = result.profile.busy_seconds
    return GpuTime(
        seconds_by_kind=result.profile.seconds_by_kind | ({} if least is None else {"communication": least}),
        idle_seconds=None if service is None or busy > service else service - busy,
        service_seconds=service,
        launches=result.profile.launches,
    )


def communication_seconds(result: Result) -> float | None:
    """Of one profiled request, of the rank that waited least (``Communication.kernel_seconds_by_rank``); None
    where ranks share no request, or none was profiled."""
    by_rank = result.communication.kernel_seconds_by_rank if result.communication else []
    return min(by_rank, default=None)
