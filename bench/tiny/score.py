"""Scores Tiny FLUX on held-out prompts: ``python -m bench.tiny.score`` writes ``scores.json``.

No training picture has a held-out combination of shape, colour, background, size and place. Each score is a
share of pictures, with its 95 % Wilson interval, or a mean; the checker alone decides.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.record import write_atomically
from bench.tiny import CONTROLS, SIZE, STEPS, WEIGHTS, checker, models
from bench.tiny.draw import control_map, draw, masks
from bench.tiny.generate import final_latents, generate
from bench.tiny.loop import environment
from bench.tiny.scenes import COLOURS, SHAPES, Scenes, caption, inpaint_mask, sample, words

ATTRIBUTES = ("background", "colour", "position", "shape", "size")
IMG2IMG_STRENGTH = 0.6
POSE_TOLERANCE_PX = 3.0
FAR_FROM_MASK_PX = 16
SEED = 2026


@dataclass(frozen=True)
class Target:
    """What the issue asks of a score: at least, or at most, this."""

    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


TARGETS = {
    "txt2img.background": Target(0.98),
    "txt2img.colour": Target(0.97),
    "txt2img.position": Target(0.95),
    "txt2img.shape": Target(0.90),
    "canny.iou": Target(0.85),
    "depth.iou": Target(0.85),
    "pose.keypoints": Target(0.85),
    "img2img.position": Target(0.90),
    "inpaint.object": Target(0.85),
    "inpaint.difference_far_from_mask": Target(2.0, at_most=True),
    "inpaint.unmasked_latents_equal": Target(1.0),
}


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    return centre - half, centre + half


def share(hits: list[bool]) -> dict[str, Any]:
    low, high = wilson(sum(hits), len(hits))
    return {"value": sum(hits) / len(hits), "ci95": [round(low, 4), round(high, 4)], "n": len(hits)}


def mean(values: list[float]) -> dict[str, Any]:
    return {"value": float(np.mean(values)), "n": len(values)}


def full_captions(scenes: Scenes) -> list[str]:
    return [caption(w, i) for i, w in enumerate(words(scenes))]


def seeds(count: int) -> list[int]:
    return [SEED + i for i in range(count)]


def attributes(scenes: Scenes, readings: list[checker.Reading]) -> dict[str, Any]:
    """Share right per attribute, and confusion counts ``asked -> {read: count}`` of shapes and colours."""
    asked = words(scenes)
    pairs = {
        a: [(getattr(w, a), getattr(r, a)) for w, r in zip(asked, readings, strict=True)] for a in ATTRIBUTES
    }
    shares: dict[str, Any] = {a: share([truth == found for truth, found in pairs[a]]) for a in ATTRIBUTES}
    return {**shares, "confusion": {a: _confusion(pairs[a]) for a in ("shape", "colour")}}


def _confusion(pairs: list[tuple[str | None, str | None]]) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for truth, found in pairs:
        table.setdefault(str(truth), Counter())[str(found)] += 1
    return {truth: dict(counts) for truth, counts in sorted(table.items())}


def txt2img(tiny: models.TinyFlux, scenes: Scenes, **options: Any) -> tuple[dict[str, Any], np.ndarray]:
    pictures = generate(tiny, full_captions(scenes), seeds(len(scenes)), **options)
    return attributes(scenes, [checker.read(p) for p in pictures]), pictures


def controlled(tiny: models.TinyFlux, scenes: Scenes, kind: str) -> tuple[dict[str, Any], np.ndarray]:
    """The prompt names every attribute; where exactly the shape stands only the control map says."""
    inputs = {"control_image": control_map(kind, scenes)}
    pictures = generate(tiny, full_captions(scenes), seeds(len(scenes)), control=kind, inputs=inputs)
    readings = [checker.read(p) for p in pictures]
    wanted = masks(scenes).numpy()
    found = [r.mask if r.mask is not None else np.zeros((SIZE, SIZE), bool) for r in readings]
    result = {
        **attributes(scenes, readings),
        "iou": mean([checker.overlap(a, b) for a, b in zip(found, wanted, strict=True)]),
        "keypoints": mean(_keypoints_right(scenes, readings)),
    }
    return result, pictures


def _keypoints_right(scenes: Scenes, readings: list[checker.Reading]) -> list[float]:
    """Share of each skeleton's keypoints within 3 pixels; 0 where another shape, or none, is read."""
    shares = []
    for index, (asked, reading) in enumerate(zip(words(scenes), readings, strict=True)):
        found, wanted = reading.keypoints(), checker.scene_keypoints(scenes, index)
        if found is None or reading.shape != asked.shape:
            shares.append(0.0)
        else:
            away = np.linalg.norm(found - wanted, axis=1)
            shares.append(float((away <= POSE_TOLERANCE_PX).mean()))
    return shares


def reshaped(scenes: Scenes) -> Scenes:
    """The same scenes with another shape in the same place."""
    return replace(scenes, shape=(scenes.shape + 1) % len(SHAPES))


def recoloured(scenes: Scenes) -> Scenes:
    """The same scenes with the shape in another colour (and not the background's)."""
    count = len(COLOURS)
    colour = (scenes.colour + 1) % count
    return replace(scenes, colour=torch.where(colour == scenes.background, (colour + 1) % count, colour))


