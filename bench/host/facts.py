"""What ``fluxbench doctor`` looks at: the machine, asked once, as plain data for ``doctor.examine``.

Nothing here changes anything, and no token is kept: only whether there is one.
"""

from __future__ import annotations

import ctypes
import shutil
import sysconfig
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from bench.host import leases, locks, processes
from bench.host.daemon import Daemon
from bench.host.docker import hub_cache
from bench.host.gpus import Gpu, GpuError, inventory
from bench.host.image import Store
from bench.host.processes import Process
from bench.host.venv import VENVS
from bench.identity import lock_in
from bench.images import IMAGES
from bench.runner.published import NOT_FETCHED, published

P2P_READ = 0
"""NVML_P2P_CAPS_INDEX_READ in nvml.h; nvidia-ml-py 13 has a tuple under this name."""

CONTAINERD, CONTAINERD_CONFIG = Path("/var/lib/containerd"), Path("/etc/containerd/config.toml")
"""Where containerd keeps what it has, and where it is told another place."""

WEIGHTS = {"weights": "transformer", "controlnet": "controlnet"}
"""What ``fluxbench fetch`` calls it -> the component that names its repository"""

Purpose = Literal["images", "weights", "results"]
Licence = Literal["granted", "refused", "no answer", "not asked"]


@dataclass(frozen=True)
class GpuUse:
    gpu: Gpu
    used_gb: float | None
    processes: tuple[Process, ...] = ()
    persistent: bool | None = None
    """Whether the driver stays with the GPU while nobody uses it. None: it does not say."""


@dataclass(frozen=True)
class Link:
    """Between two GPUs, by their indices. None: the driver does not say."""

    first: int
    second: int
    p2p: bool | None
    nvlink: bool | None


@dataclass(frozen=True)
class Disk:
    purpose: Purpose
    path: Path
    free_gb: float


@dataclass(frozen=True)
class Container:
    name: str
    state: str
    """Docker's word: running, exited, created, ..."""
    has_owner: bool
    """Whether the `docker run` of a fan-out still stands behind it."""


@dataclass(frozen=True)
class Docker:
    installed: bool
    answers: bool = False
    gives_gpus: bool = False
    """Whether the daemon knows NVIDIA's runtime or its CDI devices."""
    images: Mapping[str, tuple[str, ...] | None] | None = None
    """Image -> the files that were changed since it was built from them; None where it is not here."""
    containers: tuple[Container, ...] = ()
    root: Path | None = None
    """Where images are kept."""


@dataclass(frozen=True)
class Facts:
    driver: str | None
    """Version; None where there is no driver."""
    driver_error: str
    cuda_error: str
    """What CUDA says when it is asked to begin, though NVML lists GPUs; empty where it begins."""
    gpus: tuple[GpuUse, ...]
    links: tuple[Link, ...]
    locked_cuda: str
    """Version of CUDA that the images' torch brings along."""
    docker: Docker
    environments: tuple[str, ...]
    """Images whose virtual environment is built from the present lock."""
    disks: tuple[Disk, ...]
    weights: Mapping[str, bool]
    """``weights`` and ``controlnet`` -> whether they are in the hub's cache at the pinned revision."""
    token: bool
    licence: Licence
    compiler: str | None
    python_headers: bool
    shared_memory_gb: float | None
    variables: Mapping[str, str]
    """Those of the caller that change how GPUs talk to each other."""
    orphans: tuple[Process, ...]
    """Runners without a fan-out."""
    leases: tuple[str, ...]
    """Who holds what at this moment."""


def gather(results: Path, variables: Mapping[str, str]) -> Facts:
    docker = _docker(Daemon())
    driver, error, gpus, links = _gpus(variables.get("CUDA_VISIBLE_DEVICES"))
    hub = hub_cache(variables)
    weights = {name: _is_cached(hub, component) for name, component in WEIGHTS.items()}
    token = bool(variables.get("HF_TOKEN"))
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return Facts(
        driver=driver,
        driver_error=error,
        cuda_error=cuda_error() if gpus else "",
        gpus=gpus,
        links=links,
        locked_cuda=locks.locked_version("base", "nvidia-cuda-runtime"),
        docker=docker,
        environments=tuple(
            image
            for image in IMAGES
            if (lock_in(VENVS / image) or "").split(" ")[0] == locks.lock_sha256(image)
        ),
        disks=_disks(docker.root, hub, results),
        weights=weights,
        token=token,
        licence="not asked" if all(weights.values()) or not token else _licence(variables["HF_TOKEN"]),
        compiler=next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None),
        python_headers=headers.exists(),
        shared_memory_gb=_free_gb(Path("/dev/shm")),
        variables={name: value for name, value in variables.items() if name.startswith("NCCL_")},
        orphans=tuple(processes.orphans()),
        leases=tuple(leases.held()),
    )


def _gpus(
    visible: str | None,
) -> tuple[str | None, str, tuple[GpuUse, ...], tuple[Link, ...]]:
    """(driver version, what NVML complains of, GPUs, links between them)"""
    import pynvml

    try:
        found = inventory(visible)
    except GpuError as error:
        return None, str(error), (), ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, "", (), ()
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        return driver, "", tuple(use_of(pynvml, gpu) for gpu in found), tuple(links_of(pynvml, found))
    finally:
        pynvml.nvmlShutdown()


