"""What is written down about the machine, and whether the GPU is ours alone. NVML is a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import identity
from bench.config import TELEMETRY
from bench.host.gpus import Gpu
from bench.runner import environment
from bench.runner.environment import NotIdle

H100 = Gpu(index=3, name="NVIDIA H100 80GB HBM3", uuid="GPU-3f", memory_bytes=85_520_809_984, mig=False)


class NVMLError(Exception):
    pass


class FakeNvml:
    """A machine with one H100; what runs on it is asked anew at each look."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 0x02000028  # noqa: N815

    def __init__(self, pids: Callable[[], list[int]] = list, used_bytes: int = 4_000_000) -> None:
        self.pids, self.used_bytes = pids, used_bytes

    def __getattr__(self, query: str) -> Callable[..., Any]:
        def no_ecc(_: object) -> None:
            raise NVMLError("Not Supported")

        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetComputeRunningProcesses": lambda _: [
                SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in self.pids()
            ],
            "nvmlDeviceGetMemoryInfo": lambda _, version: SimpleNamespace(used=self.used_bytes),
            "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
            "nvmlDeviceGetEccMode": no_ecc,
            "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        }
        return answers[query]


def naps() -> tuple[list[float], Callable[[float], None]]:
    taken: list[float] = []
    return taken, taken.append


def test_an_idle_gpu_is_taken_at_once() -> None:
    taken, sleep = naps()
    environment.wait_until_idle([H100], FakeNvml(), sleep)
    assert taken == []


def test_a_gpu_that_becomes_free_is_waited_for() -> None:
    taken, sleep = naps()
    environment.wait_until_idle([H100], FakeNvml(lambda: [] if len(taken) > 4 else [77]), sleep)
    assert len(taken) == 5


@pytest.mark.parametrize(
    ("pids", "used_bytes", "complaint"),
    [([4242], 4_000_000, "process 4242"), ([], 30_000_000_000, "30.0 GB in use")],
)
def test_a_gpu_in_use_is_refused_after_twenty_seconds_with_what_to_do(
    pids: list[int], used_bytes: int, complaint: str
) -> None:
    taken, sleep = naps()
    with pytest.raises(NotIdle, match="CUDA_VISIBLE_DEVICES") as refusal:
        environment.wait_until_idle([H100], FakeNvml(lambda: pids, used_bytes), sleep)
    assert sum(taken) == TELEMETRY.idle_wait_seconds == 20.0
    assert complaint in str(refusal.value)
    assert "GPU 3 (GPU-3f)" in str(refusal.value)


def test_no_variable_that_could_hold_a_secret_or_says_nothing_is_kept() -> None:
    kept = environment.speed_variables(
        {
            "NCCL_P2P_DISABLE": "1",
            "OMP_NUM_THREADS": "2",
            "TORCHINDUCTOR_CACHE_DIR": "/cache",
            "HF_TOKEN": "hf_secret",
            "NVIDIA_API_KEY": "nvapi-secret",
            "TORCH_HUB_AUTH": "secret",
            "NVIDIA_REQUIRE_CUDA": "cuda>=13.0 brand=unknown,driver>=535",
            "PATH": "/bin",
        }
    )
    assert kept == {"NCCL_P2P_DISABLE": "1", "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_CACHE_DIR": "/cache"}


def test_a_machine_without_gpu_is_described_and_named_as_the_host_names_it() -> None:
    found = environment.collect([])
    assert found.gpus == []
    assert (found.driver, found.cuda, found.topology) == (None, None, None)
    assert found.host_id == identity.host_id([])
    assert found.cpu_count >= 1
    assert found.packages["pydantic"]
    assert found.git_commit is None or len(found.git_commit) == 40


def test_a_gpu_is_described_with_its_limits_and_null_for_what_it_does_not_know() -> None:
    found = environment.collect([H100], FakeNvml())
    (gpu,) = found.gpus
    assert (gpu.uuid, gpu.power_limit_w, gpu.ecc, gpu.mig) == ("GPU-3f", 700.0, None, False)
    assert gpu.variant == "SXM"
    assert gpu.memory_total_gb == pytest.approx(85.52, abs=0.01)
    assert found.driver == "580.95.05"
    assert found.host_id == "GPU-3f"
    (device,) = environment.devices([H100], FakeNvml())
    assert (device.idle_gb, device.limit_w) == (0.004, 700.0)


def test_the_host_can_describe_the_machine_without_torch() -> None:
    code = (
        "import json, sys; from bench.runner import environment\n"
        "environment.collect([]); print(json.dumps([n for n in sys.modules if n.split('.')[0] == 'torch']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_code_that_runs_without_its_repository_knows_its_commit_from_whoever_sent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLUXBENCH_GIT_COMMIT", "a" * 40 + "-dirty")
    found = environment.collect([])
    assert (found.git_commit, found.git_dirty) == ("a" * 40, True)


def test_the_topology_is_kept_without_the_terminals_underlining(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '\\t\\033[4mGPU0\\tCPU Affinity\\033[0m\\nGPU0\\t X \\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = environment.collect([H100], FakeNvml())
    assert found.topology == "\tGPU0\tCPU Affinity\nGPU0\t X \n"
