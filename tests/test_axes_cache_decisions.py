"""Which steps are computed: the arithmetic, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.axes.cache.decisions import first_block_cache, replay, replay_schedule, rescaled, teacache
from bench.matrix import Row
from bench.rules import refusal

MakeRow = Callable[..., Row]


@given(steps=st.integers(1, 200), skip_percent=st.integers(0, 100))
def test_a_schedule_computes_both_ends_skips_its_share_and_spreads_it(steps: int, skip_percent: int) -> None:
    schedule = replay_schedule(steps, skip_percent)
    assert len(schedule) == steps
    assert schedule[0]
    assert schedule[-1]
    asked = steps * skip_percent / 100
    assert schedule.count(False) == min(math.floor(asked + 0.5), max(steps - 2, 0))
    computed = [step for step, is_computed in enumerate(schedule) if is_computed]
    gaps = [later - earlier for earlier, later in pairwise(computed)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_schedules_of_28_steps_are_these() -> None:
    """They stand in published rows: another spread is another option."""
    computed = {
        percent: [step for step, is_computed in enumerate(replay_schedule(28, percent)) if is_computed]
        for percent in (50, 65)
    }
    assert computed == {
        50: [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27],
        65: [0, 3, 6, 9, 12, 15, 18, 21, 24, 27],
    }


@given(
    distances=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    threshold=st.floats(0, 1),
)
def test_first_block_cache_skips_what_is_at_most_the_threshold_away(
    distances: list[float], threshold: float
) -> None:
    decide = first_block_cache(threshold).decider(len(distances) + 1)
    assert decide(0, None)
    for step, distance in enumerate(distances, start=1):
        assert decide(step, distance) == (distance > threshold)


def test_what_is_not_a_number_is_computed() -> None:
    """diffusers skips it, for NaN is not above a threshold, and so for ever."""
    assert first_block_cache(0.2).decider(4)(1, math.nan)
    assert teacache(0.6).decider(4)(1, math.nan)


def test_the_polynomial_has_teacaches_values() -> None:
    assert rescaled(0) == 0.264230861
    assert rescaled(0.1) == pytest.approx(0.2068474, abs=1e-6)
    assert rescaled(0.3) == pytest.approx(0.5221304, abs=1e-6)


def test_teacache_sums_distances_from_the_last_computed_step() -> None:
    decide = teacache(0.45).decider(8)
    distances = [None, *[0.1] * 7]
    assert [decide(step, distance) for step, distance in enumerate(distances)] == [
        True, False, False, True, False, False, True, True,
    ]  # fmt: skip


def test_teacache_computes_the_last_step_however_near_it_is() -> None:
    decide = teacache(100.0).decider(4)
    assert [decide(step, None if step == 0 else 0.01) for step in range(4)] == [True, False, False, True]


def test_requests_have_decisions_of_their_own() -> None:
    method = teacache(0.45)
    one, other = method.decider(8), method.decider(8)
    assert [one(0, None), one(1, 0.1), one(2, 0.1)] == [True, False, False]
    assert [other(0, None), other(1, 0.1), other(2, 0.1)] == [True, False, False]


@given(distances=st.lists(st.floats(0, 10), min_size=3, max_size=30))
def test_a_replay_decides_the_same_whatever_it_measures(distances: list[float]) -> None:
    steps = len(distances) + 1
    decide = replay(50).decider(steps)
    measured: list[Any] = [None, *distances]
    assert tuple(decide(step, distance) for step, distance in enumerate(measured)) == replay_schedule(
        steps, 50
    )


def test_thresholds_are_for_real_weights_and_replays_for_random_ones(make_row: MakeRow) -> None:
    def refused_by(cache: str, weights: str | None) -> str:
        row = make_row(hardware="h100x1", model="flux.1-dev", size=1024, precision="bf16", cache=cache)
        refused = refusal(row, weights)
        return refused.name if refused else ""

    for cache in ("fbcache-0.12", "teacache-0.4"):
        assert refused_by(cache, "synthetic") == "threshold-cache-on-random-weights"
        assert refused_by(cache, "hub") == refused_by(cache, None) == ""
    assert refused_by("replay-50", "hub") == "replayed-cache-on-real-weights"
    assert refused_by("replay-50", "synthetic") == ""
    assert refused_by("none", "synthetic") == refused_by("none", "hub") == ""


def test_a_cache_needs_a_place_between_two_blocks(make_row: MakeRow) -> None:
    def refused_by(**stack: str) -> str:
        row = make_row(hardware="h100x1", model="flux.1-dev", size=1024, precision="bf16", **stack)
        refused = refusal(row)
        return refused.name if refused else ""

    assert refused_by(cache="fbcache-0.12", compilation="inductor-max") == "cache-inside-one-graph"
    assert refused_by(cache="fbcache-0.12", compilation="inductor") == ""
    assert refused_by(compilation="inductor-max") == ""