def cuda_error(libcuda: str = "libcuda.so.1") -> str:
    """``system not yet initialized (802)``. Begins CUDA in this process, but takes no memory of a GPU."""
    try:
        cuda = ctypes.CDLL(libcuda)
    except OSError as error:
        return str(error)
    if not (code := cuda.cuInit(0)):
        return ""
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown').decode()} ({code})"


def use_of(nvml: Any, gpu: Gpu) -> GpuUse:
    handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    try:
        used_gb = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used / 1e9
    except nvml.NVMLError:
        used_gb = None
    try:
        pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except nvml.NVMLError:
        pids = []
    try:
        persistent = nvml.nvmlDeviceGetPersistenceMode(handle) == nvml.NVML_FEATURE_ENABLED
    except nvml.NVMLError:
        persistent = None
    return GpuUse(gpu, used_gb, tuple(processes.named(pid) for pid in pids), persistent)


def links_of(nvml: Any, gpus: Iterable[Gpu]) -> Iterable[Link]:
    for first, second in combinations(gpus, 2):
        pair = [nvml.nvmlDeviceGetHandleByUUID(gpu.uuid) for gpu in (first, second)]
        p2p, nvlink = (
            _peers(nvml, pair, capability) for capability in (P2P_READ, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        )
        yield Link(first.index, second.index, p2p, nvlink)


def _peers(nvml: Any, pair: list[Any], capability: int) -> bool | None:
    try:
        return bool(nvml.nvmlDeviceGetP2PStatus(*pair, capability) == nvml.NVML_P2P_STATUS_OK)
    except nvml.NVMLError:
        return None


def _docker(daemon: Daemon) -> Docker:
    if shutil.which("docker") is None:
        return Docker(installed=False)
    if not daemon.answers():
        return Docker(installed=True)
    info = daemon.info()
    runtimes, devices = info.get("Runtimes") or {}, info.get("DiscoveredDevices") or ()
    store = Store(daemon)
    return Docker(
        installed=True,
        answers=True,
        gives_gpus="nvidia" in runtimes or any("nvidia.com" in str(device) for device in devices),
        images={name: image.changed if (image := store.get(name)) else None for name in IMAGES},
        containers=tuple(_containers(daemon)),
        root=image_root(info),
    )


def image_root(info: Mapping[str, Any], config: Path = CONTAINERD_CONFIG) -> Path | None:
    """``info``: what the daemon says of itself. With containerd's image store, usual from Docker 29 on,
    images lie in the folder of the machine's containerd, which the daemon's data-root does not move (moby
    issue 50517), unless the daemon runs a containerd of its own."""
    own = "docker" in (info.get("Containerd") or {}).get("Address", "")
    if dict(info.get("DriverStatus") or ()).get("driver-type") == "io.containerd.snapshotter.v1" and not own:
        try:
            return Path(tomllib.loads(config.read_text()).get("root", CONTAINERD))
        except (OSError, tomllib.TOMLDecodeError):
            return CONTAINERD
    return Path(info["DockerRootDir"]) if info.get("DockerRootDir") else None


def _containers(daemon: Daemon) -> Iterable[Container]:
    behind = [arguments for _, arguments in processes.command_lines() if "run" in arguments]
    for found in daemon.labelled("fluxbench.row"):
        owner = any(f"--name={found['Names']}" in arguments for arguments in behind)
        yield Container(found["Names"], found["State"], owner)


def _disks(docker_root: Path | None, hub: Path, results: Path) -> tuple[Disk, ...]:
    """The daemon's own folder can be looked at where the daemon is this machine's and we may see it."""
    purposes: list[tuple[Purpose, Path]] = [("weights", hub), ("results", results)]
    if docker_root:
        purposes.insert(0, ("images", docker_root))
    return tuple(
        Disk(purpose, path, free) for purpose, path in purposes if (free := _free_gb(path)) is not None
    )


def _free_gb(path: Path) -> float | None:
    """Of the file system that the path is on, or will be once it is made."""
    for folder in (path.absolute(), *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free / 1e9
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def _is_cached(hub: Path, component: str) -> bool:
    """Whole, as far as the hub's client knows which files there are; where this Python has no client, whether
    fetching has begun."""
    source = published(component)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        folder = hub / f"models--{source.repository.replace('/', '--')}" / "snapshots" / source.revision
        return folder.is_dir()
    try:
        snapshot_download(
            source.repository,
            revision=source.revision,
            cache_dir=hub,
            ignore_patterns=list(NOT_FETCHED),
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return False
    return True


def _licence(token: str) -> Licence:
    """Whether this token may read the gated weights. Asks the hub."""
    from huggingface_hub import auth_check
    from huggingface_hub.errors import HfHubHTTPError

    try:
        auth_check(published("transformer").repository, token=token)
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403, 404)
        return "refused" if refused else "no answer"
    except Exception:  # no network, in as many classes as there are ways to have none
        return "no answer"
    return "granted"
