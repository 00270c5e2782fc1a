"""Starts the sampling process, cuts its samples into windows, and sums a window up.

A window is what lies between two phase markers (unix seconds). A figure that no sample in the window holds
is None, never 0.
"""

from __future__ import annotations

import csv
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType

import psutil

from bench import layout, record
from bench.config import TELEMETRY
from bench.runner import sampler

GB = 1e9
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Sample:
    """One line of telemetry.csv; the units stand in ``sampler.COLUMNS``."""

    t: float
    gpu: str
    values: dict[str, float]
    """column -> number; a column that the device did not offer is absent."""


def read(attempt_dir: Path) -> list[Sample]:
    """All samples of an attempt, compressed or not; [] where none were written. A kill may have cut the
    last line short: it is left out."""
    compressed, plain = attempt_dir / layout.TELEMETRY, attempt_dir / layout.GROWING_TELEMETRY
    if compressed.exists():
        with gzip.open(compressed, "rt", encoding="utf-8") as file:
            return list(parse(file))
    if plain.exists():
        with plain.open(encoding="utf-8") as file:
            return list(parse(file))
    return []


def parse(lines: Iterable[str], header: bool = True) -> Iterator[Sample]:
    whole = (line for line in lines if line.endswith("\n"))
    for fields in csv.DictReader(whole, None if header else list(sampler.COLUMNS)):
        t, gpu = float(fields.pop("t")), fields.pop("gpu")
        yield Sample(t, gpu, {name: float(text) for name, text in fields.items() if text})


class Telemetry:
    """The sampling process of one attempt, as a context manager.

    ``window`` may be asked while it runs: the process writes line by line, and each call reads on from
    where the last window began.
    """

    def __init__(self, attempt_dir: Path, gpu_uuids: Sequence[str], pids: Sequence[int]) -> None:
        """``pids``: the processes whose resident memory is summed."""
        self._path = attempt_dir / layout.GROWING_TELEMETRY
        gpus = chain.from_iterable(("--gpu", uuid) for uuid in gpu_uuids)
        hertz = TELEMETRY.hertz if gpu_uuids else TELEMETRY.cpu_hertz
        self._command = [sys.executable, "-P", sampler.__file__, str(self._path)]
        watched = chain.from_iterable(("--pid", str(pid)) for pid in pids)
        self._command += [*watched, "--parent", str(os.getpid()), "--hertz", str(hertz), *gpus]
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = 0

    def __enter__(self) -> Telemetry:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask the process to compress its file and end; what it wrote stays if it does not."""
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        self.resume()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()

    def pause(self) -> None:
        """Not one instruction more until ``resume``; how ``overhead`` compares with and without."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the sampling process has used so far; raises when it has died."""
        if self._process is None:
            raise RuntimeError("telemetry has not started")
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def window(self, begin: float, end: float) -> list[Sample]:
        """Samples of ``[begin, end]`` in unix seconds. Windows are asked for in order of time."""
        if not self._path.exists():
            return []
        samples = []
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._unread)
            if self._unread == 0:
                file.readline()
            while (line := file.readline()).endswith("\n"):
                (sample,) = parse([line], header=False)
                if sample.t > end:
                    break
                self._unread = file.tell()
                if sample.t >= begin:
                    samples.append(sample)
        return samples


@dataclass(frozen=True)
class Device:
    """What a window's figures are measured against."""

    uuid: str
    total_gb: float
    idle_gb: float | None
    """Device memory in use before the row began."""
    limit_w: float | None


def memory(samples: Sequence[Sample], devices: Sequence[Device]) -> record.Memory:
    """Averages over all GPUs of the row; a peak is that of the fullest one."""
    used = _values(samples, "memory_used_bytes")
    sums = _sums(samples, "memory_used_bytes", len(devices)) if len(devices) > 1 else []
    rss = _values(samples, "rss_bytes")
    total_gb = _mean([device.total_gb for device in devices])
    average_gb, peak_gb = _scaled(_mean(used), 1 / GB), _scaled(max(used, default=None), 1 / GB)
    percent = None if total_gb is None else 100 / total_gb
    return record.Memory(
        total_gb=total_gb,
        idle_gb=_mean([device.idle_gb for device in devices if device.idle_gb is not None]),
        used_avg_gb=average_gb,
        used_peak_gb=peak_gb,
        used_avg_percent=_scaled(average_gb, percent),
        used_peak_percent=_scaled(peak_gb, percent),
        together_avg_gb=_scaled(_mean(sums), 1 / GB),
        together_peak_gb=_scaled(max(sums, default=None), 1 / GB),
        process_rss_peak_gb=_scaled(max(rss, default=None), 1 / GB),
    )


