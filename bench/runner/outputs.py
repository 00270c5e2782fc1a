"""What a request delivers, and whether it may count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.config import OUTPUT
from bench.matrix import Row


class InvalidOutput(Exception):
    """The images cannot be real results: wrong size, not finite, or flat."""


@dataclass(frozen=True)
class Output:
    images: Any
    """uint8 array (images, height, width, 3) in host memory."""
    finite: bool
    """False when the decoder returned NaN or infinity anywhere: uint8 can no longer tell."""
    steps: int
    """Denoising steps that ran."""
    latents: Any = None
    """What the decoder read, as float32 CPU tensor (images, channels, height/8, width/8); when asked for."""


def require_valid(row: Row, output: Output, images: int) -> None:
    """Raises InvalidOutput naming the row and what is wrong."""
    expected = (images, row.size, row.size, 3)
    if output.images.shape != expected or output.images.dtype.name != "uint8":
        raise InvalidOutput(
            f"{row.label}: images are {output.images.dtype} {output.images.shape}, expected uint8 {expected}"
        )
    if not output.finite:
        raise InvalidOutput(f"{row.label}: the decoded image holds NaN or infinity")
    # Channel by channel: one plain colour differs between channels and is flat all the same.
    # Every 4th pixel either way says the same; all of them take 57 ms at 1024, while other users wait.
    flattest = min(float(image[::4, ::4].std(axis=(0, 1)).max()) for image in output.images)
    if flattest < OUTPUT.min_standard_deviation:
        raise InvalidOutput(
            f"{row.label}: an image is flat (standard deviation {flattest:.2f} of 255,"
            f" at least {OUTPUT.min_standard_deviation} expected)"
        )


def relative_error(found: Any, expected: Any) -> float:
    """|found - expected| / |expected|, Euclidean, of two tensors."""
    return float((found - expected).norm() / expected.norm())
