"""quality.json: how close an attempt's pictures are to the reference's. Beside result.json, from files.

The runner saves latents and images of fixed prompts; everything here is computed from those files, any time
later, so a new metric runs no row again. Values are paired: the same prompt and seed on both sides, kept
per prompt. Whatever is compared to is named by attempt and fingerprint, so a changed reference shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from bench import config, record, stats
from bench.axes import AXES
from bench.flux import Source
from bench.matrix import REFERENCE, Row
from bench.record import Strict

FILE = "quality.json"

MEANING: dict[str, str] = {
    "hub": "real pictures",
    "tiny": "real pictures at the tiny model's scale",
    "synthetic": "numerical error only: random weights draw no picture whose quality could be judged",
}
"""What a number says, by weights (METHOD.md section 9)."""


class Against(Strict):
    """What was compared with."""

    row: str
    label: str
    attempt: str
    fingerprint: str


class Closeness(Strict):
    """Of one prompt, or medians over prompts (nearest rank)."""

    latent_relative_error: float = Field(ge=0)
    psnr_db: float | None
    """None: every pixel is identical (a median: of at least half the prompts)."""
    ssim: float = Field(ge=-1, le=1)


class Prompt(Closeness):
    id: str


class HeldAgainst(Closeness):
    """Medians over prompts, and whose pictures the others were."""

    against: Against


class Quality(Closeness):
    """The medians stand at the top level."""

    schema_version: Literal[1] = 1
    attempt: str
    fingerprint: str
    """Of the attempt whose pictures these are."""
    weights: Source
    meaning: str
    reference: Against
    prompts: list[Prompt] = Field(min_length=1)
    noise_floor: list[HeldAgainst]
    """The reference against itself with one exact change: what no reader can tell from the reference. Empty
    where none has been run."""
    parent: HeldAgainst | None = None
    """The row that this one changes a single option of: what that option alone does, also where the rest of
    the stack is not the reference's. None where the parent is the reference, or has no pictures."""
    tier: str
    """That more than half of the prompts reach, each by itself."""


def medians(prompts: Sequence[Closeness]) -> Closeness:
    """Identical images have infinite PSNR; a middle one that is infinite is None again."""
    psnr = stats.median([_psnr(each) for each in prompts])
    return Closeness(
        latent_relative_error=stats.median([each.latent_relative_error for each in prompts]),
        psnr_db=None if math.isinf(psnr) else psnr,
        ssim=stats.median([each.ssim for each in prompts]),
    )


def tier_of_most(prompts: Sequence[Closeness], floor: Sequence[Closeness]) -> str:
    """The best one that more than half of the prompts reach. The tier of the medians would be reached by half
    of an even number, and may be one that no single prompt has: each measure has its own middle prompt."""
    return tiers(prompts, floor)[len(prompts) // 2]


def tiers(prompts: Sequence[Closeness], floor: Sequence[Closeness]) -> list[str]:
    """Each prompt's by itself, the best first."""
    order = [each.name for each in config.QUALITY_TIERS]
    return sorted((tier(each, floor) for each in prompts), key=order.index)


def tier(closeness: Closeness, floor: Sequence[Closeness]) -> str:
    """The first tier whose every bound holds; whatever is as close as the noise floor is in the first."""
    if any(_as_close(closeness, each) for each in floor):
        return config.QUALITY_TIERS[0].name
    return next(
        each.name
        for each in config.QUALITY_TIERS
        if closeness.latent_relative_error <= each.max_latent_relative_error
        and _psnr(closeness) >= each.min_psnr_db
        and closeness.ssim >= each.min_ssim
    )


def _as_close(closeness: Closeness, floor: Closeness) -> bool:
    """In latents and in pictures: a change of the VAE leaves the latents as they are."""
    margin = config.NOISE_FLOOR_MARGIN
    return (
        closeness.latent_relative_error <= margin * floor.latent_relative_error
        and _psnr(closeness) >= _psnr(floor) - 20 * math.log10(margin)
        and 1 - closeness.ssim <= margin * (1 - floor.ssim)
    )


def _psnr(closeness: Closeness) -> float:
    """Identical pictures have no error at all."""
    return math.inf if closeness.psnr_db is None else closeness.psnr_db


def assemble(
    result: record.Result,
    reference: Against,
    prompts: Sequence[Prompt],
    floor: Sequence[HeldAgainst],
    parent: HeldAgainst | None,
) -> Quality:
    if result.weights is None:
        raise ValueError(f"attempt {result.attempt} has pictures but no weights")
    return Quality(
        **medians(prompts).model_dump(),
        attempt=result.attempt,
        fingerprint=result.fingerprint,
        weights=result.weights.source,
        meaning=MEANING[result.weights.source],
        reference=reference,
        prompts=list(prompts),
        noise_floor=list(floor),
        parent=parent,
        tier=tier_of_most(prompts, floor),
    )


def against(row: Row, result: record.Result) -> Against:
    return Against(row=row.row, label=row.label, attempt=result.attempt, fingerprint=result.fingerprint)


def is_exact_variant(row: Row) -> bool:
    """Whether the row is the reference but for one change that keeps the arithmetic."""
    return len(changes(row)) == 1 and keeps_the_arithmetic(row)


def keeps_the_arithmetic(row: Row) -> bool:
    """Whether every option is the reference's or another way to compute just what that computes."""
    # A result may hold an option of another version of the bench.
    known = [AXES[axis].get(option) for axis, option in changes(row)]
    return all(option is not None and option.exact for option in known)


def changes(row: Row) -> list[tuple[str, str]]:
    """(axis, option) of all that is not the reference's."""
    return [(axis, option) for axis, option in row.stack.items() if option != REFERENCE[axis]]


def same_task(row: Row, result: record.Result) -> tuple[object, ...]:
    """Attempts that may be compared agree in this: the row's group, weights, prompts and seeds."""
    weights = (result.weights.source, result.weights.id) if result.weights else None
    return (*row.group, weights, result.manifest_sha256)


def load(attempt: Path) -> Quality | None:
    """None where none was computed. Raises ``pydantic.ValidationError`` naming each wrong field."""
    try:
        return Quality.model_validate_json((attempt / FILE).read_bytes())
    except FileNotFoundError:
        return None


def save(quality: Quality, attempt: Path) -> Path:
    path = attempt / FILE
    record.write_atomically(path, json.dumps(quality.model_dump(mode="json"), indent=1) + "\n")
    return path