def utilisation(samples: Sequence[Sample]) -> record.Utilisation:
    busy = _values(samples, "gpu_busy_percent")
    return record.Utilisation(
        gpu_busy_avg_percent=_mean(busy),
        gpu_busy_peak_percent=max(busy, default=None),
        cpu_avg_percent=_mean(_values(samples, "cpu_percent")),
        sm_clock_avg_mhz=_mean(_values(samples, "sm_clock_mhz")),
        memory_clock_avg_mhz=_mean(_values(samples, "memory_clock_mhz")),
        temperature_peak_c=max(_values(samples, "temperature_c"), default=None),
    )


def power(samples: Sequence[Sample], devices: Sequence[Device], images_per_s: float) -> record.Power:
    """Power and energy are sums over the row's GPUs."""
    watts = [_mean(_values(_of(samples, device.uuid), "power_w")) for device in devices]
    return record.Power(
        average_w=_total(watts),
        limit_w=_total([device.limit_w for device in devices]),
        energy_per_image_j=_scaled(energy_rate_w(samples), 1 / images_per_s),
        power_cap_share=share_with(samples, TELEMETRY.power_cap_bit),
        slowdown_share=share_with(samples, TELEMETRY.slowdown_bits),
    )


def by_gpu(
    samples: Sequence[Sample], devices: Sequence[Device], torch_peaks: Sequence[tuple[int, int]]
) -> list[record.GpuFigures]:
    """``torch_peaks``: (allocated, reserved) bytes of each, in the devices' order."""
    figures = []
    for device, (allocated, _) in zip(devices, torch_peaks, strict=True):
        own = _of(samples, device.uuid)
        used, busy = _values(own, "memory_used_bytes"), _values(own, "gpu_busy_percent")
        figures.append(
            record.GpuFigures(
                uuid=device.uuid,
                memory_used_avg_gb=_scaled(_mean(used), 1 / GB),
                memory_used_peak_gb=_scaled(max(used, default=None), 1 / GB),
                torch_allocated_peak_gb=allocated / GB,
                gpu_busy_avg_percent=_mean(busy),
                gpu_busy_peak_percent=max(busy, default=None),
                sm_clock_avg_mhz=_mean(_values(own, "sm_clock_mhz")),
                memory_clock_avg_mhz=_mean(_values(own, "memory_clock_mhz")),
                power_average_w=_mean(_values(own, "power_w")),
                temperature_peak_c=max(_values(own, "temperature_c"), default=None),
            )
        )
    return figures


def _sums(samples: Sequence[Sample], column: str, gpus: int) -> list[float]:
    """Over all GPUs, at each moment that all of them were read."""
    moments: dict[float, list[float]] = {}
    for sample in samples:
        if column in sample.values:
            moments.setdefault(sample.t, []).append(sample.values[column])
    return [sum(values) for values in moments.values() if len(values) == gpus]


def energy_rate_w(samples: Sequence[Sample]) -> float | None:
    """Joules per second by the GPUs' own energy counters, from the first to the last sample; the window's
    edges, up to a sample's distance away, are taken to be like the rest. None if a GPU has no counter, or
    fewer than two samples show it."""
    rates = []
    for gpu in {sample.gpu for sample in samples}:
        counted = [sample for sample in _of(samples, gpu) if "energy_j" in sample.values]
        if len(counted) < 2:
            return None
        first, last = counted[0], counted[-1]
        rates.append((last.values["energy_j"] - first.values["energy_j"]) / (last.t - first.t))
    return _total(rates)


def share_with(samples: Sequence[Sample], bits: int) -> float | None:
    """Share of samples in which any of these clock event reasons is set."""
    reasons = [int(value) for value in _values(samples, "clock_event_reasons")]
    return sum(1 for reason in reasons if reason & bits) / len(reasons) if reasons else None


def _values(samples: Iterable[Sample], column: str) -> list[float]:
    return [sample.values[column] for sample in samples if column in sample.values]


def _of(samples: Iterable[Sample], gpu: str) -> list[Sample]:
    return [sample for sample in samples if sample.gpu == gpu]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _scaled(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor
