"""Sample pictures, small enough to stand in the page: the same prompt by each stack, side by side."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import layout
from bench.report import names
from bench.report.groups import Section, UseCase
from bench.report.pool import Measurement

PROMPTS = 2
STACKS = 8
"""The reference and seven others."""
SIDE = 128
"""Pixels of a thumbnail."""
QUALITY = 70


@dataclass(frozen=True)
class Sample:
    stack: str
    note: str
    data_uri: str


@dataclass(frozen=True)
class Strip:
    """One prompt by several stacks, the reference first."""

    prompt: str
    """Its id."""
    text: str
    """Empty where the pictures are older than the file of prompts beside them."""
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Samples:
    strips: tuple[Strip, ...] = ()
    left_out: tuple[str, ...] = ()
    """Stacks that have pictures too."""
    why_left_out: str = ""


def samples(section: Section, case: UseCase) -> Samples:
    """None for random weights: noise says nothing to the eye. Of the fastest stacks; where only pictures
    count, of those that change them most."""
    if section.weights == "synthetic":
        return Samples()
    others, why = (_change, "Closer to the reference") if section.only_pictures else (None, "Slower")
    pictured = [(each, folder) for each in _in_order(case, others) if (folder := _images(each))]
    left_out = tuple(names.stack(each.row) for each, _ in pictured[STACKS:])
    return Samples(_strips(pictured[:STACKS]), left_out, why)


def _strips(pictured: Sequence[tuple[Measurement, Path]]) -> tuple[Strip, ...]:
    prompts = sorted({path.stem for _, folder in pictured for path in folder.glob("*.png")})[:PROMPTS]
    return tuple(
        Strip(
            prompt,
            next((text for _, folder in pictured if (text := _texts(folder).get(prompt))), ""),
            tuple(
                Sample(names.stack(each.row), _note(each), thumbnail(folder / f"{prompt}.png"))
                for each, folder in pictured
                if (folder / f"{prompt}.png").exists()
            ),
        )
        for prompt in prompts
    )


def _in_order(case: UseCase, others: Callable[[Measurement], float] | None) -> list[Measurement]:
    """The reference, then the others by this key; None: as they stand, the fastest first."""
    return sorted(
        case.measurements, key=lambda each: (not each.row.is_reference, others(each) if others else 0)
    )


def _change(measurement: Measurement) -> float:
    return -measurement.quality.latent_relative_error if measurement.quality else 0


def _images(measurement: Measurement) -> Path | None:
    """Of the newest shown attempt that kept any."""
    for attempt in reversed(measurement.attempts):
        folder = attempt.folder / layout.IMAGES
        if any(folder.glob("*.png")):
            return folder
    return None


def _texts(images: Path) -> dict[str, str]:
    """Prompt's id -> its text; without a file that can be read the page shows ids."""
    try:
        return dict(json.loads((images / layout.PROMPTS).read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}


def _note(measurement: Measurement) -> str:
    if measurement.row.is_reference:
        return "reference"
    return measurement.quality.tier if measurement.quality else ""


def thumbnail(path: Path) -> str:
    """A data URI: the page needs no other file."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((SIDE, SIDE))
        image.convert("RGB").save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
