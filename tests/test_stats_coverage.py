"""Every interval holds the truth as often as it says, on calm, heavy-tailed, bimodal and tied data.

Seeded simulations: TRIALS experiments each, of which at least 95 % must hold the truth, less what
chance allows (4 binomial standard errors). Intervals from order statistics are conservative, so only
too low a coverage is a failure; the widths are bounded by tests of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from bench import compare, stats
from bench.compare import Side

TRIALS = 400
Draw = Callable[[np.random.Generator, int], np.ndarray]

SHAPES: dict[str, Draw] = {
    "calm": lambda rng, n: rng.lognormal(0, 0.005, n),
    "skewed": lambda rng, n: rng.lognormal(0, 0.4, n),
    "heavy-tailed": lambda rng, n: 1 + 0.1 * rng.pareto(1.5, n),
    "bimodal": lambda rng, n: np.where(rng.random(n) < 0.3, 1.3, 1.0) * rng.lognormal(0, 0.02, n),
    "tied": lambda rng, n: np.round(rng.lognormal(0, 0.3, n), 1),
}
shapes = pytest.mark.parametrize("shape", SHAPES)


def least(trials: int = TRIALS, confidence: float = 0.95) -> float:
    return confidence - 4 * math.sqrt(confidence * (1 - confidence) / trials)


def truth(values: np.ndarray, percentile: float) -> float:
    return float(np.sort(values)[math.ceil(len(values) * percentile / 100) - 1])


def holds(interval: tuple[float, float] | None, value: float) -> bool:
    assert interval is not None
    return interval[0] * (1 - 1e-9) <= value <= interval[1] * (1 + 1e-9)


@shapes
@pytest.mark.parametrize(("percentile", "n"), [(50, 6), (50, 36), (25, 13), (90, 36), (90, 100), (99, 368)])
def test_the_interval_of_a_quantile_covers_it(shape: str, percentile: int, n: int) -> None:
    rng = np.random.default_rng([n, percentile])
    true = truth(SHAPES[shape](rng, 1_000_000), percentile)
    hits = sum(
        holds(stats.quantile(list(SHAPES[shape](rng, n)), percentile).ci95, true) for _ in range(TRIALS)
    )
    assert hits / TRIALS >= least()


@shapes
@pytest.mark.parametrize(("percentile", "rounds"), [(50, 9), (50, 18), (90, 36)])
def test_the_bootstrap_over_rounds_covers_quantiles_of_overlapped_requests(
    shape: str, percentile: int, rounds: int
) -> None:
    """4 closed-loop users behind one server: each latency is the sum of 4 neighbouring service times."""
    trials, users = 200, 4
    rng = np.random.default_rng([rounds, percentile])

    def latencies(n: int) -> np.ndarray:
        return np.convolve(SHAPES[shape](rng, n + users - 1), np.ones(users), "valid")

    true = truth(latencies(1_000_000), percentile)
    hits = sum(
        holds(stats.quantile(list(latencies(rounds * users)), percentile, users).ci95, true)
        for _ in range(trials)
    )
    assert hits / trials >= least(trials)


def test_binomial_ranks_would_not_cover_overlapped_requests() -> None:
    """Why the bootstrap is there: taken as independent, the same data miss the truth far too often."""
    rng = np.random.default_rng(0)
    true = truth(np.convolve(rng.lognormal(0, 0.1, 1_000_003), np.ones(4), "valid"), 50)
    hits = sum(
        holds(
            stats.quantile(list(np.convolve(rng.lognormal(0, 0.1, 75), np.ones(4), "valid")), 50).ci95, true
        )
        for _ in range(TRIALS)
    )
    assert hits / TRIALS < 0.85


@shapes
@pytest.mark.parametrize(("n", "m"), [(6, 6), (13, 13), (36, 36), (8, 368)])
def test_the_interval_of_a_ratio_of_medians_covers_it(shape: str, n: int, m: int) -> None:
    rng = np.random.default_rng([n, m])
    hits = 0
    for _ in range(TRIALS):
        reference = Side((tuple(1.3 * SHAPES[shape](rng, n)),))
        candidate = Side((tuple(SHAPES[shape](rng, m)),))
        hits += holds(compare.speedup(reference, candidate, spread=0.0).interval(), 1.3)
    assert hits / TRIALS >= least()


@shapes
@pytest.mark.parametrize("n", [6, 13, 36])
def test_the_interval_of_a_paired_ratio_covers_it(shape: str, n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(TRIALS):
        prompts = SHAPES[shape](rng, n)
        reference = 1.3 * prompts * rng.lognormal(0, 0.01, n)
        candidate = prompts * rng.lognormal(0, 0.01, n)
        hits += holds(compare.paired_speedup(list(reference), list(candidate), 0.0).interval(), 1.3)
    assert hits / TRIALS >= least()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("between", [0.0, 0.003, 0.02])
def test_processes_that_differ_are_covered_too(processes: int, between: float) -> None:
    """Each process has a level of its own, ``between`` apart (standard deviation of its log)."""
    rng = np.random.default_rng([processes, int(1000 * between)])

    def side(median: float) -> Side:
        levels = median * rng.lognormal(0, between, processes) if between else [median] * processes
        return Side(tuple(tuple(level * rng.lognormal(0, 0.004, 18)) for level in levels))

    hits = sum(holds(compare.speedup(side(1.3), side(1.0)).interval(), 1.3) for _ in range(TRIALS))
    assert hits / TRIALS >= least()


@pytest.mark.parametrize("references", [2, 4])
@pytest.mark.parametrize("between", [0.004, 0.02])
def test_one_process_of_the_candidate_is_covered_by_what_the_references_show(
    references: int, between: float
) -> None:
    rng = np.random.default_rng([references, int(1000 * between)])

    def side(median: float, processes: int) -> Side:
        levels = median * rng.lognormal(0, between, processes)
        return Side(tuple(tuple(level * rng.lognormal(0, 0.004, 18)) for level in levels))

    hits = 0
    for _ in range(TRIALS):
        reference, candidate = side(1.3, references), side(1.0, 1)
        spread = compare.reference_spread([[stats.median(run) for run in reference.runs]])
        hits += holds(compare.speedup(reference, candidate, spread).interval(), 1.3)
    assert hits / TRIALS >= least()


def test_the_geometric_mean_of_use_cases_is_covered() -> None:
    rng = np.random.default_rng(7)
    gains = [1.1, 1.3, 1.6, 0.9]
    true = math.exp(sum(map(math.log, gains)) / len(gains))
    hits = 0
    for _ in range(TRIALS):
        ratios = [
            compare.speedup(
                Side((tuple(gain * rng.lognormal(0, 0.05, 13)),)),
                Side((tuple(rng.lognormal(0, 0.05, 13)),)),
                0.0,
            )
            for gain in gains
        ]
        hits += holds(compare.geometric_mean(ratios).interval(), true)
    assert hits / TRIALS >= least()


def test_an_interaction_is_covered() -> None:
    rng = np.random.default_rng(8)

    def side(median: float) -> Side:
        return Side((tuple(median * rng.lognormal(0, 0.02, 18)),))

    hits = sum(
        holds(compare.interaction(side(5.0), side(4.0), side(3.0), side(2.0), 0.0).interval(), 1.2)
        for _ in range(TRIALS)
    )
    assert hits / TRIALS >= least()


def test_a_ratio_at_the_standard_budget_is_tight_enough_to_decide() -> None:
    """36 calm requests in 2 processes a side: the interval is a small fraction of the smallest effect."""
    rng = np.random.default_rng(9)
    widths = []
    for _ in range(50):
        sides = [Side((tuple(rng.lognormal(0, 0.004, 18)),)) for _ in range(2)]
        low, high = compare.speedup(*sides, spread=0.0).interval() or (0.0, 9.0)
        widths.append(high - low)
    assert np.median(widths) < 0.01
