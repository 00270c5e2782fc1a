"""The sampling process and what a window of its samples says. NVML is a stand-in with an H100's values;
process, pipe, kill and files are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench.config import TELEMETRY
from bench.runner import sampler, telemetry
from bench.runner.telemetry import Device, Sample, Telemetry


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):  # noqa: N801
    pass


class FakeNvml:
    """The module ``pynvml`` as the sampler uses it, on a busy H100; queries in ``missing`` are refused."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, nvmlMemory_v2 = 1, 2, 0, 0x02000028  # noqa: N815

    def __init__(self, *missing: str) -> None:
        self.missing = missing

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def __getattr__(self, query: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=99, memory=41),
            "nvmlDeviceGetMemoryInfo": lambda _, version: SimpleNamespace(used=36_400_000_000),
            "nvmlDeviceGetPowerUsage": lambda _: 655_120,
            "nvmlDeviceGetTotalEnergyConsumption": lambda _: 123_456_789,
            "nvmlDeviceGetClockInfo": lambda _, kind: {1: 1755, 2: 2619}[kind],
            "nvmlDeviceGetTemperature": lambda _, kind: 61,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x4,
        }

        def refused(*_: Any) -> None:
            raise NVMLError_NotSupported(query)

        return refused if query in self.missing else answers[query]


def test_a_gpu_is_read_in_the_units_that_the_columns_name() -> None:
    ((uuid, read),) = sampler.sources(FakeNvml(), ["GPU-1"])
    assert uuid == "GPU-1"
    assert read() == {
        "gpu_busy_percent": 99,
        "memory_used_bytes": 36_400_000_000,
        "sm_clock_mhz": 1755,
        "memory_clock_mhz": 2619,
        "power_w": 655.12,
        "energy_j": 123_456.789,
        "temperature_c": 61,
        "clock_event_reasons": 4,
    }


@pytest.mark.parametrize(
    ("query", "column"),
    [
        ("nvmlDeviceGetUtilizationRates", "gpu_busy_percent"),
        ("nvmlDeviceGetMemoryInfo", "memory_used_bytes"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "clock_event_reasons"),
    ],
)
def test_a_value_the_gpu_does_not_offer_is_an_empty_field_and_then_none(query: str, column: str) -> None:
    ((_, read),) = sampler.sources(FakeNvml(query), ["GPU-1"])
    text = sampler.line({"t": "1.000", "gpu": "GPU-1", **read()})
    (sample,) = telemetry.parse([text], header=False)
    assert text.count(",") == len(sampler.COLUMNS) - 1
    assert column not in sample.values
    assert "0.0" not in text.split(",")
    assert len(sample.values) == len(sampler.GPU_COLUMNS) - 1


def test_the_installed_pynvml_has_every_name_that_the_sampler_asks_for() -> None:
    import pynvml

    for name in (
        "nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksEventReasons", "NVML_CLOCK_SM",
        "NVML_CLOCK_MEM", "NVML_TEMPERATURE_GPU", "nvmlMemory_v2", "NVMLError",
        "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetEccMode", "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlSystemGetDriverVersion",
    ):  # fmt: skip
        assert hasattr(pynvml, name), name


# --- The process -------------------------------------------------------------------------------------


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_the_sampler_is_light_and_knows_no_torch(tmp_path: Path) -> None:
    with Telemetry(tmp_path, [], [os.getpid()]) as sampling:
        until(lambda: sampling.window(0, time.time()))
        process = psutil.Process(sampling._process.pid)  # type: ignore[union-attr]
        assert sampling.cpu_seconds < 0.5, "starting it takes longer than that"
        assert not any("torch" in mapped.path for mapped in process.memory_maps())
        assert process.memory_info().rss < 60e6


def test_without_a_gpu_cpu_and_memory_are_sampled_and_gpu_columns_stay_empty(tmp_path: Path) -> None:
    with Telemetry(tmp_path, [], [os.getpid()]):
        until(lambda: len(telemetry.read(tmp_path)) > 3)
    samples = telemetry.read(tmp_path)
    assert (tmp_path / "telemetry.csv.gz").exists()
    assert not (tmp_path / "telemetry.csv").exists()
    assert all(set(sample.values) <= {"cpu_percent", "rss_bytes"} for sample in samples)
    assert "cpu_percent" not in samples[0].values, "the first sample has no interval behind it"
    assert telemetry.memory(samples, []).process_rss_peak_gb == pytest.approx(
        psutil.Process().memory_info().rss / 1e9, rel=0.3
    )
    assert telemetry.memory(samples, []).used_peak_gb is None
    assert telemetry.utilisation(samples).gpu_busy_avg_percent is None
    assert telemetry.power(samples, [], images_per_s=1.0).energy_per_image_j is None


def test_a_window_holds_its_own_samples_and_can_be_asked_while_sampling_goes_on(tmp_path: Path) -> None:
    with Telemetry(tmp_path, [], [os.getpid()]) as sampling:
        until(lambda: len(telemetry.read(tmp_path)) >= 4)
        times = [sample.t for sample in telemetry.read(tmp_path)]
        first = sampling.window(times[0], times[1])
        second = sampling.window(times[2], times[3])
    assert [sample.t for sample in first] == times[:2]
    assert [sample.t for sample in second] == times[2:4]


