"""Input pictures of full-size rows, drawn: a landscape with houses and a walking figure.

Drawing knows what no estimator has to guess: the depth map is painted with the picture, nearest last, and
the pose is the figure's own skeleton. Canny edges are computed from the picture with OpenCV, as users do.
Everything follows from ``seed`` and ``size``; the pixels are hashed into the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.flux import TOKEN_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

Point = tuple[float, float]

_JOINTS: dict[str, Point] = {
    "nose": (0.0, -0.44),
    "neck": (0.0, -0.32),
    "right shoulder": (-0.10, -0.31),
    "right elbow": (-0.17, -0.16),
    "right wrist": (-0.13, -0.02),
    "left shoulder": (0.10, -0.31),
    "left elbow": (0.18, -0.18),
    "left wrist": (0.26, -0.08),
    "right hip": (-0.07, 0.02),
    "right knee": (-0.12, 0.25),
    "right ankle": (-0.17, 0.47),
    "left hip": (0.07, 0.02),
    "left knee": (0.14, 0.23),
    "left ankle": (0.13, 0.47),
}
"""A walking figure one unit tall around its centre, y down: OpenPose's COCO joints without eyes and ears."""
_LIMBS = (
    ("neck", "right shoulder"),
    ("right shoulder", "right elbow"),
    ("right elbow", "right wrist"),
    ("neck", "left shoulder"),
    ("left shoulder", "left elbow"),
    ("left elbow", "left wrist"),
    ("neck", "right hip"),
    ("right hip", "right knee"),
    ("right knee", "right ankle"),
    ("neck", "left hip"),
    ("left hip", "left knee"),
    ("left knee", "left ankle"),
    ("neck", "nose"),
)


@dataclass(frozen=True)
class Scene:
    image: Image
    depth: Image
    """Near is bright, as MiDaS and Depth Anything paint it."""
    joints: dict[str, Point]
    """In pixels."""
    mask: Image
    """White where the picture is painted anew: the figure's box."""


def draw(seed: int, size: int) -> Scene:
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    image, depth = _sky(rng, size), Image.new("L", (size, size), 10)
    brushes = ImageDraw.Draw(image), ImageDraw.Draw(depth)
    for layer in range(3):
        _hills(rng, size, layer, *brushes)
    for _ in range(4):
        _house(rng, size, *brushes)
    joints = _place_figure(rng, size)
    _figure(rng, size, joints, *brushes)
    return Scene(image, depth.convert("RGB"), joints, _mask(joints, size))


def control_map(kind: str, scene: Scene) -> Image:
    """``canny``, ``depth`` or ``pose``, RGB."""
    if kind == "depth":
        return scene.depth
    return {"canny": _canny, "pose": _pose}[kind](scene)


def _canny(scene: Scene) -> Image:
    import cv2
    import numpy as np
    from PIL import Image

    edges = cv2.Canny(np.asarray(scene.image), 100, 200)
    return Image.fromarray(np.repeat(edges[:, :, None], 3, axis=2))


def _pose(scene: Scene) -> Image:
    """Coloured limbs and joints on black, hues around the circle as OpenPose draws them."""
    from colorsys import hsv_to_rgb

    from PIL import Image, ImageDraw

    size = scene.image.width
    picture = Image.new("RGB", (size, size))
    brush = ImageDraw.Draw(picture)

    def colour(number: int, of: int, value: float) -> tuple[int, ...]:
        return tuple(round(255 * channel) for channel in hsv_to_rgb(number / of, 1.0, value))

    for number, (start, end) in enumerate(_LIMBS):
        line = [scene.joints[start], scene.joints[end]]
        brush.line(line, fill=colour(number, len(_LIMBS), 0.6), width=max(2, size // 128))
    for number, joint in enumerate(scene.joints.values()):
        _dot(brush, joint, size / 160, colour(number, len(scene.joints), 1.0))
    return picture


def _sky(rng: Any, size: int) -> Image:
    """A vertical gradient with grain, so that no two pixels rows are alike."""
    import numpy as np
    from PIL import Image

    top, bottom = rng.uniform(60, 160, 3), rng.uniform(150, 250, 3)
    fade = np.linspace(0, 1, size)[:, None, None]
    grain = rng.normal(0, 4, (size, size, 1))
    return Image.fromarray((top + (bottom - top) * fade + grain).clip(0, 255).astype(np.uint8))


def _hills(rng: Any, size: int, layer: int, brush: Any, depth: Any) -> None:
    """A ridge of summed sines, lower, darker and nearer with each layer."""
    import numpy as np

    x = np.linspace(0, 1, 65)
    waves = sum(
        rng.uniform(0.01, 0.05) * np.sin(2 * np.pi * (rng.integers(1, 5) * x + rng.random()))
        for _ in range(4)
    )
    ridge = [(float(a * size), float(b * size)) for a, b in zip(x, 0.45 + 0.15 * layer + waves, strict=True)]
    outline = [*ridge, (float(size), float(size)), (0.0, float(size))]
    brush.polygon(outline, fill=_shade(rng, 150 - 35 * layer))
    depth.polygon(outline, fill=50 + 40 * layer)


def _house(rng: Any, size: int, brush: Any, depth: Any) -> None:
    left, base = rng.uniform(0.05, 0.85) * size, rng.uniform(0.7, 0.8) * size
    width, height = rng.uniform(0.08, 0.16) * size, rng.uniform(0.08, 0.18) * size
    walls = (left, base - height, left + width, base)
    roof = [(left - width * 0.1, base - height), (left + width * 1.1, base - height)]
    roof.append((left + width / 2, base - height * 1.6))
    for shape, outline in ((brush.rectangle, walls), (brush.polygon, roof)):
        shape(outline, fill=_shade(rng, 140))
    depth.rectangle(walls, fill=180)
    depth.polygon(roof, fill=180)


def _place_figure(rng: Any, size: int) -> dict[str, Point]:
    height = rng.uniform(0.45, 0.6) * size
    x, y = rng.uniform(0.3, 0.7) * size, 0.93 * size - height / 2
    return {name: (float(x + dx * height), float(y + dy * height)) for name, (dx, dy) in _JOINTS.items()}


def _figure(rng: Any, size: int, joints: dict[str, Point], brush: Any, depth: Any) -> None:
    coat, skin = _shade(rng, 90), _shade(rng, 190)
    for canvas, clothes, head in ((brush, coat, skin), (depth, 240, 250)):
        for start, end in _LIMBS:
            canvas.line([joints[start], joints[end]], fill=clothes, width=max(3, size // 28))
        _dot(canvas, joints["nose"], size / 24, head)


def _dot(brush: Any, centre: Point, radius: float, fill: Any) -> None:
    x, y = centre
    brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _shade(rng: Any, brightness: float) -> tuple[int, ...]:
    return tuple(int(value) for value in (brightness + rng.uniform(-45, 45, 3)).clip(0, 255))


def _mask(joints: dict[str, Point], size: int) -> Image:
    from PIL import Image, ImageDraw

    def snap(value: float) -> int:
        return min(size, max(0, round(value / TOKEN_PIXELS) * TOKEN_PIXELS))

    xs, ys = zip(*joints.values(), strict=True)
    margin = size / 16
    mask = Image.new("L", (size, size))
    # Pillow's rectangles include their last pixel.
    box = (
        snap(min(xs) - margin),
        snap(min(ys) - margin),
        snap(max(xs) + margin) - 1,
        snap(max(ys) + margin) - 1,
    )
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask
