"""Do several GPUs paint what one of them does? Held against each other inside every row of several.

    attention, cache applied -> one GPU paints -> vae, parallel, compilation applied -> all paint it together

Both are the row's first request: its prompt, its seeds, its full-size shape. A method that is exact agrees at
every step or at none, so a few are painted; one that is approximate is judged by a whole request. Tokens,
residuals or bands that went astray are far outside the tolerance; a flat or broken picture need not be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.axes import AXES
from bench.axes.parallel import ranks_of
from bench.config import AGREEMENT
from bench.matrix import PLAIN, Row
from bench.record import Agreement
from bench.runner.outputs import InvalidOutput, Output, relative_error

LATER = ("vae", "parallel", "compilation")
"""Axes whose options are applied once one GPU has painted: only what they change can lie between."""


class Disagrees(InvalidOutput):
    """Several GPUs paint another picture than one of them. So they would in every cell."""


@dataclass(frozen=True)
class Apart:
    """How far from one GPU's what all painted together is, on one rank: |a - b| / |b|, Euclidean."""

    latents: float
    images: float


def steps(row: Row) -> int | None:
    """How many to paint; None: all of a request."""
    approximate = not AXES["parallel"][row.parallel].exact
    return None if approximate or row.steps < AGREEMENT.steps else AGREEMENT.steps


def tolerance(row: Row) -> float:
    """What the later options declare, together; and those whose decisions another rounding may turn. Of the
    VAE's only the one that is held by its pictures: no other touches latents."""
    stack = row.stack
    axes = [axis for axis in ("quantization", "cache", *LATER) if axis != "vae" or row.vae == "parallel"]
    changed = [axis for axis in axes if stack[axis] != PLAIN[axis]]
    return sum(AXES[axis][stack[axis]].latent_tolerance for axis in changed)


def apart(together: Output, alone: Output) -> Apart:
    return Apart(
        latents=relative_error(together.latents, alone.latents),
        images=relative_error(_floats(together.images), _floats(alone.images)),
    )


def _floats(images: Any) -> Any:
    import torch

    return torch.from_numpy(images).float()


def agreement(row: Row, painted_steps: int, by_rank: Iterable[Apart]) -> Agreement:
    """Of the rank that is furthest away. Raises Disagrees where one is not finite."""
    found = list(by_rank)
    if not all(math.isfinite(error) for each in found for error in (each.latents, each.images)):
        raise Disagrees(f"{row.label}: what its ranks paint together holds NaN or infinity: {found}")
    return Agreement(
        steps=painted_steps,
        latent_relative_error=max(each.latents for each in found),
        image_relative_error=max(each.images for each in found) if row.vae == "parallel" else None,
        tolerance=tolerance(row),
    )


def require(row: Row, found: Agreement) -> None:
    """Raises Disagrees naming the row, the error and what its options declare."""
    for of, error in found.outside().items():
        raise Disagrees(
            f"{row.label}: after {found.steps} steps the {of} of {ranks_of(row)} ranks together are"
            f" {error:.2g} of their norm away from those of one, and at most {found.tolerance:g} is what"
            " its options declare"
        )
