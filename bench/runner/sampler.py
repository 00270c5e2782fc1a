"""The telemetry process: one line per GPU ten times a second, until stdin closes.

It runs by file path with nothing but the standard library, psutil and NVML, so that it starts fast and
shares neither interpreter lock nor memory with what it watches. It ends when its parent closes the pipe on
stdin or dies, whatever killed the parent, and only then compresses: a kill at any moment leaves a plain
``telemetry.csv`` whose lines are whole but for the last.

A value that the device does not offer is an empty field, never 0.
"""

from __future__ import annotations

import argparse
import gzip
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

GPU_COLUMNS = (
    "gpu_busy_percent",
    "memory_used_bytes",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "power_w",
    "energy_j",
    "temperature_c",
    "clock_event_reasons",
)
COLUMNS = ("t", "gpu", *GPU_COLUMNS, "cpu_percent", "rss_bytes")
"""``t`` is unix seconds, ``gpu`` a UUID (empty without one), ``cpu_percent`` of all processors of the
machine, ``rss_bytes`` the resident memory of the watched processes together."""

Value = float | int | str | None


def read_gpu(nvml: Any, handle: Any) -> dict[str, Value]:
    """Device-level values only: per-process queries fail in containers and disturb latency."""

    def read(query: Callable[..., Any], *args: Any) -> Any:
        try:
            return query(handle, *args)
        except nvml.NVMLError:
            return None

    busy = read(nvml.nvmlDeviceGetUtilizationRates)
    memory = read(nvml.nvmlDeviceGetMemoryInfo, nvml.nvmlMemory_v2)
    milliwatts = read(nvml.nvmlDeviceGetPowerUsage)
    millijoules = read(nvml.nvmlDeviceGetTotalEnergyConsumption)
    return {
        "gpu_busy_percent": None if busy is None else busy.gpu,
        "memory_used_bytes": None if memory is None else memory.used,
        "sm_clock_mhz": read(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": read(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        "power_w": None if milliwatts is None else milliwatts / 1000,
        "energy_j": None if millijoules is None else millijoules / 1000,
        "temperature_c": read(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        "clock_event_reasons": read(nvml.nvmlDeviceGetCurrentClocksEventReasons),
    }


def sources(nvml: Any | None, uuids: list[str]) -> list[tuple[str, Callable[[], dict[str, Value]]]]:
    """(uuid, reader) per GPU; without a GPU one line that holds only what the CPU offers."""
    if nvml is None or not uuids:
        return [("", dict)]
    nvml.nvmlInit()
    return [(uuid, partial(read_gpu, nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))) for uuid in uuids]


def watch(pids: list[int]) -> Iterator[dict[str, Value]]:
    """CPU share of the machine since the sample before (so the first has none) and the processes' resident
    memory; ends with the first of them that does."""
    import psutil

    processes = [psutil.Process(pid) for pid in pids]
    psutil.cpu_percent()  # the first call has no interval behind it and returns 0.0
    share = None
    while True:
        try:
            rss = sum(process.memory_info().rss for process in processes)
            yield {"cpu_percent": share, "rss_bytes": rss}
        except psutil.NoSuchProcess:
            return
        share = psutil.cpu_percent()


def line(values: dict[str, Value]) -> str:
    return ",".join("" if values.get(name) is None else str(values[name]) for name in COLUMNS) + "\n"


def ticks(seconds: float, parent: int) -> Iterator[float]:
    """Unix time at each tick, until stdin closes or the parent is another process. A tick that comes late
    is not made up for."""
    due = time.monotonic()
    while os.getppid() == parent:
        yield time.time()
        due = max(due + seconds, time.monotonic())
        if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            return


def compress(plain: Path) -> None:
    temporary = plain.with_name(f".{plain.name}.gz.tmp")
    with plain.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target)
    temporary.replace(plain.with_name(plain.name + ".gz"))
    plain.unlink()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sample GPUs and CPU until stdin closes.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--pid", type=int, action="append", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--hertz", type=float, required=True)
    parser.add_argument("--gpu", action="append", default=[])
    options = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; the parent decides
    nvml = None
    if options.gpu:
        import pynvml as nvml  # type: ignore[no-redef]
    gpus = sources(nvml, options.gpu)
    with options.path.open("w", encoding="utf-8", buffering=1) as file:
        file.write(",".join(COLUMNS) + "\n")
        for now, shared in zip(ticks(1 / options.hertz, options.parent), watch(options.pid), strict=False):
            for uuid, read in gpus:
                file.write(line({"t": f"{now:.3f}", "gpu": uuid, **read(), **shared}))
    compress(options.path)


if __name__ == "__main__":
    main()
