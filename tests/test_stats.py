"""Quantiles are measured values, their intervals hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import config, stats

SECONDS = st.floats(min_value=1e-4, max_value=1e4)
LATENCIES = st.lists(SECONDS, min_size=1, max_size=120)
PERCENTILES = (25, 50, 90, 99)


@pytest.mark.parametrize(
    ("n", "percentile", "ranks"),
    [
        (20, 50, (6, 15)),
        (50, 50, (18, 33)),
        (50, 90, (41, 50)),
        (100, 50, (40, 61)),
        (100, 90, (84, 96)),
        (100, 95, (90, 100)),
        (200, 95, (184, 197)),
        (500, 99, (490, 500)),
    ],
)
def test_interval_ranks_agree_with_the_known_tables(n: int, percentile: int, ranks: tuple[int, int]) -> None:
    assert stats.interval_ranks(n, percentile) == ranks


def test_the_configured_support_is_where_the_interval_first_exists() -> None:
    assert {p: stats.smallest_n(p) for p in config.QUANTILE_SUPPORT} == config.QUANTILE_SUPPORT


@pytest.mark.parametrize(("percentile", "n"), sorted(config.QUANTILE_SUPPORT.items()))
def test_one_value_fewer_than_needed_is_marked_unsupported(percentile: int, n: int) -> None:
    enough = stats.quantile([float(i) for i in range(n)], percentile)
    short = stats.quantile([float(i) for i in range(n - 1)], percentile)
    assert enough.supported
    assert enough.ci95 is not None
    assert not short.supported
    assert short.ci95 is None
    assert short.value in range(n - 1)


@given(LATENCIES, st.sampled_from(PERCENTILES), st.sampled_from((1, 4)))
def test_a_quantile_and_its_interval_are_measured_values_in_order(
    values: list[float], percentile: int, users: int
) -> None:
    quantile = stats.quantile(values, percentile, users)
    assert quantile.value in values
    if quantile.ci95 is not None:
        low, high = quantile.ci95
        assert low in values
        assert high in values
        assert low <= quantile.value <= high


@given(LATENCIES, st.sampled_from(PERCENTILES))
def test_nearest_rank_is_the_smallest_value_that_covers_the_share(
    values: list[float], percentile: int
) -> None:
    value = stats.nearest(values, percentile)
    needed = len(values) * percentile / 100 - 1e-9
    assert sum(v <= value for v in values) >= needed
    assert sum(v < value for v in values) < needed


@given(LATENCIES, st.floats(0.01, 100))
def test_changing_the_unit_changes_every_quantile_alike(values: list[float], factor: float) -> None:
    scaled = stats.summarise([value * factor for value in values])
    plain = stats.summarise(values)
    for name in ("p25", "p50", "p90", "p99"):
        assert getattr(scaled, name).value == getattr(plain, name).value * factor


@given(LATENCIES, st.randoms(use_true_random=False))
def test_the_order_of_requests_matters_only_when_they_overlapped(values: list[float], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(values, len(values))
    ours, theirs = stats.summarise(values), stats.summarise(shuffled)
    assert [ours.p50, ours.p90] == [theirs.p50, theirs.p90]
    assert ours.raw == values


def test_a_summary_keeps_the_raw_values_and_their_order() -> None:
    values = [5.3, 5.1, 5.2, 5.5, 5.2, 5.4]
    summary = stats.summarise(values)
    assert summary.raw == values
    assert (summary.min, summary.p50.value, summary.max) == (5.1, 5.2, 5.5)
    assert summary.mean == pytest.approx(5.2833333)
    assert summary.p50.supported
    assert not summary.p90.supported


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_a_summary_of_nothing_or_of_nan_is_an_error(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no values|not finite"):
        stats.summarise(values)


def test_overlapped_requests_get_a_wider_interval_than_independent_ones() -> None:
    services = np.random.default_rng(3).lognormal(0, 0.1, 200 + 3)
    latencies = np.convolve(services, np.ones(4), "valid").tolist()
    alone, together = stats.quantile(latencies, 50), stats.quantile(latencies, 50, users=4)
    assert alone.ci95 is not None
    assert together.ci95 is not None
    assert together.ci95[1] - together.ci95[0] > alone.ci95[1] - alone.ci95[0]


def test_too_few_rounds_of_overlapped_requests_give_no_interval() -> None:
    assert stats.quantile([1.0 + i / 100 for i in range(32)], 50, users=4).ci95 is None
    assert stats.quantile([1.0 + i / 100 for i in range(36)], 50, users=4).ci95 is not None
    assert stats.quantile([1.0 + i / 100 for i in range(36)], 90, users=4).ci95 is None


def test_the_bootstrap_gives_the_same_interval_every_time() -> None:
    values = np.random.default_rng(1).lognormal(0, 0.1, 72).tolist()
    assert stats.quantile(values, 50, users=4) == stats.quantile(values, 50, users=4)
