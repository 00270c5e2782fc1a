"""Which hardware a row fits, and that two campaigns never share a GPU. NVML is a fake module object here;
leases are real locks held by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import fake_row

from bench.hardware import GPUS
from bench.host import leases
from bench.host.gpus import Gpu, GpuError, candidates, imagined, inventory, misfit, only_visible
from bench.host.local import runner_environment

H100 = "NVIDIA H100 80GB HBM3"


def gpu(index: int, name: str = H100, gb: float = 85.5, mig: bool | None = False) -> Gpu:
    return Gpu(index, name, f"GPU-{index:08x}-aaaa", int(gb * 1e9), mig)


class NvmlError(Exception):
    pass


class NotFound(NvmlError):
    pass


class NotLoaded(NvmlError):
    pass


class NotSupported(NvmlError):
    pass


def fake_nvml(gpus: list[Gpu], failing: Exception | None = None) -> Any:
    def init() -> None:
        if failing:
            raise failing

    def mig_mode(index: int) -> list[int]:
        mode = gpus[index].mig
        if mode is None:
            raise NotSupported
        return [int(mode), int(mode)]

    return SimpleNamespace(
        NVMLError=NvmlError,
        NVMLError_LibraryNotFound=NotFound,
        NVMLError_DriverNotLoaded=NotLoaded,
        NVMLError_NotSupported=NotSupported,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: gpus[index].name,
        nvmlDeviceGetUUID=lambda index: gpus[index].uuid,
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=gpus[index].memory_bytes),
        nvmlDeviceGetMigMode=mig_mode,
    )


pytestmark = pytest.mark.usefixtures("own_leases")


def test_inventory_reads_what_nvml_says_of_each_gpu() -> None:
    gpus = [gpu(0), gpu(1, "NVIDIA A100-SXM4-80GB", 85.9, None)]
    assert inventory(None, fake_nvml(gpus)) == gpus


@pytest.mark.parametrize("missing", [NotFound(), NotLoaded()])
def test_a_machine_without_driver_has_no_gpu_and_that_is_no_error(missing: Exception) -> None:
    assert inventory(None, fake_nvml([], missing)) == []


def test_a_driver_that_fails_is_an_error_and_not_an_empty_machine() -> None:
    with pytest.raises(GpuError, match="version mismatch"):
        inventory(None, fake_nvml([], NvmlError("Driver/library version mismatch")))


def test_a_schedulers_cuda_visible_devices_limits_what_rows_may_use() -> None:
    gpus = [gpu(index) for index in range(4)]
    assert only_visible(gpus, "2,0") == [gpus[2], gpus[0]]
    assert only_visible(gpus, gpus[3].uuid[:14]) == [gpus[3]]
    assert only_visible(gpus, "") == []
    assert only_visible(gpus, "1,9,2") == [gpus[1]], "CUDA stops at the first entry that names no GPU"
    assert only_visible(gpus, "GPU-0000") == [], "an ambiguous prefix names no GPU"


@pytest.mark.parametrize(
    ("name", "kind", "same"),
    [
        (H100, "h100", True),
        ("NVIDIA H100 PCIe", "h100", True),
        ("NVIDIA A100-SXM4-80GB", "a100", True),
        ("NVIDIA GH200 480GB", "h200", False),
        ("NVIDIA H200", "h100", False),
        ("NVIDIA GeForce RTX 4090", "rtx4090", True),
        ("NVIDIA L4", "l40", False),
    ],
)
def test_a_kind_of_gpu_is_known_by_whole_words_of_its_name(name: str, kind: str, same: bool) -> None:
    assert gpu(0, name).is_kind(kind) is same


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        (H100, "SXM"),
        ("NVIDIA H100 PCIe", "PCIe"),
        ("NVIDIA H100 NVL", "NVL"),
        ("NVIDIA H200", "SXM"),
        ("NVIDIA H200 NVL", "NVL"),
        ("NVIDIA A100-SXM4-80GB", "SXM"),
        ("NVIDIA A100 80GB PCIe", "PCIe"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_variant_of_a_gpu_is_read_from_its_name(name: str, variant: str | None) -> None:
    assert gpu(0, name).variant == variant


def test_a_row_never_runs_on_gpus_of_two_variants() -> None:
    mixed = [gpu(0, "NVIDIA H100 PCIe"), gpu(1), gpu(2)]
    assert [each.index for each in candidates(fake_row(hardware="h100x2", parallel="replicas"), mixed)] == [
        1,
        2,
    ]
    assert misfit(fake_row(hardware="h100x4", parallel="replicas"), [*mixed, gpu(3, "NVIDIA H100 PCIe")])


def test_a_row_fits_a_machine_with_at_least_as_many_gpus_of_its_kind() -> None:
    eight = [gpu(index) for index in range(8)]
    assert misfit(fake_row(hardware="h100x1"), eight) is None
    assert misfit(fake_row(hardware="h100x8", parallel="replicas"), eight) is None
    assert misfit(fake_row(hardware="cpu"), []) is None
    assert misfit(fake_row(hardware="cpu"), eight) is None
    too_few = misfit(fake_row(hardware="h100x8", parallel="replicas"), eight[:4])
    assert too_few is not None
    assert "8 x h100" in too_few
    assert "no GPU" in str(misfit(fake_row(hardware="h100x1"), []))


def test_sliced_and_smaller_gpus_do_not_stand_in_for_the_plans() -> None:
    assert "MIG" in str(misfit(fake_row(hardware="h100x1"), [gpu(0, mig=True)]))
    forty = gpu(0, "NVIDIA A100-SXM4-40GB", 42.9)
    assert "75 GB" in str(misfit(fake_row(hardware="a100x1"), [forty]))
    assert candidates(fake_row(hardware="a100x1"), [forty, gpu(1, "NVIDIA A100-SXM4-80GB", 85.9)])


@pytest.mark.parametrize("kind", [*GPUS, "b200"])
def test_an_imagined_machine_has_what_its_rows_want(kind: str) -> None:
    assert misfit(fake_row(hardware=f"{kind}x2"), imagined(kind, 2)) is None


def test_the_runner_gets_the_callers_environment_and_its_gpus_by_uuid() -> None:
    caller = {"NCCL_DEBUG": "INFO", "HF_TOKEN": "x", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert runner_environment(caller, ("GPU-a", "GPU-b")) == {**caller, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert runner_environment(caller, ()) == caller


# --- Leases ------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from bench.hardware import GPUS
from bench.host import leases
lease = leases.take(sys.argv[1].split(","), int(sys.argv[2]), "the other campaign")
print("held", *lease.names, flush=True)
time.sleep(60)
"""


