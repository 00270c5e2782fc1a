"""What can be in a picture: one shape on a background, and the captions that describe it.

A scene has five named attributes, and a little jitter that no caption mentions. Every tenth combination of
the named ones is held out: no training picture has it, and the scores are taken on those only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import torch

from bench.tiny import SIZE

SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (240, 210, 50),
    "purple": (150, 40, 160),
    "cyan": (60, 200, 210),
    "white": (235, 235, 235),
    "black": (30, 30, 30),
}
SIZES: dict[str, float] = {"small": 17.0, "large": 26.0}
"""Radius in pixels."""
POSITIONS: dict[str, tuple[int, int]] = {
    f"{vertical} {horizontal}".strip() or "center": (x, y)
    for y, vertical in ((32, "top"), (64, ""), (96, "bottom"))
    for x, horizontal in ((32, "left"), (64, ""), (96, "right"))
}
"""Centre in pixels (x, y)."""

JITTER_PX = 3.0
JITTER_RADIUS = 0.06
HELD_OUT_EVERY = 10


@dataclass
class Scenes:
    """A batch of n scenes; every field is a tensor of n values on one device."""

    shape: torch.Tensor
    colour: torch.Tensor
    background: torch.Tensor
    size: torch.Tensor
    position: torch.Tensor
    x: torch.Tensor
    """Centre and radius in pixels, jitter included."""
    y: torch.Tensor
    radius: torch.Tensor
    shade_angle: torch.Tensor
    """Direction of the background's gradient, radians."""

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: slice | torch.Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def combination(scenes: Scenes) -> torch.Tensor:
    """One number per combination of the five named attributes."""
    number = scenes.shape
    for attribute, count in (
        (scenes.colour, len(COLOURS)),
        (scenes.background, len(COLOURS)),
        (scenes.size, len(SIZES)),
        (scenes.position, len(POSITIONS)),
    ):
        number = number * count + attribute
    return number


def is_held_out(scenes: Scenes) -> torch.Tensor:
    # A multiplicative hash, so that no attribute lines up with the split.
    return (combination(scenes) * 2654435761 % 4294967291) % HELD_OUT_EVERY == 0


def sample(count: int, seed: int, *, held_out: bool, device: str = "cpu") -> Scenes:
    """``count`` scenes from one side of the split. Drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    candidates = _sample_all(count * (HELD_OUT_EVERY * 2 if held_out else 2) + 64, generator)
    chosen = candidates[is_held_out(candidates) == held_out][:count]
    if len(chosen) < count:
        raise RuntimeError(f"sampled {len(chosen)} of {count} scenes; widen the candidates")
    return Scenes(**{f.name: getattr(chosen, f.name).to(device) for f in fields(chosen)})


def _sample_all(count: int, generator: torch.Generator) -> Scenes:
    def pick(choices: int) -> torch.Tensor:
        return torch.randint(choices, (count,), generator=generator)

    def jitter(width: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * width

    colour = pick(len(COLOURS))
    other = 1 + pick(len(COLOURS) - 1)
    size, position = pick(len(SIZES)), pick(len(POSITIONS))
    centres = torch.tensor(list(POSITIONS.values()), dtype=torch.float32)[position]
    radii = torch.tensor(list(SIZES.values()))[size]
    return Scenes(
        shape=pick(len(SHAPES)),
        colour=colour,
        background=(colour + other) % len(COLOURS),
        size=size,
        position=position,
        x=centres[:, 0] + jitter(JITTER_PX),
        y=centres[:, 1] + jitter(JITTER_PX),
        radius=radii * (1 + jitter(JITTER_RADIUS)),
        shade_angle=jitter(torch.pi),
    )


@dataclass(frozen=True)
class Words:
    """One scene in words; an attribute that a caption leaves out is None."""

    shape: str | None
    colour: str
    background: str
    size: str | None
    position: str | None


def words(scenes: Scenes) -> list[Words]:
    names = {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "background": tuple(COLOURS),
        "size": tuple(SIZES),
        "position": tuple(POSITIONS),
    }
    columns = [[names[a][i] for i in getattr(scenes, a).tolist()] for a in names]
    return [Words(*values) for values in zip(*columns, strict=True)]


PHRASINGS = (
    "a {object} {place} on a {background} background",
    "{object} {place}, {background} background",
    "on a {background} background, a {object} {place}",
    "a {background} background with a {object} {place}",
    "a picture of a {object} {place} on {background}",
)


def caption(scene: Words, phrasing: int) -> str:
    """``large red circle at the top left`` in one of the phrasings; what is None goes unsaid."""
    thing = " ".join(filter(None, (scene.size, scene.colour, scene.shape or "shape")))
    place = f"at the {scene.position}" if scene.position else ""
    text = PHRASINGS[phrasing % len(PHRASINGS)].format(object=thing, place=place, background=scene.background)
    return " ".join(text.split()).replace(" ,", ",")


def training_captions(scenes: Scenes, seed: int, *, unsaid: float) -> list[str]:
    """A random phrasing each; shape, size and position are each left unsaid with probability ``unsaid``,
    so that ControlNet, img2img and a vague prompt have something to decide."""
    rng = random.Random(seed)

    def maybe(value: str | None) -> str | None:
        return None if rng.random() < unsaid else value

    captions = []
    for full in words(scenes):
        said = Words(maybe(full.shape), full.colour, full.background, maybe(full.size), maybe(full.position))
        captions.append(caption(said, rng.randrange(len(PHRASINGS))))
    return captions


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted: the tokenizers are built from it."""
    text = " ".join((*SHAPES, *COLOURS, *SIZES, *POSITIONS, *PHRASINGS, "at the shape"))
    cleaned = "".join(c if c.isalpha() or c == " " else " " for c in text)
    return sorted(set(cleaned.split()) - {"object", "place"})


def inpaint_mask(scenes: Scenes) -> torch.Tensor:
    """(n, 1, 128, 128), 1 where the picture is to be painted anew: a square of 64 pixels around the
    shape's place in the grid. Multiples of 16 pixels, so that it falls on whole FLUX tokens."""
    centres = torch.tensor(list(POSITIONS.values()), device=scenes.position.device)[scenes.position]
    axis = torch.arange(SIZE, device=scenes.position.device)
    inside = ((axis[None, :, None] - centres[:, None, :] + 32) // 64) == 0  # (n, 128, [x, y])
    return (inside[:, :, 1][:, :, None] & inside[:, :, 0][:, None, :])[:, None].float()
