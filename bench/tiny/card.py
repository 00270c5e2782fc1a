"""Writes the model card from what commands measured: ``python -m bench.tiny.card``.

Every number in ``README.md`` comes from ``scores.json``, ``measures.json``, ``training/*.json`` or the
weights themselves; ``--check`` fails when the card differs from what they say now.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import jinja2
from safetensors import safe_open

from bench.record import write_atomically
from bench.tiny import GUIDANCE, SIZE, STEPS, TEXT_TOKENS, WEIGHTS
from bench.tiny.scenes import COLOURS, HELD_OUT_EVERY, POSITIONS, SHAPES, SIZES

HERE = WEIGHTS.parent
CARD = HERE / "README.md"
SHEET = HERE / "contact-sheet.jpg"
STAGES = ("autoencoder", "transformer", "controlnet")


def weights_table(weights: Path) -> list[dict[str, Any]]:
    """Parameters and bytes by component, read from the safetensors files."""
    lines = []
    for file in sorted(weights.glob("*/*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        count = sum(_product(shape) for shape in shapes)
        lines.append({"name": file.parent.name, "parameters": count, "bytes": file.stat().st_size})
    return lines


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def render(here: Path = HERE) -> str:
    def read(name: str) -> Any:
        return json.loads((here / name).read_text())

    files = [p for p in (here / "weights").rglob("*") if p.is_file()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("card.md.j2").render(
        scores=read("scores.json"),
        measures=read("measures.json"),
        training={stage: read(f"training/{stage}.json") for stage in STAGES},
        weights=weights_table(here / "weights"),
        total_bytes=sum(p.stat().st_size for p in files),
        shapes=SHAPES,
        colours=COLOURS,
        sizes=SIZES,
        positions=POSITIONS,
        held_out_every=HELD_OUT_EVERY,
        size=SIZE,
        steps=STEPS,
        guidance=GUIDANCE,
        text_tokens=TEXT_TOKENS,
        sheet=SHEET.name,
    )


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; fail if the card is not what the files say.")
@click.option("--sheet", is_flag=True, help="Draw the contact sheet anew, too (a minute).")
def main(check: bool, sheet: bool) -> None:
    if sheet:
        from bench.tiny import models
        from bench.tiny.sheet import write

        write(models.load(WEIGHTS), SHEET)
    text = render()
    if check and CARD.read_text() != text:
        raise click.ClickException(f"{CARD} is not what the files say; run python -m bench.tiny.card")
    if not check:
        write_atomically(CARD, text)
        print(CARD)


if __name__ == "__main__":
    main()
