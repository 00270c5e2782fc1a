"""Where a request's GPU time goes: kernels told apart by name, summed, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import fake_cell, fake_result, fake_row

from bench import record
from bench.config import BUDGETS, PROBE, QUICK, Budget
from bench.kernel_kinds import HINTS, KINDS, kind_of
from bench.report import side_tables
from bench.report.chart_data import kernel_rows
from bench.report.gpu_time import gpu_time
from bench.report.groups import sections
from bench.report.load import Attempt
from bench.report.pool import Measurement, measurements
from bench.runner.diary import Diary
from bench.runner.job import Job
from bench.runner.profile import TOP_KERNELS, Kernel, summary
from bench.runner.server import Server
from bench.runner.worker import Worker

MS = 1_000_000


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<...>>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_128x128x64", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_bias_TNN", "gemm"),
        ("void gemvx::kernel<int, int, __nv_bfloat16, ...>", "gemm"),
        ("triton_tem_fused_addmm_12", "gemm"),
        ("triton_red_fused__scaled_mm_abs_amax_clamp_div_3", "elementwise"),
        ("triton_poi_fused_convolution_silu_5", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "elementwise"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("Memcpy DtoH (Device -> Pinned)", "copy"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "communication"),
    ],
)
def test_a_kernel_is_told_by_its_name(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_every_kind_of_kernel_has_a_column() -> None:
    assert set(HINTS) == set(KINDS)


def test_kernels_side_by_side_make_the_gpu_busy_once_but_count_each_in_their_kind() -> None:
    profile = summary(
        [
            Kernel("nvjet_a", 0, 4 * MS),
            Kernel("nccl_b", 2 * MS, 4 * MS),  # overlaps the product by 2 ms
            Kernel("nvjet_a", 10 * MS, 1 * MS),  # after 4 ms in which nothing ran
            Kernel("Memcpy DtoH", 10 * MS, MS // 2),  # inside the product
        ],
        request_seconds=0.02,
    )
    assert profile.busy_seconds == pytest.approx(0.007)
    assert profile.seconds_by_kind == pytest.approx({"gemm": 0.005, "communication": 0.004, "copy": 0.0005})
    assert profile.launches == 4
    assert [(top.name, top.calls) for top in profile.top][:2] == [("nvjet_a", 2), ("nccl_b", 1)]


def test_only_the_longest_kernels_are_named() -> None:
    kernels = [Kernel(f"kernel_{index}", index * MS, index) for index in range(TOP_KERNELS + 5)]
    top = summary(kernels, request_seconds=1.0).top
    assert len(top) == TOP_KERNELS
    assert [kernel.seconds for kernel in top] == sorted((k.seconds for k in top), reverse=True)


def profiled(busy_seconds: float) -> Measurement:
    result = fake_result(fake_row(), cells=[fake_cell(1, 1, n=36, median_seconds=5.0)])
    result.profile = record.Profile(
        request_seconds=6.0,
        busy_seconds=busy_seconds,
        launches=80_000,
        seconds_by_kind={"gemm": 3.0, "attention": 1.0, "elementwise": busy_seconds - 4.0},
        top=[],
    )
    (measurement,) = measurements([Attempt(Path(), fake_row(), result, None)])
    return measurement


def test_the_time_without_a_kernel_is_told_against_the_unprofiled_request() -> None:
    measurement = profiled(busy_seconds=4.5)
    service = measurement.cells[1, 1].medians["service"]
    spent = gpu_time(measurement)
    assert spent is not None
    assert spent.idle_seconds == pytest.approx(service - 4.5)
    kinds = {row["kind"]: row["seconds"] for row in kernel_rows([measurement]) if "kind" in row}
    assert kinds["gemm"] == 3.0
    assert kinds["idle"] == pytest.approx(service - 4.5, abs=1e-6)


def test_a_gpu_busy_for_longer_than_the_request_took_has_no_idle_time_rather_than_none_at_all() -> None:
    measurement = profiled(busy_seconds=5.5)
    spent = gpu_time(measurement)
    assert spent is not None
    assert spent.service_seconds is not None
    assert spent.service_seconds < 5.5
    assert spent.idle_seconds is None
    (section,) = sections([measurement])
    table = side_tables.kernels(section, section.use_cases[0])
    (line,) = table.lines
    shown = dict(zip([column.title for column in table.columns], line.entries, strict=True))
    assert (shown["GPU idle (s)"].text, shown["GPU idle (s)"].sort) == ("–", None)


def test_the_table_shows_each_kind_and_leaves_out_rows_without_a_profile() -> None:
    (section,) = sections([profiled(busy_seconds=4.5)])
    (case,) = section.use_cases
    table = side_tables.kernels(section, case)
    (line,) = table.lines
    shown = dict(zip([column.title for column in table.columns], line.entries, strict=True))
    assert shown["Gemm (s)"].sort == 3.0
    assert shown["Convolution (s)"].sort is None
    assert shown["Launches"].text == "80000"


def test_a_profiler_that_fails_costs_the_profile_and_not_the_cells(tmp_path: Path) -> None:
    job = Job(fake_row(), "synthetic", BUDGETS["quick"], ((1, 1),), tmp_path)
    diary = Diary(tmp_path, fake_result(cells=[fake_cell(1, 1)]))
    nothing_loaded = Worker(job.row, job.weights, "cuda", image_digest=None)
    server = Server(job, diary, nothing_loaded, sampling=None, devices=[])
    server.profile()
    assert diary.result.profile is None
    assert [anomaly.kind for anomaly in diary.result.anomalies] == ["no_profile"]
    assert diary.result.cells


@pytest.mark.parametrize(
    ("budget", "asked", "paid"),
    [
        (PROBE, None, False),
        (QUICK, None, True),
        (PROBE, True, True),
        (QUICK, False, False),
    ],
)
def test_the_budget_says_whether_a_request_is_profiled_unless_somebody_else_does(
    budget: Budget, asked: bool | None, paid: bool
) -> None:
    assert Job(fake_row(), "tiny", budget, ((1, 1),), Path(), profile=asked).profiled is paid