def test_a_killed_runner_still_leaves_its_telemetry_whole(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from bench.runner.telemetry import Telemetry\n"
        "with Telemetry(Path(sys.argv[1]), [], [os.getpid()]): time.sleep(60)"
    )
    runner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    until(lambda: len(telemetry.read(tmp_path)) > 2)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    until((tmp_path / "telemetry.csv.gz").exists)
    assert len(telemetry.read(tmp_path)) > 2


def test_a_killed_sampler_leaves_lines_that_can_be_read(tmp_path: Path) -> None:
    with Telemetry(tmp_path, [], [os.getpid()]) as sampling:
        until(lambda: len(telemetry.read(tmp_path)) > 2)
        sampling._process.kill()  # type: ignore[union-attr]
    plain = tmp_path / "telemetry.csv"
    whole = len(telemetry.read(tmp_path))
    plain.write_text(plain.read_text() + "1795378448.9,,,,,99")
    assert len(telemetry.read(tmp_path)) == whole > 2


def test_ctrl_c_in_the_terminal_does_not_end_the_sampler_before_its_runner(tmp_path: Path) -> None:
    with Telemetry(tmp_path, [], [os.getpid()]) as sampling:
        until(lambda: telemetry.read(tmp_path))
        sampling._signal(signal.SIGINT)
        sampling._signal(signal.SIGTERM)
        before = len(telemetry.read(tmp_path))
        until(lambda: len(telemetry.read(tmp_path)) > before)
    assert (tmp_path / "telemetry.csv.gz").exists()


def test_a_paused_sampler_takes_no_sample_until_it_resumes(tmp_path: Path) -> None:
    with Telemetry(tmp_path, [], [os.getpid()]) as sampling:
        until(lambda: telemetry.read(tmp_path))
        sampling.pause()
        time.sleep(0.1)
        before = len(telemetry.read(tmp_path))
        time.sleep(0.6)
        assert len(telemetry.read(tmp_path)) == before
        sampling.resume()
        until(lambda: len(telemetry.read(tmp_path)) > before)


# --- What a window says ------------------------------------------------------------------------------

DEVICE = Device("GPU-1", total_gb=85.0, idle_gb=0.6, limit_w=700.0)


def gpu_samples(gpu: str = "GPU-1", reasons: int = 0, energy: bool = True, **values: float) -> list[Sample]:
    """Two seconds of a GPU that uses 600 J a second while its power reading says 655 W."""
    return [
        Sample(
            1000 + tick / 10,
            gpu,
            {
                "gpu_busy_percent": 90.0 + tick % 2 * 10,
                "memory_used_bytes": 30e9 + tick * 0.2e9,
                "sm_clock_mhz": 1755.0,
                "power_w": 655.0,
                "temperature_c": 50.0 + tick,
                "clock_event_reasons": float(reasons if tick < 5 else 0),
                **({"energy_j": 5000.0 + 60.0 * tick} if energy else {}),
                **values,
            },
        )
        for tick in range(20)
    ]


def test_energy_comes_from_the_counter_and_not_from_power() -> None:
    power = telemetry.power(gpu_samples(), [DEVICE], images_per_s=0.2)
    assert power.energy_per_image_j == pytest.approx(600 / 0.2)
    assert power.average_w == pytest.approx(655.0)
    assert telemetry.power(gpu_samples(energy=False), [DEVICE], images_per_s=0.2).energy_per_image_j is None


def test_two_gpus_add_up_in_power_and_energy_but_not_in_memory() -> None:
    both = [*gpu_samples(), *gpu_samples("GPU-2", memory_used_bytes=70e9)]
    devices = [DEVICE, Device("GPU-2", 85.0, 0.6, 700.0)]
    power = telemetry.power(sorted(both, key=lambda sample: sample.t), devices, images_per_s=1.0)
    assert (power.energy_per_image_j, power.average_w, power.limit_w) == pytest.approx((1200, 1310, 1400))
    memory = telemetry.memory(both, devices)
    assert memory.used_peak_gb == pytest.approx(70.0)
    assert memory.total_gb == pytest.approx(85.0)


def test_memory_is_given_in_gb_and_as_share_of_the_device() -> None:
    memory = telemetry.memory(gpu_samples(), [DEVICE])
    assert memory.used_peak_gb == pytest.approx(33.8)
    assert memory.used_avg_gb == pytest.approx(31.9)
    assert memory.used_peak_percent == pytest.approx(100 * 33.8 / 85)
    assert memory.idle_gb == pytest.approx(0.6)


def test_slowdown_and_power_cap_are_told_apart() -> None:
    assert TELEMETRY.slowdown_bits & TELEMETRY.power_cap_bit == 0
    capped = telemetry.power(gpu_samples(reasons=0x4), [DEVICE], images_per_s=1.0)
    assert (capped.power_cap_share, capped.slowdown_share) == (0.25, 0.0)
    for bit in (0x8, 0x20, 0x40, 0x80):
        hot = telemetry.power(gpu_samples(reasons=bit), [DEVICE], images_per_s=1.0)
        assert (hot.power_cap_share, hot.slowdown_share) == (0.0, 0.25)


def test_an_empty_window_says_nothing_rather_than_zero() -> None:
    assert telemetry.power([], [DEVICE], images_per_s=1.0).model_dump(exclude={"limit_w"}) == {
        "average_w": None,
        "energy_per_image_j": None,
        "power_cap_share": None,
        "slowdown_share": None,
    }
    assert set(telemetry.utilisation([]).model_dump().values()) == {None}
