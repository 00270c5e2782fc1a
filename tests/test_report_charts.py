"""Charts: each tells its stacks apart, in full, on any paper and for any eye, and says what it is of."""

from __future__ import annotations

import io
import itertools
import re
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert
from fake_attempts import write_attempt
from fakes import fake_result, fake_row
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench import matrix_file
from bench.matrix import BASELINE, REFERENCE, Row
from bench.report import dot_names, html, names, scatter, strips, theme
from bench.report.chart_data import MOST_STACKS, Rows, label
from bench.report.charts import Figure, figures
from bench.report.draw import bare, headed, numbered, shortened
from bench.report.load import load
from bench.report.page import report

REPOSITORY = Path(__file__).parent.parent
ROOM_OF_VALUES = 44
"""Pixels at the end of a stack's line, for ``12.3 s``."""


def charts(results: Path) -> dict[str, Figure]:
    """Of the only use case, by the last word of their names."""
    (page,) = report(load(results)).pages
    (view,) = page.sections
    (case,) = view.cases
    return {
        each.name.rsplit("-", 1)[1]: each
        for each in figures(view.section, case.case, case.gains, case.scaled)
    }


def svg_of(figure: Figure) -> str:
    return bare(shortened(vl_convert.vegalite_to_svg(figure.vega_lite())))


