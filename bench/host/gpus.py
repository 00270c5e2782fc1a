"""Which GPUs this machine has, and whether a row's hardware fits them.

``<gpu>x<n>`` fits a machine with at least n such GPUs; ``cpu`` fits every machine.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.hardware import GPUS
from bench.matrix import Row
from bench.record import GpuVariant

USUAL_MEMORY_GB = 80
"""Of a GPU that is imagined, if no more is known of it."""


class GpuError(Exception):
    """The driver answers, but not with an inventory; the message says what NVML said."""


@dataclass(frozen=True)
class Gpu:
    index: int
    """NVML's, as ``nvidia-smi`` shows it."""
    name: str
    uuid: str
    memory_bytes: int
    mig: bool | None = None
    """Whether MIG mode is on; None where the GPU does not know MIG."""

    def is_kind(self, kind: str) -> bool:
        """``h100`` is an "NVIDIA H100 80GB HBM3", but no "NVIDIA GH200"; ``rtx4090`` an "RTX 4090"."""
        words = self._words
        return kind in words or kind in {first + second for first, second in pairwise(words)}

    @property
    def variant(self) -> GpuVariant | None:
        """Which build of the model, by its name; None where a name does not tell. They differ in power limit,
        memory bandwidth and links, and so in every latency."""
        words = self._words
        if "nvl" in words:
            return "NVL"
        if "pcie" in words:
            return "PCIe"
        named = any(word.startswith("sxm") for word in words)
        unnamed = any(word in GPUS and not GPUS[word].says_sxm for word in words)
        return "SXM" if named or unnamed else None

    @property
    def _words(self) -> list[str]:
        return re.findall(r"[a-z0-9]+", self.name.lower())


def inventory(visible: str | None, nvml: Any = None) -> list[Gpu]:
    """The GPUs that this process may use; none where there is no driver.

    ``visible`` is the caller's CUDA_VISIBLE_DEVICES, which NVML itself does not heed: a scheduler that
    gave us two GPUs of eight must not find us on the others.
    """
    if nvml is None:
        nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return []
    except nvml.NVMLError as error:
        raise GpuError(
            f"NVML does not start: {error}; `nvidia-smi` on this machine should say more"
        ) from error
    try:
        found = [_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        raise GpuError(f"NVML cannot list the GPUs: {error}; look at `nvidia-smi`") from error
    finally:
        nvml.nvmlShutdown()
    return only_visible(found, visible)


def _read(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        mig = bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError_NotSupported:
        mig = None
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        mig=mig,
    )


def imagined(gpu: str, count: int) -> list[Gpu]:
    """GPUs of a machine that is still to be rented, for a plan of what it would do."""
    memory_bytes = int(max(USUAL_MEMORY_GB, _least_memory_gb(gpu)) * 1e9)
    return [Gpu(index, gpu.upper(), f"GPU-imagined-{index}", memory_bytes) for index in range(count)]


def only_visible(gpus: Sequence[Gpu], visible: str | None) -> list[Gpu]:
    """Applies CUDA_VISIBLE_DEVICES as CUDA does: indices or UUID prefixes, ending at the first entry that
    names no GPU."""
    if visible is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        matching = [gpu for gpu in gpus if entry and (entry == str(gpu.index) or gpu.uuid.startswith(entry))]
        if len(matching) != 1 or matching[0] in chosen:
            break
        chosen += matching
    return chosen


def candidates(row: Row, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that may serve the row, whole ones of its kind and all of one model: of a machine that mixes
    them, the model it has most of. Empty for a cpu row."""
    if row.gpu is None:
        return []
    smallest_bytes = _least_memory_gb(row.gpu) * 1e9
    whole = [gpu for gpu in gpus if gpu.is_kind(row.gpu) and not gpu.mig]
    large = [gpu for gpu in whole if gpu.memory_bytes >= smallest_bytes]
    names = Counter(gpu.name for gpu in large)
    return [gpu for gpu in large if gpu.name == names.most_common(1)[0][0]]


def misfit(row: Row, gpus: Sequence[Gpu]) -> str | None:
    """What this machine lacks for the row, as the end of a sentence; None when the row fits."""
    fitting = candidates(row, gpus)
    if row.gpu is None or len(fitting) >= row.gpu_count:
        return None
    wants = f"it wants {row.gpu_count} x {row.gpu}"
    if not gpus:
        return f"{wants}, and this machine has no GPU that CUDA may use"
    if sliced := [gpu for gpu in gpus if gpu.is_kind(row.gpu) and gpu.mig]:
        numbers = ", ".join(str(gpu.index) for gpu in sliced)
        return f"{wants}, and MIG mode is on for GPU {numbers}: a row measures whole GPUs"
    has = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)" for gpu in gpus)
    return f"{wants}{_memory_note(row.gpu)}, and this machine has {has}"


def _memory_note(kind: str) -> str:
    smallest = _least_memory_gb(kind)
    return f" of at least {smallest} GB" if smallest else ""


def _least_memory_gb(kind: str) -> int:
    return GPUS[kind].least_memory_gb if kind in GPUS else 0
