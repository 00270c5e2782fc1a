"""What measuring costs, and where the time of one request goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import config, stats
from bench.matrix import Row
from bench.runner import overhead
from bench.runner.clock import StageClock
from bench.runner.job import Job


@pytest.fixture(scope="module")
def cost(
    make_row: Callable[..., Row], random_tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory
) -> overhead.Overhead:
    from bench import identity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "TINY_WEIGHTS", random_tiny_flux)
        job = Job(make_row(steps=4), "tiny", config.PROBE, ((1, 1),), tmp_path_factory.mktemp("unused"))
        return overhead.measure(job, pairs=8)


def test_every_prompt_is_served_measured_and_bare(cost: overhead.Overhead) -> None:
    assert cost.pairs == len(cost.bare_seconds) == len(cost.measured_seconds) == 8
    assert cost.bare_p50_seconds == pytest.approx(stats.median(cost.bare_seconds), abs=1e-6)
    assert cost.measured_p50_seconds == pytest.approx(stats.median(cost.measured_seconds), abs=1e-6)
    ratio = cost.measured_p50_seconds / cost.bare_p50_seconds
    assert cost.latency_share == pytest.approx(ratio - 1)
    assert cost.latency_share_ci95 is not None
    assert cost.latency_share_ci95[0] <= cost.latency_share <= cost.latency_share_ci95[1]


def test_on_a_cpu_processor_time_decides(cost: overhead.Overhead) -> None:
    assert cost.judged_by == "processor time"
    share = cost.sampler_cpu_share + cost.load_generator_cpu_share
    assert cost.holds == (share <= config.TELEMETRY.overhead_share == cost.limit_share)
    assert 0 < cost.load_generator_cpu_share < 0.02
    assert 0 <= cost.sampler_cpu_share < 0.05


def test_stages_end_where_the_next_begins_and_a_step_is_the_mean_of_all_but_the_first() -> None:
    clock = StageClock("cpu")
    begun = time.perf_counter()
    for stage, seconds in (("text", 0.01), ("denoise", 0.0), ("decode", 0.02)):
        clock.stage(stage)
        time.sleep(seconds)
        if stage == "denoise":
            for wait in (0.05, 0.01, 0.01):
                time.sleep(wait)
                clock.step()
    clock.stage("end")
    whole = time.perf_counter() - begun
    taken = clock.seconds()
    assert set(taken) == {"text", "denoise", "decode", "step"}
    assert taken["text"] + taken["denoise"] + taken["decode"] == pytest.approx(whole, abs=0.005)
    assert taken["denoise"] >= 0.07
    assert 0.01 <= taken["step"] < 0.03, "the first step, with what comes before it, is not in the mean"


def test_one_step_alone_has_no_mean() -> None:
    clock = StageClock("cpu")
    clock.stage("denoise")
    clock.step()
    clock.stage("end")
    assert "step" not in clock.seconds()
