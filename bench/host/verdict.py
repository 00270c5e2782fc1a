"""What became of an attempt: the runner's own word where it had the last one, else the host's verdict.

Deciding is one table of signs and three pure functions; ``kernel_oom_kills`` is the one look at the machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from typing import Literal

from bench.contract import OK_EXIT, STATUS_EXIT
from bench.host.local import Exit
from bench.record import Code, Result, Status
from bench.runner.diary import RUNNING

LOG_TAIL_LINES = 20

STILL_SECONDS = 0.1
"""A log that has not grown for so long is read as it is."""
MOST_WAIT_SECONDS = 0.5
"""After that one that grows on and on is read too."""
LOOK_SECONDS = 0.01

DISK_FULL_BYTES = 1_000_000
"""With less than this free where the results lie, a dead runner had no room to say why."""

ASKED_TO_STOP = frozenset({SIGHUP, SIGINT, SIGTERM})

DRIVER_FAILED = re.compile(
    r"driver/library version mismatch|driver version is insufficient|NVIDIA driver on your system is too old"
    r"|Found no NVIDIA driver|system not yet initialized|fallen off the bus|uncorrectable ECC"
    r"|no CUDA-capable device|CUDA-capable device\(s\) is/are busy",
    re.IGNORECASE,
)
"""As CUDA and torch (c10/cuda/CUDAFunctions.cpp) word it. "System not yet initialized" is 802: GPUs
behind NVSwitch whose fabric manager does not run, or has not linked them yet."""
DRIVER_ADVICE = (
    "the GPU or its driver failed; look at `nvidia-smi`, `dmesg` and, where GPUs are joined by NVSwitch,"
    " `systemctl status nvidia-fabricmanager`, then run the same command again"
)

SIGNS: tuple[tuple[Code, re.Pattern[str], str], ...] = (
    (
        Code.INFRA,
        re.compile(r"No space left on device|Errno 28\b|Disk quota exceeded"),
        "the disk is full; free space and run the same command again",
    ),
    (Code.INFRA, DRIVER_FAILED, DRIVER_ADVICE),
    (
        Code.OOM,
        re.compile(
            r"CUDA out of memory|CUDA error: out of memory|torch\.OutOfMemoryError|_STATUS_ALLOC_FAILED"
        ),
        "the GPU's memory ran out",
    ),
    (
        Code.OOM,
        re.compile(r"\bMemoryError\b|std::bad_alloc|can't allocate memory|Cannot allocate memory"),
        "the machine's memory ran out",
    ),
)
"""(status, what the log says, what to tell the reader). The last line that any sign matches decides: what
came earlier in the log was survived."""


@dataclass(frozen=True)
class Ending:
    """What the host saw of an attempt that is over."""

    exit: Exit
    stopped_for: Literal["timeout", "interrupt"] | None = None
    """Why the host stopped it, if it did."""
    after_seconds: float = 0.0
    log_tail: tuple[str, ...] = ()
    kernel_oom_kills: int = 0
    """How often the kernel's out-of-memory killer struck on this machine meanwhile."""
    free_disk_bytes: int | None = None


def verdict(ending: Ending, written: Result | None) -> Status | None:
    """The status that the host must write; None when the runner's own stands.

    ``written`` is what result.json holds now, None when it cannot be read. The runner's word stands only
    when its exit code agrees with it: any other end means that the file is what the last flush left.

    Where nobody saw the end (``exit.infra``), a last word in the file is the runner's own.
    """
    if written is not None and written.status != RUNNING:
        if ending.exit.infra:
            return None
        if ending.exit.code == OK_EXIT and written.status.code is Code.OK:
            return None
        own_word = ending.exit.code == STATUS_EXIT and written.status.code is not Code.OK
        # A runner that was asked to stop says `interrupted`; that it hung is for the host to say.
        if own_word and not (ending.stopped_for == "timeout" and written.status.code is Code.INTERRUPTED):
            return None
    code, reason = _classify(ending)
    return Status(code=code, reason=reason, log_tail=list(ending.log_tail), exit_code=ending.exit.code)


def _classify(ending: Ending) -> tuple[Code, str]:
    if ending.exit.infra:
        return Code.INFRA, ending.exit.infra
    if ending.stopped_for == "timeout":
        return Code.TIMEOUT, f"not done after {ending.after_seconds:.0f} s; raise --timeout, or see the log"
    if ending.stopped_for == "interrupt":
        return Code.INTERRUPTED, "stopped on request; the same command goes on from here"
    if ending.exit.signal in ASKED_TO_STOP:
        return Code.INTERRUPTED, f"{ending.exit} by somebody else; the same command goes on from here"
    for line in reversed(ending.log_tail):
        for code, sign, meaning in SIGNS:
            if sign.search(line):
                return code, f"{meaning} ({ending.exit}: {line.strip()[:300]})"
    if ending.exit.out_of_memory or (ending.exit.signal == SIGKILL and ending.kernel_oom_kills):
        return Code.OOM, "the kernel's out-of-memory killer ended the runner; its machine memory ran out"
    if ending.free_disk_bytes is not None and ending.free_disk_bytes < DISK_FULL_BYTES:
        return Code.INFRA, f"the disk is full ({ending.exit}); free space and run the same command again"
    if ending.exit.code in (OK_EXIT, STATUS_EXIT):
        return Code.CRASHED, f"the runner ended with {ending.exit}, but its result does not say so"
    how = "ended with" if ending.exit.signal is None else "was"
    below = "; the last lines of its log stand below" if ending.log_tail else ", before it wrote to its log"
    return Code.CRASHED, f"the runner {how} {ending.exit}{below}"


def log_tail(path: Path, lines: int = LOG_TAIL_LINES, window_bytes: int = 65536) -> tuple[str, ...]:
    """The last lines of a log that may be huge, missing, or still written to: a stack comes piece by piece,
    so what was written a moment ago is waited for."""
    try:
        _wait_until_still(path)
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - window_bytes))
            text = log.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(line[:1000] for line in text.splitlines() if line.strip())[-lines:]


def _wait_until_still(path: Path) -> None:
    until = time.monotonic() + MOST_WAIT_SECONDS
    while abs(time.time() - path.stat().st_mtime) < STILL_SECONDS and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)


def kernel_oom_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How often the kernel has killed for memory in our control group, ever; v2, v1, else machine-wide.

    Inside a container /proc names the group as the host sees it while the mount shows it as the root, so
    both places are tried.
    """
    for path in (*_memory_files(proc, cgroups), proc / "vmstat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if match := re.search(r"^oom_kill (\d+)$", text, re.MULTILINE):
            return int(match[1])
    return 0


def _memory_files(proc: Path, cgroups: Path) -> Sequence[Path]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return ()
    files: list[Path] = []
    for line in lines:
        controllers, _, group = line.partition(":")[2].partition(":")
        if "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.oom_control"
        elif not controllers:
            root, name = cgroups, "memory.events"
        else:
            continue
        files += [root / group.lstrip("/") / name, root / name]
    return files
