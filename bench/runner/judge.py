"""What the runner decides: what does this exception mean, and what is odd about this cell?

Functions without effects; what follows from numbers alone (warm, enough, drift) stands in ``bench.steady``.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Mapping, Sequence

from bench import layout, record, rules, stats
from bench.axes.option import Counts, NotApplied, Unavailable
from bench.config import ANOMALIES, TELEMETRY
from bench.host.gpus import GpuError
from bench.host.verdict import DRIVER_ADVICE, DRIVER_FAILED
from bench.matrix import Row
from bench.record import Anomaly, Code, Status
from bench.runner import telemetry
from bench.runner.agreement import Disagrees
from bench.runner.environment import NotIdle
from bench.runner.links import SlowLink, kinds, p2p_disabled
from bench.runner.outputs import InvalidOutput
from bench.runner.telemetry import Sample

LOG_TAIL_LINES = 12
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory")


class RankLost(Exception):
    """A rank of several died, hung or diverged: nothing can be asked of any of them any more."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.reason)
        self.status = status


class RequestFailed(Exception):
    """A replica could not serve one request; it and the others go on."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.reason)
        self.status = status


class Interrupted(BaseException):
    """Somebody asked the runner to stop. Not an ``Exception``: no cell may catch it."""


REASON_CHARACTERS = 800
"""Of what was raised: CUDA's account of its memory has five hundred, and ends with what helps."""
SPEAKING = (
    NotApplied, Unavailable, NotIdle, GpuError, SlowLink, InvalidOutput, Interrupted, RankLost, RequestFailed,
)  # fmt: skip
"""Our own exceptions: their message says it all, the class name would add nothing."""


def words_of(error: BaseException) -> str | None:
    """What to log of one of our own exceptions, instead of where it was raised: of a rank's failure what the
    rank said last, too. None for others."""
    if isinstance(error, (RankLost, RequestFailed)):
        return "\n".join([str(error), *error.status.log_tail])
    return str(error) if isinstance(error, SPEAKING) else None


def _shortened(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]} …"


def status_of(error: BaseException) -> Status:
    """The status an exception stands for. The traceback's last lines go with those that are nobody's plan."""
    if isinstance(error, (RankLost, RequestFailed)):
        return error.status
    code, advice = _meaning(error)
    text = _shortened(" ".join(str(error).split()))
    name = "" if isinstance(error, SPEAKING) else type(error).__name__
    reason = ": ".join(part for part in (name, text) if part)
    return Status(
        code=code,
        reason=f"{reason}; {advice}" if advice else reason,
        log_tail=_tail(error) if code in (Code.CRASHED, Code.OOM, Code.INFRA) else [],
    )


def ends_row(error: Exception) -> bool:
    """Whether what went wrong in one cell would go wrong in every other."""
    ours = isinstance(error, (NotApplied, Unavailable, SlowLink, RankLost, Disagrees))
    return ours or _is_disk(error) or _is_driver(error)


def _meaning(error: BaseException) -> tuple[Code, str]:
    if isinstance(error, NotApplied):
        return Code.NOT_APPLIED, ""
    if isinstance(error, Unavailable):
        return Code.UNAVAILABLE, ""
    if isinstance(error, (NotIdle, GpuError, SlowLink)):
        return Code.INFRA, ""
    if isinstance(error, InvalidOutput):
        return Code.INVALID_OUTPUT, ""
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return Code.INTERRUPTED, "finished cells are kept; the same command goes on from here"
    if is_memory(error):
        return Code.OOM, ""
    if _is_disk(error):
        return Code.INFRA, "make room or mend the disk and run the row again"
    if _is_driver(error):
        return Code.INFRA, DRIVER_ADVICE
    return Code.CRASHED, f"{_own_log()} holds the whole traceback"


def _own_log() -> str:
    """Of this process: torchrun's variable tells a rank which one it is."""
    rank = os.environ.get("LOCAL_RANK")
    return layout.LOG if rank is None else layout.rank_log(int(rank))


def is_memory(error: BaseException) -> bool:
    """``torch.OutOfMemoryError`` is a RuntimeError like the CPU allocator's and cuBLAS's, and only the text
    tells them from a real bug; so torch need not be imported to ask."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        any(message in text for message in MEMORY_MESSAGES) or "_status_alloc_failed" in text
    )


def _is_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def _is_driver(error: BaseException) -> bool:
    """Torch raises what CUDA says as a plain RuntimeError, which the row itself lives to tell."""
    return isinstance(error, RuntimeError) and bool(DRIVER_FAILED.search(str(error)))


def _tail(error: BaseException) -> list[str]:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return [line[:300] for line in lines if line.strip()][-LOG_TAIL_LINES:]


def anomalies(
    latencies: Sequence[float], samples: Sequence[Sample], recompiles: int, counts: Mapping[str, Counts]
) -> list[Anomaly]:
    """What a reader should know before quoting the cell. Nothing here removes a value.

    ``counts``: what the stack's options counted in the window, by axis."""
    found = []
    median = stats.median(latencies)
    slow = [value for value in latencies if value > ANOMALIES.outlier_ratio * median]
    if slow:
        detail = f"{len(slow)} of {len(latencies)} requests took over {ANOMALIES.outlier_ratio:g}x the median"
        found.append(Anomaly(kind="outliers", detail=f"{detail}, the slowest {max(slow):.3f} s"))
    if recompiles:
        found.append(Anomaly(kind="recompiled", detail=f"{recompiles} graphs compiled inside the window"))
    cache = counts.get("cache")
    if cache and not cache["steps_skipped"]:
        detail = f"the cache skipped none of {cache['steps_computed']} steps: the row shows what asking costs"
        found.append(Anomaly(kind="nothing_skipped", detail=detail))
    if not samples:
        found.append(Anomaly(kind="no_telemetry", detail="no sample lies in the window; see log.txt"))
    capped = telemetry.share_with(samples, TELEMETRY.power_cap_bit)
    if capped is not None and capped > ANOMALIES.power_cap_share:
        found.append(Anomaly(kind="power_cap", detail=f"held the clocks down in {capped:.0%} of samples"))
    peak = telemetry.utilisation(samples).temperature_peak_c
    if peak is not None and peak > ANOMALIES.temperature_c:
        found.append(Anomaly(kind="hot", detail=f"the GPU reached {peak:.0f} °C"))
    return found


def machine_anomalies(environment: record.Environment) -> list[Anomaly]:
    """What was odd about the machine before the row began."""
    found = []
    load = environment.load_average[0]
    if load > ANOMALIES.load_per_cpu * environment.cpu_count:
        detail = f"load average {load:.1f} on {environment.cpu_count} processors before the row began"
        found.append(Anomaly(kind="busy_machine", detail=detail))
    return found + (_of_several_gpus(environment) if len(environment.gpus) > 1 else [])


def _of_several_gpus(environment: record.Environment) -> list[Anomaly]:
    found = []
    if disabled := p2p_disabled(environment.variables):
        detail = f"{disabled}: the GPUs talk through the host's memory; unset it and run the row again"
        found.append(Anomaly(kind="p2p_disabled", detail=detail))
    if not kinds(environment.topology):
        detail = "`nvidia-smi topo -m` told no kind of link, so none is held against its kind; run it by hand"
        found.append(Anomaly(kind="no_topology", detail=detail))
    return found


def flagged(row: Row) -> list[Anomaly]:
    """What ``bench.rules`` said of the row beforehand."""
    return [Anomaly(kind=flag.name, detail=flag.detail) for flag in rules.flags(row)]
