"""Warm yet, enough yet, drifting, and what a window delivered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import config, steady
from bench.steady import Warm


@pytest.mark.parametrize(
    ("seconds", "compiled", "expected"),
    [
        ([], [], Warm.MORE),
        ([1.0, 1.0], [False, False], Warm.MORE),  # three must agree
        ([9.0, 1.0, 1.0], [True, False, False], Warm.MORE),
        ([9.0, 1.0, 1.02, 1.01], [True, False, False, False], Warm.SETTLED),
        ([1.0, 1.0, 1.0], [False, True, False], Warm.MORE),  # a compile event in the last two
        ([1.0, 1.0, 1.031], [False, False, False], Warm.MORE),
        ([1.0, 1.1, 1.0, 1.1, 1.0, 1.1, 1.0, 1.1], [False] * 8, Warm.UNSETTLED),
    ],
)
def test_warm_up_ends_when_the_last_three_agree_without_compiling(
    seconds: list[float], compiled: list[bool], expected: Warm
) -> None:
    assert steady.warmth(seconds, compiled) is expected


def test_a_probe_warms_up_twice_and_says_that_it_did_not_settle() -> None:
    assert steady.warmth([9.0], [True], settle=False) is Warm.MORE
    assert steady.warmth([9.0, 1.0], [True, False], settle=False) is Warm.UNSETTLED


@given(st.lists(st.tuples(st.floats(0.1, 10), st.booleans()), min_size=8, max_size=12))
def test_warm_up_never_asks_for_more_than_the_maximum(requests: list[tuple[float, bool]]) -> None:
    seconds, compiled = zip(*requests, strict=True)
    assert steady.warmth(seconds, compiled) is not Warm.MORE


def test_a_calm_cell_stops_at_its_n() -> None:
    values = [5.0 + 0.001 * i for i in range(13)]
    assert not steady.enough(values[:12], n=13, cap=26)
    assert steady.enough(values, n=13, cap=26)


def test_an_uncertain_cell_goes_on_up_to_its_cap() -> None:
    values = [5.0 + 0.5 * (i % 5) for i in range(26)]
    assert not steady.enough(values[:13], n=13, cap=26)
    assert not steady.enough(values[:25], n=13, cap=26)
    assert steady.enough(values, n=13, cap=26)


def test_a_cell_too_small_for_an_interval_stops_at_its_n() -> None:
    assert steady.enough([5.0, 9.0, 7.0], n=3, cap=99)


@given(st.integers(1, 40), st.sampled_from((1, 2, 4)))
def test_a_cell_only_stops_after_a_whole_round_of_its_users(done: int, users: int) -> None:
    if steady.enough([1.0] * done, n=13, cap=26, users=users):
        assert done % users == 0
        assert done >= 13


def test_drift_compares_the_last_third_with_the_first() -> None:
    assert steady.drift([1.0] * 4 + [7.0] * 4 + [1.05] * 4) == pytest.approx(0.05)
    assert steady.drift([1.0] * 12) == 0
    assert steady.drift([1.0, 2.0, 3.0]) is None


def test_throughput_counts_every_image_delivered_in_the_window() -> None:
    """4 users: the window opens when the first request of the dropped round returns at 1 s; its three
    companions end inside the window, then 8 steady ones."""
    finished = [float(second) for second in range(1, 13)]
    assert steady.throughput(finished, start=1.0, images=4) == pytest.approx(4.0)


def test_batch_and_scaling_efficiency_follow_their_definitions() -> None:
    assert steady.batch_efficiency([5.0, 5.2, 5.1], [20.0, 20.4, 20.1], 4) == pytest.approx(4 * 5.1 / 20.1)
    assert steady.scaling_efficiency(3.8, 2.375, 2) == pytest.approx(0.8)


def test_references_disagree_past_two_per_cent_of_the_faster_whichever_came_first() -> None:
    assert config.COMPARISON.reference_drift == 0.02
    for before, after in ((100.0, 102.0), (102.0, 100.0)):
        assert not steady.references_disagree(before, after)
    for before, after in ((100.0, 102.1), (102.1, 100.0)):
        assert steady.references_disagree(before, after)


def test_a_cpu_may_wobble_more_before_it_counts_as_cold() -> None:
    wobbling = [2.0, 1.0, 1.06, 1.02]
    assert steady.warmth(wobbling, [False] * 4) is Warm.MORE
    assert steady.warmth(wobbling, [False] * 4, rule=config.CPU_WARMUP) is Warm.SETTLED
