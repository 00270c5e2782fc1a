"""Is this machine ready to measure? Facts in, findings out, each with what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from bench.config import TELEMETRY
from bench.host.facts import Container, Facts, GpuUse, Link
from bench.runner.links import p2p_disabled, unsetting

LEAST_DRIVER = {12: 525, 13: 580}
"""CUDA's major version -> the oldest driver branch that runs it (CUDA release notes, minor version
compatibility)."""

FREE_GB = {"images": 30.0, "weights": 45.0, "results": 5.0}
"""To begin with. Images: one of the GPU images with its base while it is built. Weights: FLUX.1-dev with
both text encoders is 34 GB (FACTS.md section 2), the ControlNet 7. Results: a campaign's pictures."""

MOVED_BY = {
    "images": "move Docker's data-root; with containerd's image store `root` in /etc/containerd/config.toml",
    "weights": "set HF_HUB_CACHE elsewhere",
}

LEAST_SHARED_MEMORY_GB = 1.0
"""NCCL between processes of one machine; Docker's default of 64 MB is too little."""


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Something that costs speed, or that some rows will miss."""
    PROBLEM = "problem"
    """Rows that this machine should run would fail, or their numbers would not be true."""


@dataclass(frozen=True)
class Finding:
    level: Level
    what: str
    do: str = ""


def examine(facts: Facts) -> list[Finding]:
    checks = (
        driver,
        variants,
        mig,
        persistence,
        links,
        in_use,
        places,
        images,
        weights,
        disks,
        compiling,
        left_behind,
    )
    return [finding for check in checks for finding in check(facts)]


def _ok(what: str) -> Finding:
    return Finding(Level.OK, what)


def _note(what: str, do: str) -> Finding:
    return Finding(Level.NOTE, what, do)


def _problem(what: str, do: str) -> Finding:
    return Finding(Level.PROBLEM, what, do)


def driver(facts: Facts) -> Iterator[Finding]:
    if facts.driver_error:
        yield _problem(
            f"driver: {facts.driver_error}", "reboot, or install the driver again, until `nvidia-smi` works"
        )
        return
    if facts.driver is None:
        yield _note("driver: none; rows of hardware cpu run here", "for others take a machine with GPUs")
        return
    least = LEAST_DRIVER[int(facts.locked_cuda.split(".")[0])]
    needs = f"the images' torch is built for CUDA {facts.locked_cuda}, which needs {least} or newer"
    if int(facts.driver.split(".")[0]) < least:
        yield _problem(
            f"driver {facts.driver}: {needs}",
            "install a newer driver, or put another torch into image or environment: "
            '`fluxbench image torch --torch "torch==2.11.0 --index-url '
            'https://download.pytorch.org/whl/cu126"`',
        )
    else:
        yield _ok(f"driver {facts.driver}: {needs}")
    if facts.cuda_error:
        yield _problem(
            f"NVML lists the GPUs, but CUDA does not begin: {facts.cuda_error}",
            "GPUs joined by NVSwitch want their fabric manager, of the driver's very version: "
            "`systemctl status nvidia-fabricmanager`; else look at `dmesg`",
        )


def variants(facts: Facts) -> Iterator[Finding]:
    names = dict.fromkeys(use.gpu.name for use in facts.gpus)
    for name in names:
        same = [use.gpu for use in facts.gpus if use.gpu.name == name]
        built = same[0].variant
        yield _ok(f"{len(same)} x {name}{f' ({built})' if built else ''}")
    if len(names) > 1:
        yield _note(
            "GPUs of several models: a row uses one model, the one that there is most of",
            "choose others with CUDA_VISIBLE_DEVICES",
        )


def mig(facts: Facts) -> Iterator[Finding]:
    for use in facts.gpus:
        if use.gpu.mig:
            yield _problem(
                f"GPU {use.gpu.index}: MIG mode is on, and a row measures whole GPUs",
                f"whoever runs the machine ends it with `nvidia-smi -i {use.gpu.index} -mig 0`",
            )


def persistence(facts: Facts) -> Iterator[Finding]:
    if off := [str(use.gpu.index) for use in facts.gpus if use.persistent is False]:
        yield _note(
            f"GPU {', '.join(off)}: persistence mode is off, so the driver begins anew with every row",
            "whoever runs the machine starts nvidia-persistenced, or `nvidia-smi -pm 1`",
        )


def links(facts: Facts) -> Iterator[Finding]:
    if not facts.links:
        return
    pairs = len(facts.links)
    if all(link.nvlink for link in facts.links):
        yield _ok(f"NVLink between all {len(facts.gpus)} GPUs")
    else:
        without = [link for link in facts.links if not link.nvlink]
        yield _note(
            f"no NVLink between {_pairs(without)} ({len(without)} of {pairs} pairs)",
            "rows of several GPUs talk over PCIe there; compare them with machines of the same kind only",
        )
    if cut := [link for link in facts.links if link.p2p is False]:
        yield _note(
            f"no peer access between {_pairs(cut)}: their data goes through the host's memory",
            "on bare metal switch ACS off in the firmware; in a virtual machine ask its provider",
        )
    if disabled := p2p_disabled(facts.variables):
        yield _problem(
            f"{disabled} is set: it costs rows of several GPUs about half their scaling",
            unsetting(disabled),
        )
    if facts.shared_memory_gb is not None and facts.shared_memory_gb < LEAST_SHARED_MEMORY_GB:
        yield _problem(
            f"/dev/shm has {facts.shared_memory_gb:.2f} GB free, too little for NCCL",
            "start this container with `--shm-size=16g` (rows in Docker have their own)",
        )


def _pairs(links: Iterable[Link]) -> str:
    return ", ".join(f"{link.first}-{link.second}" for link in links)


def in_use(facts: Facts) -> Iterator[Finding]:
    for use in facts.gpus:
        if use.processes:
            who = ", ".join(f"{process.pid} ({process.name})" for process in use.processes)
            yield _problem(
                f"GPU {use.gpu.index} is in use by process {who}",
                "end them, or leave this GPU out with CUDA_VISIBLE_DEVICES: a row waits for an idle one",
            )
        elif _holds_memory(use):
            yield _problem(
                f"GPU {use.gpu.index} has {use.used_gb:.1f} GB in use by processes that cannot be seen here",
                "they belong to another container or user; ask whoever runs the machine",
            )
    for holder in facts.leases:
        yield _note(f"leased: {holder}", "wait for it with --wait SECONDS")


def _holds_memory(use: GpuUse) -> bool:
    return use.used_gb is not None and use.used_gb > TELEMETRY.idle_memory_gb


def places(facts: Facts) -> Iterator[Finding]:
    """Is there a place to run rows in, as locked?"""
    docker = facts.docker
    if docker.answers:
        yield _ok("a Docker daemon answers")
        if facts.gpus and not docker.gives_gpus:
            yield _problem(
                "Docker does not know NVIDIA's container toolkit: `--gpus` would fail",
                "install nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker` and "
                "restart Docker",
            )
        return
    why = "no Docker daemon answers" if docker.installed else "Docker is not installed"
    if facts.environments:
        yield _ok(f"{why}; environments built from the locks: {', '.join(facts.environments)}")
        return
    name = "torch" if facts.gpus else "cpu"
    yield _note(
        f"{why}, and no environment is built: rows would run with the packages of this one",
        f"`fluxbench env {name}` builds one from the lock, or start Docker",
    )


def images(facts: Facts) -> Iterator[Finding]:
    states = facts.docker.images or {}
    if fresh := [name for name, changed in states.items() if changed == ()]:
        yield _ok(f"images as this checkout builds them: {', '.join(fresh)}")
    for name, changed in states.items():
        if changed:
            yield _problem(
                f"image {name} was built before these were changed: {', '.join(changed)}",
                f"`make image IMAGE={name}` renews it",
            )
    if missing := [name for name, changed in states.items() if changed is None]:
        yield _note(
            f"images that are not here: {', '.join(missing)}",
            "`make bench` and `make phase` get the one that a row needs; `make images` gets all now",
        )


def weights(facts: Facts) -> Iterator[Finding]:
    if all(facts.weights.values()):
        yield _ok("real weights are in the hub's cache at their pinned revisions")
        return
    missing = ", ".join(name for name, cached in facts.weights.items() if not cached)
    if not facts.token:
        yield _note(
            f"real weights are not here ({missing}), and HF_TOKEN is not set",
            "set HF_TOKEN and run `fluxbench fetch`, or measure with WEIGHTS=synthetic",
        )
    elif facts.licence == "refused":
        yield _problem(
            "HF_TOKEN may not read FLUX.1-dev",
            "accept its licence at https://huggingface.co/black-forest-labs/FLUX.1-dev with the account of "
            "the token",
        )
    else:
        heard = "may read FLUX.1-dev" if facts.licence == "granted" else "is set; the hub did not answer"
        yield _note(f"real weights are not here ({missing}); HF_TOKEN {heard}", "`fluxbench fetch`")


def disks(facts: Facts) -> Iterator[Finding]:
    nothing_to_come = {
        "images": all(changed is not None for changed in (facts.docker.images or {}).values()),
        "weights": all(facts.weights.values()),
        "results": False,
    }
    for disk in facts.disks:
        wanted = FREE_GB[disk.purpose]
        free = f"{disk.purpose}: {disk.free_gb:.0f} GB free at {disk.path}"
        if nothing_to_come[disk.purpose] or disk.free_gb >= wanted:
            yield _ok(free)
        elif disk.purpose == "results":
            yield _problem(f"{free}, less than {wanted:.0f}", "free space, or name another --results")
        else:
            move = MOVED_BY[disk.purpose]
            yield _note(f"{free}, less than the {wanted:.0f} that they may take", f"free space, or {move}")


def compiling(facts: Facts) -> Iterator[Finding]:
    """Images bring their own compiler; environments use the machine's."""
    if facts.docker.answers:
        return
    if facts.compiler is None:
        yield _problem("no C++ compiler: torch.compile needs one", "`apt-get install g++`")
    elif not facts.python_headers:
        yield _problem("Python's headers are missing: Triton needs them", "`apt-get install python3-dev`")
    else:
        yield _ok(f"{facts.compiler} and Python's headers for torch.compile")


def left_behind(facts: Facts) -> Iterator[Finding]:
    for container in facts.docker.containers:
        if not container.has_owner:
            yield _left(container)
    for process in facts.orphans:
        yield _problem(f"runner {process.pid} lives without its fan-out", f"`kill {process.pid}`")


def _left(container: Container) -> Finding:
    if container.state == "running":
        return _problem(
            f"container {container.name} runs without its fan-out",
            f"wait for it, or `docker rm --force {container.name}`",
        )
    return _note(
        f"container {container.name} was left ({container.state})",
        "the next run of its row clears it away",
    )
