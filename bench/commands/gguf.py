"""``gguf``: GGUF files ahead of time, so that no row on rented hardware has to write one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.noise import leave_out
from bench.flux import MODELS, SOURCES

if TYPE_CHECKING:
    from bench.matrix import Row

COMPONENTS = {"transformer": "transformer", "t5": "text_encoder_2"}


@click.command()
@click.argument("quant_type", metavar="TYPE", type=click.Choice(["q8_0", "q5_1", "q4_1", "q4_0"]))
@click.option("--weights", type=click.Choice(SOURCES), default="hub", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    show_default=True,
    help="That the rows load their weights in: what is quantised is the rounded weight.",
)
@click.option("--component", type=click.Choice(sorted(COMPONENTS)), default="transformer", show_default=True)
@click.option(
    "--whole",
    is_flag=True,
    help="Everything of the component, not only the linears that rows replace: a file for other programs.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where it goes. Default: the cache where rows look for it (FLUXBENCH_GGUF_CACHE, .cache/gguf).",
)
def gguf(quant_type: str, component: str, whole: bool, output: Path | None, **source: str) -> None:
    """Quantise FLUX's transformer or T5 to GGUF TYPE and keep the file.

    On the GPU when there is one, as rows do: synthetic weights are not the same on a CPU.
    """
    from bench.axes.option import Unavailable

    if whole and output is None:
        raise click.UsageError("--whole makes a file for other programs: say where with --output")
    leave_out()
    try:
        path, written = _write(quant_type.upper(), COMPONENTS[component], whole, output, **source)
    except Unavailable as error:
        raise click.ClickException(str(error)) from None
    state = "written" if written else "already there"
    click.echo(f"{path} {state}, {path.stat().st_size / 1e9:.2f} GB")


def _write(
    quant_type: str, component: str, whole: bool, output: Path | None, *, weights: str, precision: str
) -> tuple[Path, bool]:
    """(the file, whether it was written now)"""
    import torch

    from bench.axes.quantization import census, gguf_file, quantised, with_gguf
    from bench.runner import models

    row = _row(weights, precision)
    pipe = models.load(row, weights, "cuda" if torch.cuda.is_available() else "cpu").pipe
    target = quantised.TRANSFORMER if component == "transformer" else quantised.T5
    module = getattr(pipe, component)
    names = [name for name in census.linears(module) if target.chosen(name)]
    wanted = gguf_file.contents(module, names, quant_type, whole=whole)
    with click.progressbar(length=100, label=f"{component} in {quant_type}") as bar:

        def progress(done: int, total: int) -> None:
            bar.update(100 * done // total - bar.pos)

        if output is not None:
            gguf_file.write(wanted, output, progress)
            return output, True
        stem = with_gguf.stem(row.model, component, quant_type)
        return gguf_file.cached(wanted, stem, with_gguf.cache_folder(), progress)


def _row(weights: str, precision: str) -> Row:
    """A row that loads these weights; no other field of it matters here."""
    from bench.matrix import REFERENCE, Row

    values: dict[str, Any] = {**REFERENCE, "precision": precision, "task": "txt2img", "control": "none"}
    values["model"] = next(name for name, model in MODELS.items() if weights in model.sources)
    return Row(row="1", tier="core", hardware="cpu", size=1024, steps=28, **values)
