"""Prompts and pictures of a row, by model: drawn by seed, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

from bench.matrix import Row
from bench.runner import pictures, prompts

if TYPE_CHECKING:
    from PIL.Image import Image

SCENES = 8
"""Pictures that a full-size row draws from; one takes a tenth of a second at 1024."""
TINY_SCENES = 384
"""A cell with a true p99 has 368 requests, each with a prompt of its own."""
TINY_PICTURES = 64
"""Scenes of a use case that takes pictures: drawing them is part of every row's start."""
_TINY_SEED = 20_000


@dataclass(frozen=True)
class Inputs:
    """The pictures of one request; None where its use case takes none. PIL, RGB; the mask is L."""

    image: Image | None = None
    mask: Image | None = None
    control: Image | None = None


Drawn = tuple[tuple[str, ...], tuple[Inputs, ...]]
"""Prompts, and the pictures that go with them in the same order, around and around."""


def full_size(row: Row) -> Drawn:
    texts = tuple(prompts.prompt(index) for index in range(prompts.COUNT))
    if row.use_case == ("txt2img", "none"):
        return texts, (Inputs(),)
    scenes = (pictures.draw(seed, row.size) for seed in range(SCENES))
    return texts, tuple(_of_scene(row, scene) for scene in scenes)


def _of_scene(row: Row, scene: pictures.Scene) -> Inputs:
    return Inputs(
        image=None if row.task == "txt2img" else scene.image,
        mask=scene.mask if row.task == "inpaint" else None,
        control=None if row.control == "none" else pictures.control_map(row.control, scene),
    )


def tiny(row: Row) -> Drawn:
    """Captions of scenes that training held out, each with its own control map. The input picture shows
    another shape in the same place, so that img2img and inpaint have something to change."""
    import torch

    from bench.tiny import draw, scenes

    with_pictures = row.use_case != ("txt2img", "none")
    count = TINY_PICTURES if with_pictures else TINY_SCENES
    sampled = scenes.sample(TINY_SCENES * 2, _TINY_SEED, held_out=True)
    captions = (scenes.caption(said, n) for n, said in enumerate(scenes.words(sampled)))
    chosen = dict(islice({text: n for n, text in enumerate(captions)}.items(), count))
    if not with_pictures:
        return tuple(chosen), (Inputs(),)
    kept = sampled[torch.tensor([*chosen.values()])]
    other = replace(kept, shape=(kept.shape + 1) % len(scenes.SHAPES))
    nothing = repeat(None)
    images = nothing if row.task == "txt2img" else _pictures(draw.draw(other))
    masks = _pictures(scenes.inpaint_mask(kept)) if row.task == "inpaint" else nothing
    controls = nothing if row.control == "none" else _pictures(draw.control_map(row.control, kept))
    return tuple(chosen), tuple(islice(map(Inputs, images, masks, controls), count))


def _pictures(tensors: Any) -> list[Image]:
    """(n, 1 or 3, height, width) in [0, 1] -> PIL, L or RGB."""
    from PIL import Image

    from bench.tiny.draw import to_uint8

    return [Image.fromarray(pixels.squeeze()) for pixels in to_uint8(tensors)]
