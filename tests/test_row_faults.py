"""A row that does not go well leaves an honest result with what was finished, whatever happened."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_rows import Start, breaking, codes, lines, on_disk, raising, start

from bench import config, layout
from bench.axes import AXES
from bench.axes.option import NotApplied
from bench.matrix import Row
from bench.record import Code, Result
from bench.runner import models, telemetry

__all__ = ["start"]  # a fixture


def test_an_option_without_evidence_ends_the_row_before_anything_is_measured(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(_: object) -> dict[str, Any]:
        raise NotApplied("vae full: the decoder was not called")

    monkeypatch.setitem(AXES["vae"], "full", replace(AXES["vae"]["full"], verify=verify))
    result = start(((1, 1), (4, 1)))
    assert result.status.code is Code.NOT_APPLIED
    assert "vae full" in result.status.reason
    assert codes(result) == {(1, 1): Code.NOT_APPLIED, (4, 1): Code.NOT_APPLIED}
    assert all(cell.latency is None for cell in result.cells)
    assert not any(phase.name.startswith("cell") for phase in result.phases)


def test_what_this_machine_lacks_is_unavailable_and_named(start: Start, make_row: Callable[..., Row]) -> None:
    result = start(row=make_row(hardware="h100x1", model="tiny", steps=2))
    assert result.status.code is Code.UNAVAILABLE
    assert "1 x h100" in result.status.reason
    assert result.cells[0].status.code is Code.UNAVAILABLE


def test_a_package_that_is_missing_ends_the_row_before_weights_are_loaded(
    start: Start, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = start(row=make_row(model="tiny", quantization="gguf-q8_0", steps=2))
    assert result.status.code is Code.UNAVAILABLE
    assert "quantization gguf-q8_0 needs the package gguf" in result.status.reason
    assert [phase.name for phase in result.phases] == ["idle", "imports"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 64 GB")],
)
def test_out_of_memory_costs_its_cell_and_no_other(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    breaking(monkeypatch, images=2, strike=raising(error))
    result = start(((1, 1), (1, 2), (4, 1)))
    assert codes(result) == {(1, 1): Code.OK, (1, 2): Code.OOM, (4, 1): Code.OK}
    assert result.status.code is Code.OOM
    assert "1x2" in result.status.reason
    assert result.cells[1].latency is None


def test_a_long_reason_is_cut_and_says_so_but_not_what_cuda_says_of_its_memory() -> None:
    from bench.runner import judge

    reason = judge.status_of(RuntimeError("memory " * 500)).reason
    assert reason.startswith("RuntimeError: memory")
    assert "memory me …; log.txt holds the whole traceback" in reason
    assert len(reason) < 900
    told = "CUDA out of memory. " + "y " * 250 + "expandable_segments:True"
    assert "expandable_segments:True" in judge.status_of(RuntimeError(told)).reason


def test_cuda_out_of_memory_is_told_from_a_bug() -> None:
    import torch

    from bench.runner import judge

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
    assert judge.status_of(error).code is Code.OOM
    assert judge.status_of(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")).code is Code.OOM
    crash = judge.status_of(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert crash.code is Code.CRASHED
    assert crash.log_tail


@pytest.mark.parametrize(
    "said",
    [
        "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
        "NumCudaDevices() that might have already set an error? Error 802: system not yet initialized",
        "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_a_driver_that_fails_under_a_row_is_the_machines_fault_and_ends_it(said: str) -> None:
    """A crash would stand for ever: it is never tried again."""
    from bench.runner import judge

    status = judge.status_of(RuntimeError(said))
    assert status.code is Code.INFRA
    assert "nvidia-fabricmanager" in status.reason
    assert judge.ends_row(RuntimeError(said))


def test_a_request_that_raises_halfway_counts_nothing_of_its_cell(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    breaking(monkeypatch, images=2, strike=raising(ValueError("bad shape")), after=config.WARMUP.minimum + 2)
    result = start(((1, 1), (1, 2), (4, 1)))
    assert codes(result) == {(1, 1): Code.OK, (1, 2): Code.CRASHED, (4, 1): Code.OK}
    failed = result.cells[1]
    assert (failed.n, failed.latency) == (0, None)
    assert "ValueError: bad shape" in failed.status.reason
    assert any("bad shape" in line for line in failed.status.log_tail)
    assert len([r for r in lines(tmp_path / "attempt" / layout.REQUESTS) if r["cell"] == "1x2"]) > 0


def poisoned(value: float) -> Callable[[Any], None]:
    """A decoder whose last layer returns this one number, whatever it is fed."""

    def poison(pipe: Any) -> None:
        import torch

        with torch.no_grad():
            pipe.vae.decoder.conv_out.weight.zero_()
            pipe.vae.decoder.conv_out.bias.fill_(value)

    return poison


@pytest.mark.parametrize("value", [float("nan"), 0.2])
def test_nan_and_flat_images_are_no_measurement(
    start: Start, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    load = models.load

    def loading(*arguments: Any) -> models.Loaded:
        loaded = load(*arguments)
        poisoned(value)(loaded.pipe)
        return loaded

    monkeypatch.setattr(models, "load", loading)
    result = start(((1, 1), (1, 2)))
    assert set(codes(result).values()) == {Code.INVALID_OUTPUT}
    assert result.status.code is Code.INVALID_OUTPUT
    assert all(cell.latency is None for cell in result.cells)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_row_keeps_its_finished_cells(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    breaking(monkeypatch, images=2, strike=lambda: os.kill(os.getpid(), number), after=3)
    result = start(((1, 1), (1, 2), (4, 1)))
    assert result.status.code is Code.INTERRUPTED
    assert number.name in result.status.reason
    assert codes(result) == {(1, 1): Code.OK, (1, 2): Code.INTERRUPTED, (4, 1): Code.INTERRUPTED}
    assert result.cells[0].latency is not None
    assert on_disk(tmp_path) == result
    assert signal.getsignal(number) == before


def test_until_it_ends_the_file_says_interrupted_and_holds_what_is_finished(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Result] = []
    breaking(monkeypatch, images=2, strike=lambda: seen.append(on_disk(tmp_path)))
    assert start(((1, 1), (1, 2))).status.code is Code.OK
    for meanwhile in seen:
        assert meanwhile.status.code is Code.INTERRUPTED
        assert meanwhile.environment is not None
        assert codes(meanwhile) == {(1, 1): Code.OK}
        assert meanwhile.cells[0].latency is not None


def test_a_full_disk_ends_the_row_but_not_what_is_finished(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    (attempt / layout.REQUESTS).symlink_to("/dev/full")
    result = start(((1, 1), (4, 1)))
    assert result.status.code is Code.INFRA
    assert "No space left" in result.status.reason
    assert set(codes(result).values()) == {Code.INFRA}


def test_a_throttled_window_is_discarded_once_and_then_unstable(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = telemetry.Sample(0.0, "GPU-1", {"clock_event_reasons": float(0x40)})
    monkeypatch.setattr(telemetry.Telemetry, "window", lambda *_: [hot])
    monkeypatch.setattr(config, "TELEMETRY", replace(config.TELEMETRY, cool_down_seconds=0.01))
    result = start()
    names = [phase.name for phase in result.phases]
    assert names[-3:] == ["cell 1x1", "cool-down", "cell 1x1"]
    assert result.status.code is Code.UNSTABLE
    assert "100.0% of samples" in result.status.reason
    assert result.cells[0].latency is not None, "kept, and marked"
    assert result.stability is not None
    assert result.stability.throttled_share == 1.0


def test_a_window_that_slows_down_is_unstable_and_one_that_only_wobbles_is_not() -> None:
    from bench.runner import window

    steadily = [1.0 + step / 50 for step in range(18)]
    wobbling = [1.0, 1.2, 0.9, 1.1, 0.95, 1.15] * 3
    assert window._status(steadily, None, settled=True).code is Code.UNSTABLE
    assert window._status(wobbling, None, settled=True).code is Code.OK
    assert window._status([1.0] * 13, None, settled=False).code is Code.UNSTABLE