def holder(names: str, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, names, str(count)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("held")
    return process


def test_a_gpu_held_by_another_process_is_refused_by_name_and_another_one_is_taken() -> None:
    other = holder("GPU-a,GPU-b", 1)
    try:
        with pytest.raises(leases.Busy, match=f"process {other.pid} .*the other campaign"):
            leases.take(["GPU-a"], 1, "me")
        with leases.take(["GPU-a", "GPU-b", "GPU-c"], 2, "me") as lease:
            assert lease.names == ("GPU-b", "GPU-c")
    finally:
        other.kill()
        other.wait()


def test_a_lease_is_taken_whole_or_not_at_all() -> None:
    other = holder("GPU-b", 1)
    try:
        with pytest.raises(leases.Busy):
            leases.take(["GPU-a", "GPU-b"], 2, "me")
        leases.take(["GPU-a"], 1, "me").release()
    finally:
        other.kill()
        other.wait()


def test_a_killed_holder_leaves_nothing_to_clean_up_and_waiting_gets_the_gpu() -> None:
    other = holder("GPU-a", 1)
    os.kill(other.pid, signal.SIGKILL)
    begun = time.monotonic()
    leases.take(["GPU-a"], 1, "me", wait_seconds=10).release()
    assert time.monotonic() - begun < 5
    other.wait()


def takes_as_another_user(name: str) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os.setuid(12345)
            leases.take([name], 1, "another user").release()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_users_of_one_machine_lease_the_same_gpus_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        leases.take(["GPU-a"], 1, "root").release()
        assert takes_as_another_user("GPU-a")
        assert takes_as_another_user("GPU-b")
        leases.take(["GPU-a", "GPU-b"], 2, "root again").release()


def test_a_runner_that_outlives_its_killed_fan_out_keeps_the_gpu() -> None:
    lease = leases.take(["GPU-a"], 1, "me")
    runner = subprocess.Popen(["sleep", "60"], pass_fds=lease.descriptors)
    lease.release()
    try:
        with pytest.raises(leases.Busy):
            leases.take(["GPU-a"], 1, "me")
    finally:
        runner.kill()
        runner.wait()
    leases.take(["GPU-a"], 1, "me").release()
