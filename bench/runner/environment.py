"""What a latency depends on besides the row: machine, driver, libraries, code. And is the GPU ours alone?

Nothing here changes a setting of the machine, and no variable that could hold a secret is kept.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import contract, identity, record
from bench.config import TELEMETRY
from bench.host.gpus import Gpu
from bench.runner.telemetry import GB, Device

REPOSITORY = Path(__file__).parents[2]
SPEED_PREFIXES = (
    "NCCL_", "NVSHMEM_", "NVLINK_", "GLOO_", "UCX_",
    "CUDA_", "CUDNN_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "MKL_", "KMP_", "NVIDIA_",
)  # fmt: skip
SAYS_NOTHING = frozenset({"NVIDIA_REQUIRE_CUDA"})
"""A kilobyte of driver ranges that an image would accept."""
SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL", "AUTH")
COMMAND_SECONDS = 10.0
POLL_SECONDS = 0.5


class NotIdle(Exception):
    """Somebody else uses the GPU; a latency taken now would be theirs too."""


def collect(gpus: Sequence[Gpu], nvml: Any = None) -> record.Environment:
    """All but what only torch knows; see ``torch_versions``."""
    import psutil

    commit, dirty = git_state()
    return record.Environment(
        **(_gpu_facts(gpus, nvml or _nvml()) if gpus else {}),
        host_id=identity.host_id(gpu.uuid for gpu in gpus),
        cpu_model=identity.cpu_model(),
        cpu_count=os.cpu_count() or 1,
        memory_total_gb=psutil.virtual_memory().total / GB,
        load_average=os.getloadavg(),
        python=platform.python_version(),
        packages=installed_packages(),
        image_digest=os.environ.get(contract.IMAGE_DIGEST),
        git_commit=commit,
        git_dirty=dirty,
        variables=speed_variables(os.environ),
    )


def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it). Where the code runs without its repository, as in a
    container, whoever sent it there says so (``contract.GIT_COMMIT``)."""
    if told := os.environ.get(contract.GIT_COMMIT):
        return told.removesuffix(contract.DIRTY), told.endswith(contract.DIRTY)
    commit = _output("git", "-C", str(REPOSITORY), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no")
    return commit.strip() if commit else None, None if changes is None else bool(changes.strip())


def torch_versions() -> dict[str, str | None]:
    """Fields of ``record.Environment``: versions of the CUDA libraries that torch brings along."""
    import torch

    cudnn = torch.backends.cudnn.version()
    return {
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def speed_variables(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(SPEED_PREFIXES) and name not in SAYS_NOTHING
        if not any(word in name.upper() for word in SECRET_WORDS)
    }


def installed_packages() -> dict[str, str]:
    found = {item.name.lower(): item.version for item in metadata.distributions() if item.name}
    return dict(sorted(found.items()))


def devices(gpus: Sequence[Gpu], nvml: Any = None) -> list[Device]:
    """Memory in use and power limit of each GPU, as they are before the row begins."""
    if not gpus:
        return []
    nvml = nvml or _nvml()
    return [
        Device(gpu.uuid, gpu.memory_bytes / GB, _used_gb(nvml, gpu), _power_limit_w(nvml, gpu))
        for gpu in gpus
    ]


def wait_until_idle(
    gpus: Sequence[Gpu], nvml: Any = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Waits at most ``TELEMETRY.idle_wait_seconds`` for every GPU to have no process and its memory free.
    Raises ``NotIdle`` after that. To be called before this process touches CUDA."""
    if not gpus:
        return
    nvml = nvml or _nvml()
    for remaining in range(int(TELEMETRY.idle_wait_seconds / POLL_SECONDS), -1, -1):
        busy = [reason for gpu in gpus if (reason := _in_use(nvml, gpu))]
        if not busy:
            return
        if remaining:
            sleep(POLL_SECONDS)
    raise NotIdle(
        f"{'; '.join(busy)} after {TELEMETRY.idle_wait_seconds:g} s; stop what runs there"
        " (`nvidia-smi` shows it) or choose another GPU with CUDA_VISIBLE_DEVICES"
    )


def _in_use(nvml: Any, gpu: Gpu) -> str | None:
    pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, gpu))]
    if pids:
        return f"GPU {gpu.index} ({gpu.uuid}) still runs process {', '.join(map(str, pids))}"
    used_gb = _used_gb(nvml, gpu)
    if used_gb is not None and used_gb > TELEMETRY.idle_memory_gb:
        return f"GPU {gpu.index} ({gpu.uuid}) still has {used_gb:.1f} GB in use"
    return None


def _used_gb(nvml: Any, gpu: Gpu) -> float | None:
    """Without what the driver reserves for itself, as ``nvidia-smi`` and the sampler count."""
    info = _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, _handle(nvml, gpu), nvml.nvmlMemory_v2)
    return None if info is None else info.used / GB


def _power_limit_w(nvml: Any, gpu: Gpu) -> float | None:
    milliwatts = _optional(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, _handle(nvml, gpu))
    return None if milliwatts is None else milliwatts / 1000


def _gpu_facts(gpus: Sequence[Gpu], nvml: Any) -> dict[str, Any]:
    described = []
    for gpu in gpus:
        ecc = _optional(nvml, nvml.nvmlDeviceGetEccMode, _handle(nvml, gpu))
        described.append(
            record.Gpu(
                name=gpu.name,
                variant=gpu.variant,
                uuid=gpu.uuid,
                memory_total_gb=gpu.memory_bytes / GB,
                power_limit_w=_power_limit_w(nvml, gpu),
                ecc=None if ecc is None else bool(ecc[0]),
                mig=gpu.mig,
            )
        )
    return {
        "gpus": described,
        "driver": _optional(nvml, nvml.nvmlSystemGetDriverVersion),
        "topology": _plain(_output("nvidia-smi", "topo", "-m")),
    }


def _nvml() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _handle(nvml: Any, gpu: Gpu) -> Any:
    return nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)


def _optional(nvml: Any, query: Callable[..., Any], *args: Any) -> Any:
    """None where the device or the driver does not offer it."""
    try:
        return query(*args)
    except nvml.NVMLError:
        return None


def _plain(text: str | None) -> str | None:
    """Without the terminal's underlining, which ``nvidia-smi`` writes into a pipe too."""
    return None if text is None else re.sub(r"\x1b\[[0-9;]*m", "", text)


def _output(*command: str) -> str | None:
    """What the command printed; None where it does not exist, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
