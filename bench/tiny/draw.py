"""Paints scenes and their control maps, batched on whatever device the scenes are on.

Shapes are signed distance functions (negative inside), after Inigo Quilez, "2D distance functions":
edges, antialiasing and the depth map all come from one field.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from bench.tiny import SIZE
from bench.tiny.scenes import COLOURS, SHAPES, Scenes

RING_HOLE = 0.55
CROSS_ARM = 0.34
STAR_INNER = 0.46
KEYPOINT_COLOURS = ((255, 0, 0), (255, 170, 0), (170, 255, 0), (0, 255, 85), (0, 170, 255), (170, 0, 255))


def _polygon(vertices: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Exact signed distance to a polygon. vertices (k, 2); points (..., 2)."""
    following = torch.roll(vertices, -1, dims=0)
    distance = torch.full(points.shape[:-1], torch.inf, device=points.device)
    sign = torch.ones(points.shape[:-1], device=points.device)
    for start, end in zip(vertices, following, strict=True):
        edge, offset = end - start, points - start
        along = ((offset * edge).sum(-1) / (edge * edge).sum()).clamp(0, 1)
        distance = torch.minimum(distance, (offset - along[..., None] * edge).square().sum(-1))
        above, below = points[..., 1] >= start[1], points[..., 1] < end[1]
        left = edge[0] * offset[..., 1] > edge[1] * offset[..., 0]
        crosses = (above & below & left) | (~above & ~below & ~left)
        sign = torch.where(crosses, -sign, sign)
    return sign * distance.sqrt()


def _vertices(shape: str) -> list[tuple[float, float]]:
    """Corners of the polygonal shapes at radius 1; y points down."""
    turns = {"triangle": 3, "star": 10}[shape]
    radii = (1.15, 1.15) if shape == "triangle" else (1.15, 1.15 * STAR_INNER)
    angles = [2 * np.pi * k / turns - np.pi / 2 for k in range(turns)]
    return [(float(radii[k % 2] * np.cos(a)), float(radii[k % 2] * np.sin(a))) for k, a in enumerate(angles)]


def _box(points: torch.Tensor, half_width: float, half_height: float) -> torch.Tensor:
    q = points.abs() - torch.tensor((half_width, half_height), device=points.device)
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def unit_distance(shape: str, points: torch.Tensor) -> torch.Tensor:
    """Signed distance at radius 1. points (..., 2) in units of the radius."""
    match shape:
        case "circle":
            return points.norm(dim=-1) - 1
        case "square":
            return _box(points, 0.88, 0.88)
        case "ring":
            return (points.norm(dim=-1) - (1 + RING_HOLE) / 2).abs() - (1 - RING_HOLE) / 2
        case "cross":
            return torch.minimum(_box(points, 1.0, CROSS_ARM), _box(points, CROSS_ARM, 1.0))
        case "triangle" | "star":
            return _polygon(torch.tensor(_vertices(shape), device=points.device), points)
    raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")


def keypoints(shape: str) -> list[tuple[float, float]]:
    """The skeleton at radius 1: the centre first, then the tips of its limbs."""
    if shape in ("triangle", "star"):
        return [(0.0, 0.0), *_vertices(shape)[:: 1 if shape == "triangle" else 2]]
    reach = {"circle": 1.0, "cross": 1.0, "ring": (1 + RING_HOLE) / 2, "square": 0.88}[shape]
    if shape == "square":
        return [(0.0, 0.0), *((x * reach, y * reach) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)))]
    return [(0.0, 0.0), (0.0, -reach), (reach, 0.0), (0.0, reach), (-reach, 0.0)]


def _pixels(device: torch.device) -> torch.Tensor:
    """(128, 128, 2): pixel centres as x, y."""
    axis = torch.arange(SIZE, device=device, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1)


def distances(scenes: Scenes) -> torch.Tensor:
    """(n, 128, 128): signed distance to the scene's shape in pixels, negative inside."""
    centres = torch.stack((scenes.x, scenes.y), dim=-1)[:, None, None]
    points = (_pixels(scenes.x.device) - centres) / scenes.radius[:, None, None, None]
    field = torch.empty(points.shape[:-1], device=points.device)
    for index, shape in enumerate(SHAPES):
        chosen = scenes.shape == index
        field[chosen] = unit_distance(shape, points[chosen])
    return field * scenes.radius[:, None, None]


