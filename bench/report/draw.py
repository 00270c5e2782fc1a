"""Chart definitions to SVG and PNG files, and to SVG that a page can hold inline."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.record import write_atomically
from bench.report.charts import ACCENT, GRID, INK, MARK, MUTED, PAPER, Figure

PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    MARK: "var(--mark)",
    ACCENT: "var(--accent)",
    PAPER: "none",
}
"""A chart in a page takes the page's colours, light or dark."""

PNG_SCALE = 1.5
PNG_COLOURS = 32
"""Few hues and their anti-aliasing: a palette makes the file a fifth as large."""


@contextmanager
def drawing(folder: Path) -> Iterator[Callable[[Figure], Future[str]]]:
    """Yields what draws a figure in another process: its SVG and PNG in ``folder``, and the SVG returned. A
    chart takes about a quarter of a second, so all processors share them while the caller goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        yield lambda figure: pool.submit(_draw, folder, figure)


def _draw(folder: Path, figure: Figure) -> str:
    import vl_convert
    from PIL import Image

    svg = shortened(vl_convert.vegalite_to_svg(figure.vega_lite()))
    write_atomically(folder / f"{figure.name}.svg", svg + "\n")
    with Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=PNG_SCALE))) as image:
        few_colours = image.quantize(PNG_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few_colours.save(folder / f"{figure.name}.png")
    return svg


def shortened(svg: str) -> str:
    """Coordinates to a hundredth of a pixel: fewer bytes, the same picture. They stand in attributes; what is
    between tags is read by people."""
    return re.sub(r'="[^"]*"', lambda value: _rounded(value[0]), svg)


def _rounded(coordinates: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", coordinates)


def inline(name: str, svg: str) -> str:
    """The SVG in the page's colours; ids are made the figure's own, since a page shares one name space."""
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
