"""How far apart two attempts' quality images and latents are, from their files. No GPU, no pipeline.

An attempt's ``images/`` holds ``<prompt id>.png`` and ``<prompt id>.latents.safetensors`` for each quality
prompt. torch is needed only because numpy knows no bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import layout

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
        images, latents = (
            _pair(_image, attempt, reference, prompt),
            _pair(_latents, attempt, reference, prompt),
        )
        return Distance(latent_relative_error(*latents), psnr_db(*images), ssim(*images))
    except ImportError as error:
        raise PictureError(f"{error}; pictures are compared with fluxbench[run] installed") from error


def _pair(
    read: Callable[[Path, str], np.ndarray], attempt: Path, reference: Path, prompt: str
) -> tuple[np.ndarray, np.ndarray]:
    try:
        ours, theirs = read(attempt, prompt), read(reference, prompt)
    except ImportError:
        raise
    except Exception as error:  # Pillow and safetensors raise their own kinds for a damaged file
        raise PictureError(f"prompt {prompt} of {attempt} or {reference} cannot be read: {error}") from error
    if ours.shape != theirs.shape:
        raise PictureError(
            f"prompt {prompt} has shape {ours.shape} in {attempt} and {theirs.shape} in {reference}"
        )
    return ours, theirs


def latent_relative_error(latents: np.ndarray, reference: np.ndarray) -> float:
    """|latents - reference| / |reference|, Euclidean, in float64."""
    import numpy as np

    norm = float(np.linalg.norm(reference))
    error = float(np.linalg.norm(latents - reference))
    if norm == 0 or not np.isfinite(error / norm):
        raise PictureError("latents are not finite, or the reference's are all zero; run the row again")
    return error / norm


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


def _latents(attempt: Path, prompt: str) -> np.ndarray:
    from safetensors.torch import load_file

    tensors = load_file(attempt / layout.IMAGES / f"{prompt}{LATENTS}")
    array: np.ndarray = tensors["latents"].double().numpy()
    return array
