"""How far apart two attempts' quality images and latents are, from their files. No GPU, no pipeline.

An attempt's ``images/`` holds ``<prompt id>.png`` and ``<prompt id>.latents.safetensors`` for each quality
prompt. torch is needed because numpy knows no bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import layout
from bench.runner.outputs import relative_error

if TYPE_CHECKING:
    import numpy as np

LATENTS = ".latents.safetensors"


class PictureError(ValueError):
    """Files that cannot be compared. The message names them and what to do."""


class Distance(NamedTuple):
    """Of one prompt's picture from the reference's."""

    latent_relative_error: float
    psnr_db: float | None
    """None: every pixel is identical."""
    ssim: float


def prompts(attempt: Path) -> list[str]:
    """Ids of the prompts whose latents and image are both there."""
    folder = attempt / layout.IMAGES
    latents = {path.name.removesuffix(LATENTS) for path in folder.glob(f"*{LATENTS}")}
    return sorted(latents & {path.stem for path in folder.glob("*.png")})


def distance(attempt: Path, reference: Path, prompt: str) -> Distance:
    """Raises ``PictureError`` where shapes differ, a file is broken or a package is missing."""
    try:
        images = _pair(_image, attempt, reference, prompt)
        latents = _pair(_latents, attempt, reference, prompt)
        return Distance(latent_relative_error(*latents), psnr_db(*images), ssim(*images))
    except ImportError as error:
        raise PictureError(f"{error}; pictures are compared with fluxbench[run] installed") from error


def _pair(read: Callable[[Path, str], Any], attempt: Path, reference: Path, prompt: str) -> tuple[Any, Any]:
    try:
        ours, theirs = read(attempt, prompt), read(reference, prompt)
    except ImportError:
        raise
    except Exception as error:  # Pillow and safetensors raise their own kinds for a damaged file
        raise PictureError(f"prompt {prompt} of {attempt} or {reference} cannot be read: {error}") from error
    here, there = tuple(ours.shape), tuple(theirs.shape)
    if here != there:
        raise PictureError(f"prompt {prompt} has shape {here} in {attempt} and {there} in {reference}")
    return ours, theirs


def latent_relative_error(latents: Any, reference: Any) -> float:
    """``relative_error`` of two float64 tensors. Raises ``PictureError`` where it is no number."""
    error = relative_error(latents, reference)
    if not math.isfinite(error):
        raise PictureError("latents are not finite, or the reference's are all zero; run the row again")
    return error


def psnr_db(image: np.ndarray, reference: np.ndarray) -> float | None:
    """uint8 images of shape (height, width, 3); None where they are identical."""
    import numpy as np
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(image, reference):
        return None
    return float(peak_signal_noise_ratio(reference, image, data_range=255))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """With the window of Wang et al., *IEEE Transactions on Image Processing* 13 (2004) 600."""
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity(
        reference,
        image,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)


def _image(attempt: Path, prompt: str) -> np.ndarray:
    import numpy as np
    from PIL import Image

    with Image.open(attempt / layout.IMAGES / f"{prompt}.png") as image:
        return np.asarray(image.convert("RGB"))


def _latents(attempt: Path, prompt: str) -> Any:
    from safetensors.torch import load_file

    tensors = load_file(attempt / layout.IMAGES / f"{prompt}{LATENTS}")
    return tensors["latents"].double()