def masks(scenes: Scenes) -> torch.Tensor:
    """(n, 128, 128) bool: the shape's pixels."""
    return distances(scenes) < 0


def draw(scenes: Scenes) -> torch.Tensor:
    """(n, 3, 128, 128) in [0, 1]: a shape lit from the upper left on a background with a gradient."""
    palette = torch.tensor(list(COLOURS.values()), device=scenes.x.device, dtype=torch.float32) / 255
    points = _pixels(scenes.x.device)[None]
    direction = torch.stack((scenes.shade_angle.cos(), scenes.shade_angle.sin()), dim=-1)
    slope = ((points / SIZE - 0.5) * direction[:, None, None]).sum(-1)
    behind = palette[scenes.background][:, :, None, None] * (1 + 0.2 * slope)[:, None]
    offset = (points - torch.stack((scenes.x, scenes.y), dim=-1)[:, None, None]).sum(-1)
    light = 1 - 0.1 * (offset / scenes.radius[:, None, None]).clamp(-1.5, 1.5)
    front = palette[scenes.colour][:, :, None, None] * light[:, None]
    cover = (0.5 - distances(scenes)).clamp(0, 1)[:, None]
    return (behind * (1 - cover) + front * cover).clamp(0, 1)


def canny(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, 128, 128) in {0, 1}: ``cv2.Canny(image, 100, 200)``, the call of diffusers' own examples."""
    pictures = (images.mul(255).round().byte().permute(0, 2, 3, 1)).contiguous().cpu().numpy()
    edges = np.stack([cv2.Canny(picture, 100, 200) for picture in pictures])
    return torch.from_numpy(edges).to(images.device)[:, None].expand(-1, 3, -1, -1).float() / 255


def depth(scenes: Scenes) -> torch.Tensor:
    """(n, 3, 128, 128) in [0, 1], near is bright: a bevelled shape before a far wall."""
    height = (-distances(scenes) / 8).clamp(0, 1)
    inside = (distances(scenes) < 0).float()
    return (0.1 + inside * (0.6 + 0.3 * height))[:, None].expand(-1, 3, -1, -1)


def pose(scenes: Scenes) -> torch.Tensor:
    """(n, 3, 128, 128) in [0, 1]: limbs from the centre to each tip, and a dot on each keypoint,
    coloured by their order as in OpenPose's skeletons."""
    points = _pixels(scenes.x.device)[None]
    picture = torch.zeros(len(scenes), SIZE, SIZE, 3, device=scenes.x.device)
    palette = torch.tensor(KEYPOINT_COLOURS, device=scenes.x.device) / 255
    for index, shape in enumerate(SHAPES):
        chosen = (scenes.shape == index).nonzero()[:, 0]
        some = scenes[chosen]
        centre = torch.stack((some.x, some.y), dim=-1)[:, None, None]
        tips = torch.tensor(keypoints(shape), device=points.device) * 1.0
        canvas = torch.zeros(len(chosen), SIZE, SIZE, 3, device=points.device)
        for k, tip in enumerate(tips):
            limb = tip * some.radius[:, None, None, None]
            offset = points - centre
            along = ((offset * limb).sum(-1) / limb.square().sum(-1).clamp(min=1e-6)).clamp(0, 1)
            line = (offset - along[..., None] * limb).norm(dim=-1) < 1.2
            canvas = torch.where(line[..., None], palette[k] * 0.6, canvas)
        for k, tip in enumerate(tips):
            dot = (points - centre - tip * some.radius[:, None, None, None]).norm(dim=-1) < 2.5
            canvas = torch.where(dot[..., None], palette[k], canvas)
        picture[chosen] = canvas
    return picture.permute(0, 3, 1, 2)


def control_map(kind: str, scenes: Scenes) -> torch.Tensor:
    """(n, 3, 128, 128) in [0, 1]."""
    if kind == "canny":
        return canny(draw(scenes))
    return {"depth": depth, "pose": pose}[kind](scenes)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """(n, 3, h, w) in [0, 1] -> (n, h, w, 3) uint8."""
    return images.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
