"""What ranks tell the conductor of a request: enough to see that one of them did something else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.runner.messages import Sketch
from bench.runner.outputs import Output
from bench.runner.window import Facts


def sketch(images: Any = None, steps: int = 28, **counts: dict[str, int]) -> Sketch:
    picture = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), dtype=np.uint8)
    return Sketch.of(Output(picture if images is None else images, True, steps), Facts({}, counts))


def test_the_same_request_leaves_the_same_sketch() -> None:
    assert sketch() == sketch()
    assert sketch().differs(sketch()) is None


def test_rounding_is_no_difference_but_is_told_from_the_same_bits() -> None:
    picture = np.full((2, 128, 128, 3), 100, dtype=np.uint8)
    rounded = picture.copy()
    rounded[:, ::2] += 1
    assert sketch(picture).differs(sketch(rounded)) is None
    assert sketch(picture).sha256 != sketch(rounded).sha256


def test_another_object_in_a_corner_is_a_difference() -> None:
    picture = np.full((1, 128, 128, 3), 100, dtype=np.uint8)
    drawn = picture.copy()
    drawn[0, 112:, 112:] = 180
    assert "80.0 of 255 levels" in (sketch(picture).differs(sketch(drawn)) or "")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (sketch(steps=27), "27 denoising steps, not 28"),
        (sketch(cache={"steps_skipped": 3}), "steps_skipped': 3"),
        (sketch(np.zeros((2, 128, 128, 3), dtype=np.uint8)), "another shape"),
    ],
)
def test_other_steps_decisions_or_shapes_are_named(other: Sketch, says: str) -> None:
    mine = replace(sketch(), counts={}) if other.counts == {} else sketch(cache={"steps_skipped": 4})
    assert says in (mine.differs(other) or "")


def test_what_a_rank_counts_of_itself_is_no_difference() -> None:
    one, other = sketch(parallel={"served_by_rank_0": 1}), sketch(parallel={"served_by_rank_1": 1})
    assert one.differs(other) is None
