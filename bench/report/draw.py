"""Chart definitions to SVG and PNG files, and to SVG that a page can hold inline."""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from bench.record import write_atomically
from bench.report.charts import Figure
from bench.report.text import sentence
from bench.report.theme import (
    ACCENT,
    FONT,
    FONT_SIZE,
    GRID,
    IDLE,
    INK,
    LETTER_WIDTH,
    MARK,
    MUTED,
    PAPER,
    WIDTH,
)

PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    MARK: "var(--mark)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
    IDLE: "var(--idle)",
}
"""A chart in a page takes the page's colours, light or dark."""

NOT_DRAWN = r' (?:aria-[a-z]+|role|class|pointer-events)="[^"]*"| opacity="1"'
"""Attributes: for a page that hides charts from screen readers, whose tables tell the same."""
DRAWS_NOTHING = r'<path d="M0,0h0v0h0Z"/>|<path d="" display="none"/>'

PNG_SCALE = 1.5
PNG_COLOURS = 64
"""Few hues and their anti-aliasing: a palette makes the file a fifth as large."""
TITLE_SIZE = 14
LINE_HEIGHT = 17
"""Of the words above a chart."""


@contextmanager
def drawing(folder: Path) -> Iterator[Callable[[Figure], Future[str]]]:
    """Yields what draws a figure in another process: its SVG and PNG in ``folder``, and the SVG returned
    without the words above it. A chart takes about a quarter of a second, so all processors share them while
    the caller goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not forked: where other threads run, a fork may wait for ever for a lock that one of them held.
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:
        yield lambda figure: pool.submit(_draw, folder, figure)


def _draw(folder: Path, figure: Figure) -> str:
    import vl_convert
    from PIL import Image

    svg = numbered(bare(shortened(vl_convert.vegalite_to_svg(figure.vega_lite()))))
    whole = headed(figure, svg)
    write_atomically(folder / f"{figure.name}.svg", whole + "\n")
    # Nothing lies outside of the chart, and clipping it to its frame takes as long as drawing all its shapes.
    unclipped = whole.replace("<svg y=", '<svg overflow="visible" y=', 1)
    with Image.open(io.BytesIO(vl_convert.svg_to_png(unclipped, scale=PNG_SCALE))) as image:
        few_colours = image.quantize(PNG_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few_colours.save(folder / f"{figure.name}.png")
    return svg


def shortened(svg: str) -> str:
    """Coordinates to a hundredth of a pixel: fewer bytes, the same picture. They stand in attributes; what is
    between tags is read by people."""
    return re.sub(r'="[^"]*"', lambda value: _rounded(value[0]), svg)


def bare(svg: str) -> str:
    """The same picture in two thirds of the bytes: the font named once, and nothing of Vega's scene that
    draws nothing."""
    svg = re.sub(NOT_DRAWN, "", svg.replace(f' font-family="{FONT}"', ""))
    return re.sub(DRAWS_NOTHING, "", svg).replace("<svg ", f'<svg font-family="{FONT}" ', 1)


def numbered(svg: str) -> str:
    """Vega numbers the clips of all charts that a process draws. Each chart's own begin anew here: the same
    chart is the same file, whichever were drawn before it."""
    clip = r'(?<=url\(#)clip\d+|(?<=id=")clip\d+'
    own = {name: f"clip{number}" for number, name in enumerate(dict.fromkeys(re.findall(clip, svg)))}
    return re.sub(clip, lambda name: own[name[0]], svg)


def _rounded(coordinates: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", coordinates)


def headed(figure: Figure, svg: str) -> str:
    """The chart below its own words: as a file it must say what it is of. A page has them as text."""
    width, height = (float(size) for size in re.findall(r'\b(?:width|height)="([\d.]+)"', svg)[:2])
    words = _wrapped(figure.title, TITLE_SIZE, INK, "bold")
    for told in (figure.scope, figure.measured, figure.note):
        words += _wrapped(sentence(told), FONT_SIZE, MUTED, "normal")
    below = LINE_HEIGHT * (len(words) + 0.5)
    lines = "".join(
        f'<text x="3" y="{LINE_HEIGHT * line}" {each}</text>' for line, each in enumerate(words, 1)
    )
    size = f'width="{width:g}" height="{height + below:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width:g} {height + below:g}"'
        f' font-family="{FONT}"><rect {size} fill="{PAPER}"/>{lines}'
        f'{svg.replace("<svg ", f"""<svg y="{below:g}" """, 1)}</svg>'
    )


def _wrapped(text: str, size: int, colour: str, weight: str) -> list[str]:
    """What follows the place of each line's ``text`` element."""
    letters = int(WIDTH / (LETTER_WIDTH * size / FONT_SIZE * (1.1 if weight == "bold" else 1)))
    return [
        f'font-size="{size}" font-weight="{weight}" fill="{colour}">{html.escape(line, quote=False)}'
        for line in textwrap.wrap(text, letters)
    ]


def inline(name: str, svg: str) -> str:
    """The SVG in the page's colours; ids are made the figure's own, since a page shares one name space."""
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
