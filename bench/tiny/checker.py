"""Reads a picture back: background, colour, size, position, shape, keypoints.

Its thresholds were frozen on drawn pictures (``tests/test_tiny_data.py`` holds them to 99 % there) before any
model was scored, and know nothing of any model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from bench.tiny import SIZE
from bench.tiny.draw import keypoints, unit_distance
from bench.tiny.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scenes

BORDER_PX = 4
SHADE = (0.75, 1.0, 1.25)
"""How far shading may scale a colour."""
MINIMUM_AREA_PX = 150
POSITION_RADIUS_PX = 14.0
"""A shape further than this from every place in the grid is nowhere."""
MINIMUM_IOU = 0.75
"""Overlap with the best fitting template under which a shape is unreadable."""


@dataclass(frozen=True)
class Reading:
    """What stands in a picture; None where it cannot be read."""

    background: str
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    position: str | None = None
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    mask: np.ndarray | None = None
    """(128, 128) bool."""

    def keypoints(self) -> np.ndarray | None:
        """(k, 2) pixels, or None where the shape cannot be read."""
        if self.shape is None:
            return None
        return np.array(keypoints(self.shape)) * self.radius + (self.x, self.y)


def scene_keypoints(scenes: Scenes, index: int) -> np.ndarray:
    """(k, 2) pixels: where the skeleton of a drawn scene stands."""
    unit = np.array(keypoints(SHAPES[int(scenes.shape[index])]))
    return unit * float(scenes.radius[index]) + (float(scenes.x[index]), float(scenes.y[index]))


_SHADES = np.array([[[s * c for c in rgb] for s in SHADE] for rgb in COLOURS.values()], dtype=np.float32)


def _nearest_colour(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...) index of the nearest colour in any shade."""
    shades = _SHADES.reshape(-1, 3)
    # |p - s|^2 without |p|^2, which is the same for every shade.
    distance = np.square(shades).sum(-1) - 2 * pixels.astype(np.float32) @ shades.T
    return distance.argmin(-1) // len(SHADE)


def _unit_areas() -> dict[str, float]:
    axis = torch.linspace(-1.2, 1.2, 481)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    return {s: float((unit_distance(s, points) < 0).float().mean()) * 2.4**2 for s in SHAPES}


_AREAS = _unit_areas()
_PIXELS = torch.stack(
    torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="xy"), dim=-1
)


def _template(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    points = (_PIXELS - torch.tensor((x, y))) / radius
    return (unit_distance(shape, points) < 0).numpy()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def read(picture: np.ndarray) -> Reading:
    """picture: (128, 128, 3) uint8."""
    nearest = _nearest_colour(picture)
    border = np.ones((SIZE, SIZE), bool)
    border[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    behind = int(np.bincount(nearest[border], minlength=len(COLOURS)).argmax())
    background = list(COLOURS)[behind]
    counts = np.bincount(nearest[nearest != behind], minlength=len(COLOURS))
    if counts.max() < MINIMUM_AREA_PX:
        return Reading(background)
    front = int(counts.argmax())
    mask = _object_mask(picture, nearest, behind, front)
    if mask.sum() < MINIMUM_AREA_PX:
        return Reading(background)
    y, x = (float(c) + 0.5 for c in ndimage.center_of_mass(mask))
    fits = {s: (float(mask.sum()) / _AREAS[s]) ** 0.5 for s in SHAPES}
    overlaps = {s: overlap(mask, _template(s, x, y, r)) for s, r in fits.items()}
    shape = max(overlaps, key=overlaps.__getitem__)
    readable = overlaps[shape] >= MINIMUM_IOU
    radius = fits[shape]
    return Reading(
        background=background,
        colour=list(COLOURS)[front],
        shape=shape if readable else None,
        size=min(SIZES, key=lambda s: abs(SIZES[s] - radius)) if readable else None,
        position=_place(x, y),
        x=x,
        y=y,
        radius=radius,
        mask=mask,
    )


def _object_mask(picture: np.ndarray, nearest: np.ndarray, behind: int, front: int) -> np.ndarray:
    """The largest connected area nearer to the object's own mean colour than to the background's."""
    pixels = picture.astype(np.float32)
    back, fore = pixels[nearest == behind].mean(0), pixels[nearest == front].mean(0)
    axis = fore - back
    along = (pixels - back) @ axis / (axis @ axis)
    labels, count = ndimage.label(along > 0.5)
    if count == 0:
        return np.zeros((SIZE, SIZE), bool)
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1))
    return np.asarray(labels == 1 + int(np.argmax(sizes)))


def _place(x: float, y: float) -> str | None:
    away = {name: ((x - px) ** 2 + (y - py) ** 2) ** 0.5 for name, (px, py) in POSITIONS.items()}
    nearest = min(away, key=away.__getitem__)
    return nearest if away[nearest] <= POSITION_RADIUS_PX else None
