"""Pictures from Tiny FLUX through diffusers' own six pipelines, in batches, one seed a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.flux import TOKEN_PIXELS
from bench.runner.models import pipeline_class, put_together
from bench.tiny import CONTROLS, GUIDANCE, SIZE, STEPS, TEXT_TOKENS
from bench.tiny.draw import to_uint8
from bench.tiny.models import TinyFlux

AS_TRAINED = {
    "height": SIZE,
    "width": SIZE,
    "guidance_scale": GUIDANCE,
    "max_sequence_length": TEXT_TOKENS,
}
"""What every call must say: the model knows nothing else."""


def noise(seeds: list[int]) -> list[torch.Generator]:
    """On the CPU: the same noise on every device. (A pipeline moves it.)"""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pipeline(tiny: TinyFlux, task: str, *, control: bool) -> Any:
    """By constructor: ``from_pipe`` would cast every component to float32."""
    pipe = put_together(
        pipeline_class(task, control=control), {**tiny.pipe.components, "controlnet": tiny.controlnet}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    tiny: TinyFlux,
    prompts: list[str],
    seeds: list[int],
    *,
    task: str = "txt2img",
    control: str | None = None,
    inputs: dict[str, torch.Tensor] | None = None,
    steps: int = STEPS,
    strength: float | None = None,
    batch: int = 50,
) -> np.ndarray:
    """(n, 128, 128, 3) uint8.

    ``inputs``: image, mask_image and control_image as the task asks, each (n, c, 128, 128) in [0, 1].
    """
    pipe = pipeline(tiny, task, control=control is not None)
    fixed: dict[str, Any] = {**AS_TRAINED, "num_inference_steps": steps, "output_type": "np"}
    if strength is not None:
        fixed["strength"] = strength
    pictures = []
    for part in _parts(len(prompts), batch):
        generators = noise(seeds[part])
        if control is not None:
            mode = CONTROLS.index(control)
            # txt2img takes one mode only; the other two take one a picture once there are several.
            fixed["control_mode"] = mode if task == "txt2img" else [mode] * len(generators)
        given = {name: pictures_of(tensor[part]) for name, tensor in (inputs or {}).items()}
        images = pipe(prompt=prompts[part], generator=generators, **given, **fixed).images
        pictures.append(np.round(images * 255).astype(np.uint8))
    return np.concatenate(pictures)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def pictures_of(tensor: torch.Tensor) -> list[Image.Image]:
    """As a user gives them. Tensors would not do: ControlNet pipelines take a tensor as it is, in [-1, 1],
    where the others scale it from [0, 1]."""
    return [Image.fromarray(picture.squeeze()) for picture in to_uint8(tensor)]


def final_latents(
    tiny: TinyFlux, prompts: list[str], seeds: list[int], inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """(n, 16, 16, 16): what inpainting hands to the decoder, before its shift and scale are undone."""
    pipe = pipeline(tiny, "inpaint", control=False)
    packed = pipe(
        prompt=prompts,
        generator=noise(seeds),
        num_inference_steps=STEPS,
        strength=1.0,
        output_type="latent",
        **AS_TRAINED,
        **{name: pictures_of(tensor) for name, tensor in inputs.items()},
    ).images
    n, side = len(prompts), SIZE // TOKEN_PIXELS
    unpacked = packed.view(n, side, side, 16, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return unpacked.reshape(n, 16, 2 * side, 2 * side).cpu()