def texts(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def heights_of_texts(svg: str) -> dict[str, float]:
    """Pixels within the plot, downwards."""
    found = re.findall(r"<text[^>]*translate\([\d.-]+,([\d.-]+)\)[^>]*>([^<]*)</text>", svg)
    return {text: float(height) for height, text in found}


def test_coordinates_are_rounded_and_the_numbers_that_people_read_are_not() -> None:
    svg = '<path d="M0.1299,5L10.12345,7"/><text transform="translate(3.14159,2)">0.0742</text>'
    assert shortened(svg) == '<path d="M0.13,5L10.12,7"/><text transform="translate(3.14,2)">0.0742</text>'


def test_what_draws_nothing_is_left_out_of_a_chart_and_its_font_is_named_once(tmp_path: Path) -> None:
    """Its picture stays the same to the pixel."""
    for number, change in enumerate(
        ({}, {"compilation": "inductor"}, {"vae": "tiled"}, {"attention": "cudnn"})
    ):
        write_attempt(tmp_path, fake_result(fake_row(row=str(2 + number), **change)))
    for name, figure in charts(tmp_path).items():
        whole = vl_convert.vegalite_to_svg(figure.vega_lite())
        assert bare(whole).count("font-family") == 1, name
        assert not re.search(r'aria-|role=|class=|d=""|M0,0h0v0h0Z', bare(whole)), name
        assert np.array_equal(pixels(bare(whole)), pixels(whole)), name


def pixels(svg: str) -> np.ndarray:
    with Image.open(io.BytesIO(vl_convert.svg_to_png(svg))) as image:
        return np.asarray(image.convert("RGB"))


def test_a_chart_is_the_same_file_whichever_charts_its_process_drew_before() -> None:
    svg = '<g clip-path="url(#clip{0})"/><clipPath id="clip{0}"/><g clip-path="url(#clip{1})"/>'
    assert numbered(svg.format(7, 12)) == numbered(svg.format(0, 1)) == svg.format(0, 1)


def test_every_row_of_the_matrix_has_a_name_of_its_own_and_room_for_it() -> None:
    rows = matrix_file.read(REPOSITORY / "matrix.csv")
    by_id = {row.row: row for row in rows}
    worlds: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        worlds[row.hardware, row.model, row.size, row.steps, row.use_case].append(row)
    for world in worlds.values():
        stacks = [label(row) for row in world]
        assert len(set(stacks)) == len(stacks)
        changes = [names.layer(row, by_id[row.parent]) for row in world if row.parent]
        for name in stacks + changes:
            assert len(name) * theme.LETTER_WIDTH < theme.WIDTH - ROOM_OF_VALUES, name


def test_stacks_whose_long_names_differ_at_the_end_have_each_their_line(tmp_path: Path) -> None:
    long = {"quantization": "scaledmm-fp8-row", "attention": "flash3"}
    for row, compilation, seconds in (("2057", "inductor-fused", 2.7), ("2069", "inductor-graphs", 2.4)):
        write_attempt(
            tmp_path,
            fake_result(fake_row(row=row, compilation=compilation, **long), median_seconds=seconds),
        )
    for name in ("latency", "life", "memory"):
        told = texts(svg_of(charts(tmp_path)[name]))
        for compilation in ("inductor-fused", "inductor-graphs"):
            assert told.count(f"bf16 + scaledmm-fp8-row + flash3 + {compilation}") == 1, name
    heights = heights_of_texts(svg_of(charts(tmp_path)["latency"]))
    for compilation, p50 in (("inductor-graphs", "2.40 s"), ("inductor-fused", "2.70 s")):
        assert heights[p50] == pytest.approx(
            heights[f"bf16 + scaledmm-fp8-row + flash3 + {compilation}"], abs=1
        )
    assert heights["2.70 s"] - heights["2.40 s"] == theme.ROW_HEIGHT


def test_the_reference_and_the_baseline_are_drawn_however_slow_they_are(tmp_path: Path) -> None:
    slow = (({**REFERENCE}, 9.0), ({**BASELINE}, 30.0))
    for number, (stack, seconds) in enumerate(slow, 1):
        write_attempt(tmp_path, fake_result(fake_row(row=str(number), **stack), median_seconds=seconds))
    quick = [row for row in matrix_file.read(REPOSITORY / "matrix.csv") if row.hardware == "h100x1"]
    quick = [row for row in quick if row.use_case == ("txt2img", "none") and row.size == 1024]
    quick = [row for row in quick if not row.is_reference and not row.is_baseline][: MOST_STACKS + 3]
    for row in quick:
        write_attempt(tmp_path, fake_result(row, shapes=[(1, 1)], median_seconds=2.0 + int(row.row) / 1e4))
    latency = charts(tmp_path)["latency"]
    drawn = dict.fromkeys(row["label"] for row in latency.data)
    assert len(drawn) == MOST_STACKS + 2
    assert list(drawn)[-2:] == ["bf16 (reference)", "fp32 (baseline)"]
    assert latency.note.endswith("; 3 slower stacks in the tables only")


def test_only_marks_that_are_drawn_are_explained(tmp_path: Path) -> None:
    write_attempt(tmp_path, fake_result(fake_row(row="2"), n=3, shapes=[(1, 1)]))
    assert charts(tmp_path)["latency"].note == "ticks: requests"
    write_attempt(tmp_path, fake_result(fake_row(row="3", vae="tiled"), shapes=[(1, 1)]))
    assert charts(tmp_path)["latency"].note == "dot: median; bar: its 95 % CI; ticks: requests"


def test_a_chart_file_says_what_it_is_of_and_when_it_was_measured(tmp_path: Path) -> None:
    write_attempt(tmp_path, fake_result(fake_row(row="2")))
    latency = charts(tmp_path)["latency"]
    svg = svg_of(latency)
    whole = headed(latency, svg)
    told = " ".join(texts(whole))
    for words in ("Latency distribution: Text-to-Image", "NVIDIA H100 80GB HBM3", "synthetic weights"):
        assert words in told
        assert words not in " ".join(texts(svg)), "a page has its own words above the chart"
    assert "Measured 2026-11-22, commit 00000000" in told
    width = float(ElementTree.fromstring(whole).attrib["width"])
    assert all(len(line) * theme.LETTER_WIDTH < width for line in texts(whole))


def test_every_dot_bears_its_rows_id_and_the_key_names_its_stack(tmp_path: Path) -> None:
    changes = ({}, {"compilation": "inductor"}, {"vae": "tiled"}, {"attention": "cudnn"})
    for number, change in enumerate(changes):
        row = fake_row(row=str(1440 + number), **change)
        write_attempt(tmp_path, fake_result(row, median_seconds=4.0 + number))
    told = texts(svg_of(charts(tmp_path)["memory"]))
    for number, name in enumerate(("bf16 (reference)", "bf16 + inductor", "bf16 + tiled", "bf16 + cudnn")):
        assert told.count(str(1440 + number)) == 2, "beside its dot and in the key"
        assert told.count(name) == 1


def test_a_few_dots_are_not_drawn_for_the_table_tells_as_much(tmp_path: Path) -> None:
    for number, change in enumerate(({}, {"compilation": "inductor"}, {"vae": "tiled"})):
        write_attempt(tmp_path, fake_result(fake_row(row=str(2 + number), **change), shapes=[(1, 1)]))
    assert "memory" not in charts(tmp_path)
    write_attempt(tmp_path, fake_result(fake_row(row="5", attention="cudnn"), shapes=[(1, 1)]))
    assert "memory" in charts(tmp_path)


def dot(row: str, x: float, y: float, **more: Any) -> dict[str, Any]:
    return {"row": row, "label": f"stack {row}", "x": x, "y": y, "may_win": True, "cell": "1×1", **more}


@pytest.mark.parametrize(
    ("sign", "best"), [(1, {"light", "both", "fast"}), (-1, {"light"})], ids=["throughput", "error"]
)
def test_the_best_dots_are_those_that_no_other_beats_both_ways(sign: int, best: set[str]) -> None:
    data = [
        dot("light", 30.0, 0.2),
        dot("both", 32.0, 0.4),
        dot("fast", 40.0, 0.5),
        dot("beaten", 33.0, 0.4),
        dot("scheduled", 10.0, 0.9 if sign > 0 else 0.0, may_win=False),
    ]
    assert {each["row"] for each in data if scatter._is_best(each, data, sign)} == best


def test_a_small_error_is_drawn_as_small_and_has_ticks_to_be_read_by() -> None:
    data: Rows = [dot("39", 5.3, 0.0, cell="reference"), dot("169", 4.0, 0.007, cell="lossless")]
    figure = Figure("quality", "", "", "", "", scatter.quality, data)
    told = texts(svg_of(figure))
    assert {"0", "0.002", "0.005", "0.01", "0.02"} <= set(told)
    assert "lossless: at most 0.02" in told


coordinate = st.floats(20, 380)


@given(st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=4, unique=True))
def test_names_of_dots_cover_no_other_name_and_stay_on_the_plot(places: list[tuple[float, float]]) -> None:
    dots = [dot_names.Dot(x, y, 25) for x, y in places]
    boxes = [
        dot_names.Box(each.x + dx, each.y + dy, 25, dot_names.NAME_HEIGHT)
        for each, (dx, dy) in zip(dots, dot_names.offsets(dots, 400, 400), strict=True)
    ]
    assert all(round(one.overlap(other)) == 0 for one, other in itertools.combinations(boxes, 2))
    assert all(round(box.outside(400, 400)) == 0 for box in boxes)


