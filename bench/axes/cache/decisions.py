"""Which denoising steps are computed, given how far the network's input has moved. Pure.

A decision is made once a step, for the whole batch, from one number: the relative mean absolute difference
between a *probe* of this step and the one of an earlier step (``StackCache`` measures it). What the probe is
and which step it is compared with belongs to the method, see ``Method``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Decide = Callable[[int, float | None], bool]
"""(step from 0, distance or None where nothing is there to compare with) -> whether the step is computed."""


@dataclass(frozen=True)
class Method:
    """How a cache decides."""

    probe: Literal["first block", "modulated input"]
    """``first block``: what the first transformer block adds to the image tokens. It runs in every step.
    ``modulated input``: what that block's first norm hands to its attention; no block runs to get it."""
    compared_with: Literal["last computed step", "last step"]
    decider: Callable[[int], Decide]
    """Executed steps of a request -> the decisions of that request."""


def first_block_cache(threshold: float) -> Method:
    """FirstBlockCache as diffusers 0.42.1 decides (``hooks/first_block_cache.py``): skip while the distance
    from the last *computed* step is at most ``threshold``. A distance that is not a number computes."""

    def decider(_steps: int) -> Decide:
        return lambda _step, distance: distance is None or not distance <= threshold

    return Method("first block", "last computed step", decider)


TEACACHE_POLYNOMIAL = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
"""Highest power first; from TeaCache's own FLUX example (github.com/ali-vilab/TeaCache, TeaCache4FLUX).
It was fitted to FLUX.1-dev and tells how far the *output* moves when the modulated input moves by x. On any
other model, Tiny FLUX included, it is a rule like another, and its skip rate says nothing of FLUX.1-dev's."""


def rescaled(distance: float) -> float:
    """TeaCache's polynomial of the distance. It is at least 0.18 everywhere: two steps in a row are skipped
    only above twice that."""
    value = 0.0
    for coefficient in TEACACHE_POLYNOMIAL:
        value = value * distance + coefficient
    return value


def teacache(threshold: float) -> Method:
    """Skip while the rescaled distances from step to step, summed since the last computed step, stay below
    ``threshold``. The first and the last step are always computed."""

    def decider(steps: int) -> Decide:
        moved = 0.0

        def computes(step: int, distance: float | None) -> bool:
            nonlocal moved
            if distance is not None and step < steps - 1:
                moved += rescaled(distance)
                if moved < threshold:
                    return False
            moved = 0.0
            return True

        return computes

    return Method("modulated input", "last step", decider)


def replay(skip_percent: int) -> Method:
    """FirstBlockCache's probe and distance, measured and read in every step as there; the outcome is the
    schedule's. For random weights, on which no threshold means anything."""

    def decider(steps: int) -> Decide:
        schedule = replay_schedule(steps, skip_percent)
        return lambda step, _distance: schedule[step]

    return Method("first block", "last computed step", decider)


def replay_schedule(steps: int, skip_percent: int) -> tuple[bool, ...]:
    """Whether each of ``steps`` executed steps is computed. The first and the last are; the skipped ones,
    ``skip_percent`` of all rounded to the nearest whole step, are spread evenly between."""
    skipped = min((2 * steps * skip_percent + 100) // 200, max(steps - 2, 0))
    gaps = steps - skipped - 1
    computed = {(2 * index * (steps - 1) + gaps) // (2 * gaps) for index in range(gaps + 1)} if gaps else {0}
    return tuple(step in computed for step in range(steps))
