"""Ratios of medians and the verdicts drawn from them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench import compare, config, verdicts
from bench.compare import Error, Ratio, Side
from bench.verdicts import Verdict

RUN = st.lists(st.floats(0.5, 50), min_size=6, max_size=40).map(tuple)
RATIOS = st.builds(
    lambda log, below, above, added: Ratio(log, (Error(below, above),), added),
    st.floats(-1, 1),
    st.floats(1e-4, 0.2),
    st.floats(1e-4, 0.2),
    st.floats(0, 0.05),
)


def calm(median: float, runs: int = 2, n: int = 18, seed: int = 0) -> Side:
    rng = np.random.default_rng(seed)
    return Side(tuple(tuple(median * rng.lognormal(0, 0.002, n)) for _ in range(runs)))


def test_a_clear_gain_is_faster_and_its_inverse_slower() -> None:
    reference, candidate = calm(5.25), calm(3.89, seed=1)
    gain = compare.speedup(reference, candidate)
    assert gain.value == pytest.approx(5.25 / 3.89, rel=0.01)
    assert verdicts.verdict(gain) is Verdict.FASTER
    assert verdicts.verdict(compare.speedup(candidate, reference)) is Verdict.SLOWER


def test_equal_rows_are_the_same_and_noisy_ones_ambiguous() -> None:
    assert verdicts.verdict(compare.speedup(calm(5.25, runs=5), calm(5.25, runs=5, seed=1))) is Verdict.SAME
    rng = np.random.default_rng(2)
    noisy = Side(tuple(tuple(5.25 * rng.lognormal(0, 0.2, 9)) for _ in range(2)))
    assert verdicts.verdict(compare.speedup(calm(5.25), noisy)) is Verdict.AMBIGUOUS


def test_an_effect_below_the_smallest_one_is_never_called_faster() -> None:
    """A 1 % gain measured to a hair is real and not worth a verdict."""
    gain = Ratio(math.log(1.01), (Error(1e-5, 1e-5),))
    assert verdicts.verdict(gain) is Verdict.SAME


def test_one_process_a_side_needs_the_spread_between_references() -> None:
    reference, candidate = calm(5.25, runs=1), calm(5.0, runs=1, seed=1)
    unknown = compare.speedup(reference, candidate)
    assert unknown.interval() is None
    assert unknown.missing == compare.ONE_RUN
    assert verdicts.verdict(unknown) is Verdict.AMBIGUOUS
    quiet = compare.speedup(reference, candidate, spread=compare.reference_spread([[5.25, 5.26]]))
    assert verdicts.verdict(quiet) is Verdict.FASTER
    restless = compare.speedup(reference, candidate, spread=compare.reference_spread([[5.25, 5.6]]))
    assert verdicts.verdict(restless) is Verdict.AMBIGUOUS


def test_a_difference_between_processes_widens_the_interval() -> None:
    """Each process is calm, the processes disagree by 4 %: the requests alone would promise too much."""
    rng = np.random.default_rng(4)
    apart = Side(tuple(tuple(level * rng.lognormal(0, 0.002, 18)) for level in (5.0, 5.2)))
    assert verdicts.verdict(compare.speedup(apart, calm(4.9))) is Verdict.AMBIGUOUS


def test_too_few_requests_give_a_ratio_without_a_verdict() -> None:
    gain = compare.speedup(Side(((5.0, 5.1, 5.2),)), Side(((4.0, 4.1, 4.2),)), spread=0.0)
    assert gain.value == pytest.approx(5.1 / 4.1)
    assert gain.missing == compare.TOO_FEW
    assert verdicts.p_value(gain) == 1.0


def test_overlapped_requests_widen_the_ratio() -> None:
    services = np.random.default_rng(3).lognormal(0, 0.1, 123)
    latencies = tuple(np.convolve(services, np.ones(4), "valid"))
    widths = []
    for users in (1, 4):
        low, high = compare.speedup(Side((latencies,), users), Side((latencies,), users), 0.0).interval() or (
            0,
            0,
        )
        widths.append(high - low)
    assert widths[1] > widths[0]


def test_pairing_takes_out_what_both_sides_share() -> None:
    rng = np.random.default_rng(5)
    prompts = rng.lognormal(0, 0.2, 36)
    reference, candidate = prompts * 5.0, prompts * 4.0 * rng.lognormal(0, 0.002, 36)
    paired = compare.paired_speedup(list(reference), list(candidate), spread=0.0).interval()
    unpaired = compare.speedup(Side((tuple(reference),)), Side((tuple(candidate),)), spread=0.0).interval()
    assert paired is not None
    assert unpaired is not None
    assert paired[1] - paired[0] < 0.6 * (unpaired[1] - unpaired[0])
    assert paired[0] <= 1.25 <= paired[1]


def test_sides_of_unequal_length_are_not_paired() -> None:
    with pytest.raises(ValueError, match="not paired"):
        compare.paired_speedup([1.0] * 6, [1.0] * 7)


@given(RUN, RUN, st.floats(0, 0.1))
def test_swapping_the_sides_inverts_ratio_and_interval(
    first: tuple[float, ...], second: tuple[float, ...], spread: float
) -> None:
    ours = compare.speedup(Side((first,)), Side((second,)), spread)
    theirs = compare.speedup(Side((second,)), Side((first,)), spread)
    (low, high), (their_low, their_high) = ours.interval() or (0, 0), theirs.interval() or (0, 0)
    assert ours.value == pytest.approx(1 / theirs.value)
    assert (low, high) == pytest.approx((1 / their_high, 1 / their_low))
    assert low <= ours.value <= high


@given(RUN, RUN, st.floats(0.1, 10))
def test_a_ratio_has_no_unit(first: tuple[float, ...], second: tuple[float, ...], unit: float) -> None:
    scaled = [Side((tuple(value * unit for value in run),)) for run in (first, second)]
    plain = compare.speedup(Side((first,)), Side((second,)), 0.01)
    assert compare.speedup(*scaled, 0.01).interval() == pytest.approx(plain.interval())


@given(RATIOS)
def test_the_p_value_is_the_level_at_which_the_verdict_falls(ratio: Ratio) -> None:
    p = verdicts.p_value(ratio)
    decided = verdicts.verdict(ratio) is not Verdict.AMBIGUOUS
    assume(abs(p - 0.05) > 1e-9)
    assert decided == (p < 0.05)
    if decided and p > 1e-6:
        assert verdicts.verdict(ratio, 1 - p * 1.001) is verdicts.verdict(ratio)
        assert verdicts.verdict(ratio, 1 - p * 0.999) is Verdict.AMBIGUOUS


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values: list[float]) -> None:
    adjusted = verdicts.holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holm_gives_the_known_example() -> None:
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_verdict_that_stands_alone_may_fall_in_a_ranking_of_many() -> None:
    borderline = Ratio(math.log(1.015) + 2.1 * 0.01, (Error(0.01, 0.01),))
    assert verdicts.verdict(borderline) is Verdict.FASTER
    assert verdicts.verdicts([borderline]) == [Verdict.FASTER]
    assert verdicts.verdicts([borderline] * 20) == [Verdict.AMBIGUOUS] * 20


def test_a_geometric_mean_is_tighter_than_its_parts_but_keeps_the_hosts_spread() -> None:
    parts = [Ratio(math.log(1.3), (Error(0.01, 0.01),), added=0.02) for _ in range(4)]
    mean = compare.geometric_mean(parts)
    assert mean.value == pytest.approx(1.3)
    assert mean.added == pytest.approx(0.02)
    below, above = mean.reach(config.CONFIDENCE)
    assert (below, above) == pytest.approx([side / 2 for side in parts[0].reach(config.CONFIDENCE)])


def test_a_geometric_mean_with_an_unmeasured_part_has_no_interval() -> None:
    mean = compare.geometric_mean([Ratio(0.1, (Error(0.1, 0.1),)), Ratio(0.3, missing=compare.ONE_RUN)])
    assert mean.value == pytest.approx(math.exp(0.2))
    assert mean.interval() is None
    assert mean.missing == compare.ONE_RUN


def test_the_gains_from_parent_to_child_multiply_to_the_whole() -> None:
    chain = [calm(5.25), calm(4.2, seed=1), calm(2.95, seed=2)]
    steps = [compare.speedup(parent, child) for parent, child in pairwise(chain)]
    whole = compare.speedup(chain[0], chain[-1])
    assert math.prod(step.value for step in steps) == pytest.approx(whole.value)


def test_changes_whose_gains_do_not_multiply_are_flagged() -> None:
    base, one, other = calm(5.25, runs=3), calm(4.2, runs=3, seed=1), calm(4.0, runs=3, seed=2)
    product = calm(4.2 * 4.0 / 5.25, runs=3, seed=3)
    better = calm(2.8, runs=3, seed=4)
    assert not verdicts.interacts(compare.interaction(base, one, other, product))
    synergy = compare.interaction(base, one, other, better)
    assert verdicts.interacts(synergy)
    assert synergy.value == pytest.approx(4.2 * 4.0 / 5.25 / 2.8, rel=0.01)
