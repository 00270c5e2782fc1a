"""The contact sheet: what Tiny FLUX draws through each of the six pipelines, its inputs beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.tiny import CONTROLS, SIZE, models
from bench.tiny.draw import control_map, draw, to_uint8
from bench.tiny.generate import generate
from bench.tiny.scenes import Scenes, inpaint_mask, sample
from bench.tiny.score import IMG2IMG_STRENGTH, SEED, full_captions, recoloured, reshaped, seeds

COLUMNS = 12
LABEL_PX = 18


def _rows(tiny: models.TinyFlux) -> list[tuple[str, np.ndarray]]:
    scenes = sample(2 * COLUMNS, SEED, held_out=True)
    some = scenes[:COLUMNS]
    pictures = generate(tiny, full_captions(scenes), seeds(len(scenes)))
    rows = [
        ("txt2img", pictures[:COLUMNS]),
        ("txt2img, continued", pictures[COLUMNS:]),
    ]
    for kind in CONTROLS:
        rows += _controlled(tiny, some, kind)
    return rows + _edited(tiny, some)


def _controlled(tiny: models.TinyFlux, scenes: Scenes, kind: str) -> list[tuple[str, np.ndarray]]:
    given = control_map(kind, scenes)
    drawn = generate(
        tiny, full_captions(scenes), seeds(len(scenes)), control=kind, inputs={"control_image": given}
    )
    return [(f"{kind} map", to_uint8(given)), (f"txt2img with {kind} ControlNet", drawn)]


def _edited(tiny: models.TinyFlux, scenes: Scenes) -> list[tuple[str, np.ndarray]]:
    """img2img and inpaint towards another shape (inpaint: and colour), plain and with canny of that shape."""
    image, mask = draw(scenes), inpaint_mask(scenes)
    other, repainted = reshaped(scenes), recoloured(reshaped(scenes))
    rows = [("input picture", to_uint8(image))]
    for control in (None, "canny"):
        name = " with canny ControlNet" if control else ""
        edges = {"control_image": control_map("canny", other)} if control else {}
        for task, asked, inputs, strength in (
            ("img2img", other, {"image": image}, IMG2IMG_STRENGTH),
            ("inpaint", repainted, {"image": image, "mask_image": mask}, 1.0),
        ):
            drawn = generate(
                tiny,
                full_captions(asked),
                seeds(len(scenes)),
                task=task,
                control=control,
                inputs={**inputs, **edges},
                strength=strength,
            )
            rows.append((f"{task}{name}: another shape", drawn))
    return rows


def write(tiny: models.TinyFlux, path: Path) -> None:
    rows = _rows(tiny)
    sheet = Image.new("RGB", (COLUMNS * SIZE, len(rows) * (SIZE + LABEL_PX)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, pictures) in enumerate(rows):
        top = number * (SIZE + LABEL_PX)
        pen.text((4, top + 3), label, fill="black")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (column * SIZE, top + LABEL_PX))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=88)