def test_noise_is_not_drawn_as_wide_as_a_difference() -> None:
    stack = {"row": "1", "label": "bf16", "value": ""}
    latency: Rows = [stack | {"seconds": 5.00 + index / 1000} for index in range(9)]
    gains: Rows = [stack | {"gain": 1.001, "low": 0.999, "high": 1.003, "tone": "weak"}]
    for definition, data in ((strips.latency, latency), (strips.layers, gains)):
        told = texts(svg_of(Figure("noise", "", "", "", "", definition, data)))
        ticks = [float(text) for text in told if re.fullmatch(r"[\d.]+", text)]
        assert max(ticks) > 1.03 * min(ticks)


def test_series_that_may_coincide_differ_in_shape() -> None:
    shapes = [shape for _, shape in strips.STYLES]
    assert len(set(shapes)) == len(shapes)


# Machado, Oliveira and Fernandes 2009, at full severity, on linear RGB.
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TOLD_APART = 10.0
"""CIEDE2000 of colours that lie side by side; the pair that a reader took for one had 3."""


def scheme(name: str) -> dict[str, str]:
    """The page's variables: of light paper, or of dark."""
    style = (html.TEMPLATES / "style.css").read_text()
    block = re.search(
        {"light": r":root \{(.*?)\}", "dark": r':root\[data-theme="dark"\] \{(.*?)\}'}[name], style, re.S
    )
    assert block
    return dict(re.findall(r"(--[\w-]+): (#\w{6})", block[1]))


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("paper", ["light", "dark"])
def test_kinds_of_kernels_are_told_apart_by_every_eye_on_light_and_dark_paper(paper: str, eye: str) -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    page = scheme(paper)
    colours = {**theme.KIND_COLOURS, "idle": page["--idle"], "paper": page["--paper"]}

    def seen(colour: str) -> Any:
        rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        turned = np.clip(EYES[eye] @ linear, 0, 1)
        return rgb2lab(np.where(turned <= 0.0031308, turned * 12.92, 1.055 * turned ** (1 / 2.4) - 0.055))

    for one, other in itertools.combinations(colours, 2):
        assert deltaE_ciede2000(seen(colours[one]), seen(colours[other])) > TOLD_APART, (one, other)
