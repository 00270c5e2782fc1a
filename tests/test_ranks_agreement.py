"""What ranks paint together is held against what one of them paints alone: how far, and what is too far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import fake_row

from bench.axes import AXES
from bench.config import AGREEMENT
from bench.matrix import Row
from bench.record import Agreement
from bench.runner import agreement, judge
from bench.runner.agreement import Apart, Disagrees
from bench.runner.outputs import Output


def row(parallel: str = "ulysses2", **changes: object) -> Row:
    return fake_row(hardware="h200x2", parallel=parallel, **changes)


def painted(latent: float, level: int) -> Output:
    latents = torch.full((1, 16, 4, 4), latent)
    return Output(np.full((1, 32, 32, 3), level, np.uint8), finite=True, steps=4, latents=latents)


def test_distances_are_shares_of_the_norm_of_what_one_painted() -> None:
    assert agreement.apart(painted(1.1, 150), painted(1.0, 100)) == Apart(
        latents=pytest.approx(0.1, rel=1e-5), images=pytest.approx(0.5)
    )
    assert agreement.apart(painted(1.0, 100), painted(1.0, 100)) == Apart(0.0, 0.0)


def test_the_rank_that_is_furthest_away_counts() -> None:
    found = agreement.agreement(row(), 4, [Apart(0.001, 0.2), Apart(0.003, 0.1)])
    assert found.latent_relative_error == 0.003
    assert found.image_relative_error is None, "the VAE is not shared out: its rounding is no matter"
    assert agreement.agreement(row(vae="parallel"), 4, [Apart(0.0, 0.2)]).image_relative_error == 0.2


def test_an_exact_method_is_held_against_a_few_steps_and_an_approximate_one_against_a_request() -> None:
    assert agreement.steps(row("ulysses2", steps=28)) == AGREEMENT.steps
    assert agreement.steps(row("xdit-ulysses2", steps=28)) == AGREEMENT.steps
    assert agreement.steps(row("xdit-pipefusion2", steps=28)) is None
    assert agreement.steps(row("ulysses2", steps=2)) is None, "a request is no longer"


def test_the_tolerance_is_what_later_options_declare_and_those_whose_decisions_rounding_may_turn() -> None:
    plain = AXES["parallel"]["ulysses2"].latent_tolerance
    assert agreement.tolerance(row()) == plain
    assert agreement.tolerance(row(attention="flash3")) == plain
    assert agreement.tolerance(row(vae="tiled")) == plain, "latents do not pass through tiles"
    assert agreement.tolerance(row(vae="parallel")) > plain, "whose pictures are compared too"
    quantised = AXES["quantization"]["bnb-nf4"].latent_tolerance
    assert agreement.tolerance(row(quantization="bnb-nf4")) == pytest.approx(plain + quantised)
    cached = agreement.tolerance(row(cache="fbcache-0.2", compilation="inductor"))
    later = AXES["cache"]["fbcache-0.2"].latent_tolerance + AXES["compilation"]["inductor"].latent_tolerance
    assert cached == pytest.approx(plain + later)
    assert agreement.tolerance(row("xdit-pipefusion2")) > 10 * plain, "approximate by design"


@pytest.mark.parametrize(
    ("latents", "images", "says"),
    [(0.03, None, "latents"), (0.001, 0.03, "pictures")],
)
def test_over_its_tolerance_a_row_ends_with_what_lies_apart(
    latents: float, images: float | None, says: str
) -> None:
    found = Agreement(steps=4, latent_relative_error=latents, image_relative_error=images, tolerance=0.02)
    with pytest.raises(Disagrees, match=f"row .*after 4 steps the {says} of 2 ranks together") as raised:
        agreement.require(row(), found)
    assert judge.ends_row(raised.value), "every other cell would paint it too"
    assert judge.status_of(raised.value).code.value == "invalid_output"


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_what_is_not_finite_on_any_rank_is_no_picture(error: float) -> None:
    for by_rank in ([Apart(0.0, 0.0), Apart(error, 0.0)], [Apart(0.0, error), Apart(0.0, 0.0)]):
        with pytest.raises(Disagrees, match="NaN or infinity"):
            agreement.agreement(row(), 4, by_rank)


def test_within_its_tolerance_nothing_is_raised() -> None:
    found = Agreement(steps=4, latent_relative_error=0.02, tolerance=0.02)
    agreement.require(row(), found)
    assert found.outside() == {}


def test_only_axes_applied_after_one_has_painted_may_differ() -> None:
    assert tuple(axis for axis in AXES if axis in agreement.LATER) == agreement.LATER, "in the order of axes"
