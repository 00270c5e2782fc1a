"""The six pipelines as one call: what a request holds, and prompt string in, decoded image out.

Everything that a request needs is fixed before the clock starts: prompts, seeds, pictures, masks, control
maps and settings, all hashed into ``Manifest.sha256``. Noise comes from CPU generators, one an image, so it
is the same on every device and does not depend on the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from bench.flux import MODELS, Settings, executed_steps, scheduled_steps
from bench.matrix import Row
from bench.runner import inputs
from bench.runner.inputs import Inputs
from bench.runner.outputs import Output

_SEEDS_PER_REQUEST = 1_000
_QUALITY_SEEDS = 10**9
"""Apart from every seed of a measured request."""


@dataclass(frozen=True)
class Request:
    id: str
    prompt: str
    seeds: tuple[int, ...]
    """One an image; their number is the batch."""
    inputs: Inputs = field(default_factory=Inputs)

    @property
    def images(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Manifest:
    """Every input of a row, in order."""

    settings: Settings
    prompts: tuple[str, ...]
    pictures: tuple[Inputs, ...]

    def request(self, index: int, images: int) -> Request:
        """The ``index``-th request of a cell. Prompts repeat only after all were used; seeds never do."""
        seeds = tuple(index * _SEEDS_PER_REQUEST + image for image in range(images))
        return self._request(f"r{index:04}", index, seeds)

    def quality_requests(self) -> list[Request]:
        """One image each, with seeds of their own; the same for every row of a use case."""
        count = self.settings.quality_prompts
        return [self._request(f"q{index:02}", index, (_QUALITY_SEEDS + index,)) for index in range(count)]

    def _request(self, id: str, index: int, seeds: tuple[int, ...]) -> Request:
        pictures = self.pictures[index % len(self.pictures)]
        return Request(id, self.prompts[index % len(self.prompts)], seeds, pictures)

    @cached_property
    def sha256(self) -> str:
        seeding = (_SEEDS_PER_REQUEST, _QUALITY_SEEDS)
        digest = hashlib.sha256(json.dumps([asdict(self.settings), self.prompts, seeding]).encode())
        for pictures in self.pictures:
            for picture in (pictures.image, pictures.mask, pictures.control):
                digest.update(b"-" if picture is None else repr(picture.size).encode() + picture.tobytes())
        return digest.hexdigest()


def manifest(row: Row) -> Manifest:
    """The same for every row of one model, size and use case."""
    drawn = inputs.tiny(row) if row.model == "tiny" else inputs.full_size(row)
    return Manifest(MODELS[row.model].settings, *drawn)


def generate(
    pipe: Any,
    row: Row,
    request: Request,
    *,
    steps: int | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[], None] | None = None,
    latents: bool = False,
) -> Output:
    """Text encode, denoise, decode: one request, images in host memory when it returns.

    ``steps`` overrides how many denoising steps are *executed*. ``on_stage`` is called as ``text``,
    ``denoise``, ``decode`` and ``end`` begin; encoding of input pictures is part of ``denoise``.
    ``on_step`` is called after each denoising step.
    """
    import torch

    stage = on_stage or _ignore
    with torch.no_grad():
        stage("text")
        prompt_embeds, pooled_prompt_embeds, _ = pipe.encode_prompt(
            prompt=request.prompt,
            prompt_2=None,
            num_images_per_prompt=request.images,
            max_sequence_length=MODELS[row.model].settings.text_tokens,
        )
        stage("denoise")
        arguments = _arguments(row, request, steps)
        packed = pipe(
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            output_type="latent",
            callback_on_step_end=_step_callback(on_step),
            **arguments,
        ).images
        stage("decode")
        scaled, decoded = _decode(pipe, row, packed)
        images, finite = _to_host(decoded)
        stage("end")
    ran = executed_steps(row.task, arguments["num_inference_steps"], MODELS[row.model].settings.strength)
    return Output(images, finite, ran, scaled.float().cpu() if latents else None)


def _ignore(_stage: str) -> None:
    pass


def _step_callback(on_step: Callable[[], None] | None) -> Callable[..., dict[str, Any]] | None:
    if on_step is None:
        return None

    def after_step(_pipe: Any, _number: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return {}

    return after_step


def _arguments(row: Row, request: Request, steps: int | None) -> dict[str, Any]:
    """What the row's pipeline is called with, beside the text."""
    import torch

    settings = MODELS[row.model].settings
    asked = row.steps if steps is None else scheduled_steps(row.task, steps, settings.strength)
    arguments: dict[str, Any] = {
        "height": row.size,
        "width": row.size,
        "num_inference_steps": asked,
        "guidance_scale": settings.guidance,
        "max_sequence_length": settings.text_tokens,
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds],
    }
    if row.task != "txt2img":
        arguments |= {"image": request.inputs.image, "strength": settings.strength}
    if row.task == "inpaint":
        arguments["mask_image"] = request.inputs.mask
    if row.control != "none":
        mode = settings.control_modes[row.control]
        arguments |= {
            "control_image": request.inputs.control,
            # diffusers 0.42.1 repeats the mode over the batch in txt2img only, where a list is refused.
            "control_mode": mode if row.task == "txt2img" else [mode] * request.images,
            "controlnet_conditioning_scale": settings.conditioning_scale,
        }
    return arguments


def _decode(pipe: Any, row: Row, packed: Any) -> tuple[Any, Any]:
    """(latents as the VAE reads them, decoded images in [-1, 1]); the last lines of every FLUX pipeline."""
    unpacked = pipe._unpack_latents(packed, row.size, row.size, pipe.vae_scale_factor)
    scaled = unpacked / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    return scaled, pipe.vae.decode(scaled.to(pipe.vae.dtype), return_dict=False)[0]


def _to_host(decoded: Any) -> tuple[Any, bool]:
    """uint8 (images, height, width, 3), rounded as diffusers' image processor rounds, and whether all of
    it was finite; both are computed on the device, so that a quarter of the bytes travel."""
    finite = decoded.isfinite().all()
    pixels = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
    return pixels.contiguous().cpu().numpy(), bool(finite)