def img2img(tiny: models.TinyFlux, scenes: Scenes) -> tuple[dict[str, Any], np.ndarray]:
    """Asks for another shape and says nothing of the place: the picture must keep it."""
    asked = reshaped(scenes)
    prompts = [caption(replace(w, position=None), i) for i, w in enumerate(words(asked))]
    inputs = {"image": draw(scenes)}
    pictures = generate(
        tiny, prompts, seeds(len(scenes)), task="img2img", inputs=inputs, strength=IMG2IMG_STRENGTH
    )
    return attributes(asked, [checker.read(p) for p in pictures]), pictures


def inpaint(tiny: models.TinyFlux, scenes: Scenes) -> tuple[dict[str, Any], np.ndarray]:
    """Masks the shape's place and asks for another shape in another colour there."""
    asked, mask, image = recoloured(reshaped(scenes)), inpaint_mask(scenes), draw(scenes)
    prompts = full_captions(asked)
    inputs = {"image": image, "mask_image": mask}
    pictures = generate(tiny, prompts, seeds(len(scenes)), task="inpaint", inputs=inputs, strength=1.0)
    readings = [checker.read(p) for p in pictures]
    right = [
        r.shape == w.shape and r.colour == w.colour and r.position == w.position
        for r, w in zip(readings, words(asked), strict=True)
    ]
    far = _far_from(mask)
    before = (image.permute(0, 2, 3, 1) * 255).round().numpy()
    differences = [float(np.abs(pictures[i] - before[i])[far[i]].mean()) for i in range(len(scenes))]
    result = {
        **attributes(asked, readings),
        "object": share(right),
        "difference_far_from_mask": mean(differences),
        "unmasked_latents_equal": share(_unmasked_latents_equal(tiny, prompts[:8], image[:8], mask[:8])),
    }
    return result, pictures


def _far_from(mask: torch.Tensor) -> np.ndarray:
    """(n, 128, 128) bool: pixels 16 and more away from the mask."""
    grown = torch.nn.functional.max_pool2d(mask, 2 * FAR_FROM_MASK_PX - 1, 1, FAR_FROM_MASK_PX - 1)
    return (grown[:, 0] == 0).numpy()


def _unmasked_latents_equal(
    tiny: models.TinyFlux, prompts: list[str], image: torch.Tensor, mask: torch.Tensor
) -> list[bool]:
    """Two prompts over one picture: outside the mask their final latents must be the same, bit for bit."""
    inputs = {"image": image, "mask_image": mask}
    one = final_latents(tiny, prompts, seeds(len(prompts)), inputs)
    other = final_latents(tiny, prompts[::-1], seeds(len(prompts)), inputs)
    small = torch.nn.functional.interpolate(mask, scale_factor=1 / models.PIXELS_PER_LATENT)
    outside = (small == 0).expand(one.shape)
    return [bool(torch.equal(a[keep], b[keep])) for a, b, keep in zip(one, other, outside, strict=True)]


SCORED: dict[str, Callable[[models.TinyFlux, Scenes], tuple[dict[str, Any], np.ndarray]]] = {
    "txt2img": txt2img,
    **{kind: (lambda t, s, kind=kind: controlled(t, s, kind)) for kind in CONTROLS},  # type: ignore[misc]
    "img2img": img2img,
    "inpaint": inpaint,
}


def verdicts(scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each target beside what was reached."""
    lines = {}
    for name, target in TARGETS.items():
        part, score = name.split(".")
        value = scores[part][score]["value"]
        sign = "<=" if target.at_most else ">="
        lines[name] = {"target": f"{sign} {target.bound}", "value": value, "met": target.met(value)}
    return lines


SCORES = WEIGHTS.parent / "scores.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@click.command(help=__doc__)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), default=WEIGHTS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=SCORES, show_default=True)
@click.option("--count", default=500, show_default=True, help="Held-out prompts.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)), default=tuple(DTYPES))
def main(weights: Path, out: Path, count: int, device: str, dtypes: tuple[str, ...]) -> None:
    scenes = sample(count, SEED, held_out=True)
    report: dict[str, Any] = {"count": count, "steps": STEPS, "dtypes": {}}
    for dtype in dtypes:
        tiny = models.load(weights, DTYPES[dtype]).to(device, DTYPES[dtype])
        scores = {}
        for name, score in SCORED.items():
            started = time.perf_counter()
            scores[name], _ = score(tiny, scenes)
            shown = {k: round(v["value"], 4) for k, v in scores[name].items() if k != "confusion"}
            print(f"{dtype} {name:8s} {time.perf_counter() - started:5.1f} s  {shown}", flush=True)
        report["dtypes"][dtype] = {
            "scores": scores,
            "targets": verdicts(scores),
            "environment": environment(device),
        }
        write_atomically(out, json.dumps(report, indent=1) + "\n")
    for name, line in report["dtypes"][dtypes[0]]["targets"].items():
        print(f"{'met   ' if line['met'] else 'MISSED'} {name:34s} {line['target']:8s} {line['value']:.4f}")


if __name__ == "__main__":
    main()
