"""``fluxbench doctor``: what it says of machines that are given to it, and of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from docker_engine import cpu_image, daemon, standin_image

from bench.cli import main
from bench.host import leases
from bench.host.doctor import Finding, Level, examine
from bench.host.facts import (
    Container,
    Disk,
    Docker,
    Facts,
    GpuUse,
    Link,
    cuda_error,
    gather,
    image_root,
    links_of,
    use_of,
)
from bench.host.gpus import Gpu
from bench.host.processes import Process
from bench.images import IMAGES
from bench.runner.published import published

__all__ = ["cpu_image", "daemon", "standin_image"]  # fixtures

TWO_H100 = tuple(GpuUse(Gpu(i, "NVIDIA H100 80GB HBM3", f"GPU-{i}", int(85e9), False), 0.0) for i in range(2))

READY = Facts(
    driver="580.95.05",
    driver_error="",
    cuda_error="",
    gpus=TWO_H100,
    links=(Link(0, 1, True, True),),
    locked_cuda="13.0.96",
    docker=Docker(True, True, True, dict.fromkeys(IMAGES, ())),
    environments=(),
    disks=(Disk("images", Path("/var/lib/docker"), 200), Disk("results", Path("results"), 200)),
    weights={"weights": True, "controlnet": True},
    token=True,
    licence="not asked",
    compiler="/usr/bin/g++",
    python_headers=True,
    shared_memory_gb=16.0,
    variables={},
    orphans=(),
    leases=(),
)
NO_DOCKER = Docker(installed=False)


def said(facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts) if finding.level is not Level.OK]


def test_a_machine_that_lacks_nothing_is_told_what_it_has() -> None:
    findings = examine(READY)
    assert {finding.level for finding in findings} == {Level.OK}
    text = "\n".join(finding.what for finding in findings)
    assert "2 x NVIDIA H100 80GB HBM3 (SXM)" in text
    assert "NVLink between all 2 GPUs" in text


def gpu(**changes: Any) -> tuple[GpuUse, ...]:
    use = {name: changes.pop(name) for name in ("used_gb", "processes", "persistent") if name in changes}
    return (replace(TWO_H100[0], gpu=replace(TWO_H100[0].gpu, **changes), **use), TWO_H100[1])


@pytest.mark.parametrize(
    ("changes", "level", "what", "do"),
    [
        ({"driver": "570.124.06"}, "problem", "needs 580 or newer", "newer driver"),
        ({"driver_error": "version mismatch"}, "problem", "version mismatch", "nvidia-smi"),
        (
            {"cuda_error": "system not yet initialized (802)"},
            "problem",
            "CUDA does not begin",
            "fabricmanager",
        ),
        ({"driver": None, "gpus": (), "links": ()}, "note", "rows of hardware cpu", "machine with GPUs"),
        ({"gpus": gpu(mig=True)}, "problem", "MIG mode is on", "nvidia-smi -i 0 -mig 0"),
        ({"gpus": gpu(name="NVIDIA H100 PCIe")}, "note", "several models", "CUDA_VISIBLE_DEVICES"),
        ({"gpus": gpu(persistent=False)}, "note", "GPU 0: persistence mode is off", "nvidia-smi -pm 1"),
        ({"gpus": gpu(processes=(Process(77, "python"),))}, "problem", "process 77 (python)", "end them"),
        ({"gpus": gpu(used_gb=30.0)}, "problem", "30.0 GB in use", "another container"),
        ({"links": (Link(0, 1, True, False),)}, "note", "no NVLink between 0-1 (1 of 1 pairs)", "PCIe"),
        ({"links": (Link(0, 1, False, True),)}, "note", "no peer access between 0-1", "ACS"),
        ({"variables": {"NCCL_P2P_DISABLE": "1"}}, "problem", "half their scaling", "unset NCCL_P2P_DISABLE"),
        ({"variables": {"NCCL_P2P_LEVEL": "LOC"}}, "problem", "half their scaling", "unset NCCL_P2P_LEVEL"),
        ({"shared_memory_gb": 0.06}, "problem", "0.06 GB free, too little for NCCL", "--shm-size"),
        ({"docker": replace(READY.docker, gives_gpus=False)}, "problem", "toolkit", "nvidia-ctk runtime"),
        ({"docker": NO_DOCKER}, "note", "Docker is not installed", "fluxbench env torch"),
        ({"docker": NO_DOCKER, "compiler": None}, "problem", "no C++ compiler", "g++"),
        ({"docker": NO_DOCKER, "python_headers": False}, "problem", "headers", "python3-dev"),
        (
            {"docker": replace(READY.docker, images={"torch": ("docker/torch/Dockerfile",)})},
            "problem",
            "docker/torch/Dockerfile",
            "make image IMAGE=torch",
        ),
        (
            {"docker": replace(READY.docker, images={"torch": (), "xdit": None})},
            "note",
            "not here: xdit",
            "make images",
        ),
        ({"weights": {"weights": False}, "token": False}, "note", "HF_TOKEN is not set", "fluxbench fetch"),
        (
            {"weights": {"weights": False}, "licence": "refused"},
            "problem",
            "may not read FLUX.1-dev",
            "accept its licence",
        ),
        ({"weights": {"weights": False}, "licence": "granted"}, "note", "may read", "`fluxbench fetch`"),
        (
            {"disks": (Disk("images", Path("c"), 9.0),), "docker": Docker(True, True, True, {"torch": None})},
            "note",
            "9 GB free at c",
            "containerd/config.toml",
        ),
        ({"disks": (Disk("results", Path("r"), 1.0),)}, "problem", "1 GB free at r", "--results"),
        (
            {
                "disks": (Disk("weights", Path("h"), 9.0),),
                "weights": {"weights": False},
                "licence": "granted",
            },
            "note",
            "9 GB free at h",
            "HF_HUB_CACHE",
        ),
        (
            {
                "docker": replace(
                    READY.docker, containers=(Container("fluxbench-row-0042", "running", False),)
                )
            },
            "problem",
            "runs without its fan-out",
            "docker rm --force fluxbench-row-0042",
        ),
        (
            {"docker": replace(READY.docker, containers=(Container("row-0042", "exited", False),))},
            "note",
            "was left (exited)",
            "clears it away",
        ),
        ({"orphans": (Process(4242, "python"),)}, "problem", "runner 4242", "kill 4242"),
        ({"leases": ("GPU-0: process 7 (fluxbench)",)}, "note", "leased: GPU-0: process 7", "--wait"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    changes: dict[str, Any], level: str, what: str, do: str
) -> None:
    found = [finding for finding in said(replace(READY, **changes)) if what in finding.what]
    assert [finding.level for finding in found] == [level], said(replace(READY, **changes))
    assert do in found[0].do


def test_nothing_is_wrong_with_a_container_whose_fan_out_lives_or_a_full_disk_that_nothing_comes_to() -> None:
    running = Container("fluxbench-row-0042", "running", has_owner=True)
    full = (Disk("images", Path("/var/lib/docker"), 0.5), Disk("results", Path("results"), 200))
    assert said(replace(READY, docker=replace(READY.docker, containers=(running,)), disks=full)) == []


LIBCUDA = """
static const char *text = "system not yet initialized";
int cuInit(unsigned flags) { return RESULT; }
int cuGetErrorString(int code, const char **found) { *found = text; return code != 802; }
"""


@pytest.mark.parametrize(("result", "said"), [(0, ""), (802, "system not yet initialized (802)")])
def test_cuda_is_asked_to_begin_and_what_it_says_is_kept(tmp_path: Path, result: int, said: str) -> None:
    """A library that answers as the driver's would."""
    source, library = tmp_path / "cuda.c", tmp_path / f"libcuda-{result}.so"
    source.write_text(LIBCUDA)
    command = ["cc", "-shared", "-fPIC", f"-DRESULT={result}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    assert cuda_error(str(library)) == said
    assert "libnone.so" in cuda_error(str(tmp_path / "libnone.so"))


class Unsupported(Exception):
    pass


def test_use_and_links_are_read_from_nvml_and_what_it_does_not_know_is_none() -> None:
    def peers(first: str, second: str, capability: int) -> int:
        if capability == 2:
            raise Unsupported
        return 0

    nvml = SimpleNamespace(
        NVMLError=Unsupported,
        NVML_P2P_STATUS_OK=0,
        NVML_P2P_CAPS_INDEX_NVLINK=2,
        nvmlMemory_v2=2,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetP2PStatus=peers,
        nvmlDeviceGetMemoryInfo=lambda handle, version: SimpleNamespace(used=2_000_000_000),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=os.getpid())],
        NVML_FEATURE_ENABLED=1,
        nvmlDeviceGetPersistenceMode=lambda handle: 0,
    )
    gpus = [use.gpu for use in TWO_H100]
    assert list(links_of(nvml, gpus)) == [Link(0, 1, True, None)]
    use = use_of(nvml, gpus[0])
    assert use.used_gb == 2.0
    assert use.persistent is False
    assert use.processes[0].pid == os.getpid()
    assert use.processes[0].name != "?"


# --- This machine -----------------------------------------------------------------------------------


ORPHAN = "import os, sys, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(60)"


def test_an_orphaned_runner_and_a_held_lease_of_this_machine_are_found(
    own_leases: None, tmp_path: Path
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, "--attempt-dir=x"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.wait()
    try:
        with leases.take(["GPU-a"], 1, "a test"):
            facts = gather(tmp_path, {})
    finally:
        os.kill(pid, 9)
    assert facts.leases == (f"GPU-a: process {os.getpid()} (a test)",)
    if Path(f"/proc/{pid}").exists() and not facts.orphans:
        pytest.skip("a process that adopts orphans stands between the first one and this test")
    assert pid in [process.pid for process in facts.orphans]
    assert leases.held() == []


def test_the_command_runs_here_keeps_the_token_to_itself_and_its_exit_code_says_whether_to_begin(
    own_leases: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.host.facts._licence", lambda token: "no answer")
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_shown")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    ran = CliRunner().invoke(main, ["doctor", "--results", str(tmp_path)])
    assert "the hub did not answer" in ran.output
    assert "hf_not_to_be_shown" not in ran.output
    assert "GB free at" in ran.output
    assert ran.exit_code == int("problem " in ran.output)


STANDIN_DOCKER = """#!/bin/sh
echo "$1" >> {asked}
case "$1" in
version) echo 28.5 ;;
info) echo '{{"Runtimes": {{"nvidia": {{}}}}, "DockerRootDir": "{root}"}}' ;;
image) echo "Error: No such image: $3" >&2; exit 1 ;;
esac
"""


def test_the_daemon_is_asked_once_for_its_runtimes_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, docker = tmp_path / "asked", tmp_path / "docker"
    docker.write_text(STANDIN_DOCKER.format(asked=asked, root=tmp_path))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    facts = gather(tmp_path, {})
    assert facts.docker.gives_gpus
    assert ("images", tmp_path) in [(disk.purpose, disk.path) for disk in facts.disks]
    assert asked.read_text().split().count("info") == 1


def test_weights_whose_fetching_was_cut_off_are_not_there(tmp_path: Path) -> None:
    """The client lists a repository's files before it fetches the first."""
    from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

    source = published("transformer")
    repository = tmp_path / f"models--{source.repository.replace('/', '--')}"
    fetched = repository / "snapshots" / source.revision
    weights = fetched / "vae" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    (fetched / "model_index.json").write_text("{}")
    listed = ["model_index.json", "vae/diffusion_pytorch_model.safetensors", "flux1-dev.safetensors"]
    write_tree_cache(
        str(repository), source.revision, {name: TreeCacheEntry(size=1, blob_id="b" * 40) for name in listed}
    )
    assert not gather(tmp_path, {"HF_HUB_CACHE": str(tmp_path)}).weights["weights"]
    weights.write_bytes(b"1")
    assert gather(tmp_path, {"HF_HUB_CACHE": str(tmp_path)}).weights["weights"]


def test_images_are_where_containerd_has_them_once_it_stores_them(tmp_path: Path) -> None:
    """As `docker info` of Docker 29 says it, and of older ones."""
    moved = tmp_path / "config.toml"
    moved.write_text('version = 3\nroot = "/data/containerd"\n')
    plain = {"DockerRootDir": "/data/docker", "DriverStatus": [["Backing Filesystem", "extfs"]]}
    system = {"Address": "/run/containerd/containerd.sock"}
    stored = {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]], "Containerd": system}
    own = {**stored, "Containerd": {"Address": "/var/run/docker/containerd/containerd.sock"}}
    assert image_root(plain, moved) == Path("/data/docker")
    assert image_root(plain | stored, moved) == Path("/data/containerd")
    assert image_root(plain | stored, tmp_path / "none.toml") == Path("/var/lib/containerd")
    assert image_root(plain | own, moved) == Path("/data/docker")
    assert image_root({}, moved) is None


@pytest.mark.docker
def test_a_container_that_was_left_is_found(cpu_image: str) -> None:
    name = "fluxbench-row-0042-left"
    label = "--label=fluxbench.row=42"
    subprocess.run(["docker", "create", f"--name={name}", label, cpu_image, "true"], check=True)
    try:
        facts = gather(Path("results"), os.environ)
    finally:
        subprocess.run(["docker", "rm", name], check=True)
    assert Container(name, "created", False) in facts.docker.containers
    assert facts.docker.images is not None
    assert facts.docker.images["cpu"] == ()
