"""What several commands ask for, and how they read the matrix: mistakes become messages, exit code 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.config import Shape

if TYPE_CHECKING:
    from bench.matrix import Row


def read_rows(path: Path) -> list[Row]:
    """The matrix, or a message with every mistake in it and exit code 2."""
    from bench.matrix_file import MatrixError, read

    try:
        return read(path)
    except FileNotFoundError:
        raise click.UsageError(
            f"{path} does not exist; run in the repository, or name the file with --matrix"
        ) from None
    except MatrixError as error:
        count = f"{len(error.problems)} mistake{'s' * (len(error.problems) != 1)}"
        raise click.UsageError(f"{path} has {count}; nothing was run\n{error}") from None


def choose_rows(rows: Sequence[Row], where: str, tier: str) -> list[Row]:
    """Those of a matrix that ``--where`` and ``--tier`` describe; a message when there are none."""
    from bench.where import WhereError, near_misses, select

    try:
        chosen = select(rows, where, tier)
    except WhereError as error:
        raise click.BadParameter(str(error), param_hint="--where") from None
    if not chosen:
        others = len(select(rows, where, "all"))
        more = [f"{others} in other tiers (--tier all)"] if others else near_misses(rows, where, tier)
        raise click.UsageError("; ".join([f"no row matches --where {where!r} --tier {tier}", *more]))
    return chosen


def find_row(rows: Sequence[Row], row_id: str, path: Path) -> Row:
    for row in rows:
        if row.row == row_id:
            return row
    raise click.BadParameter(
        f"no row {row_id} in {path}, which has {len(rows)}; `fluxbench rows` lists them", param_hint="ROW"
    )


USUAL_CELLS = "usual"


def parse_cells(_: click.Context, __: click.Parameter, text: str) -> tuple[Shape, ...] | None:
    """``1x1,1x4`` -> users x images; ``usual`` -> None, for each row has its own (``config.cells_of``)"""
    import re

    if text == USUAL_CELLS:
        return None
    cells: list[Shape] = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part)
        if match is None:
            raise click.BadParameter(f"{part!r} is not <users>x<images>, like 1x1 or 4x1")
        cell = Shape(int(match[1]), int(match[2]))
        if cell in cells:
            raise click.BadParameter(f"{part} stands twice")
        cells.append(cell)
    return tuple(cells)


cells_option = click.option(
    "--cells",
    default=USUAL_CELLS,
    show_default=True,
    callback=parse_cells,
    help="users x images, in the order of measuring. usual: 1x1,1x4,4x1,4x4, and on N GPUs Nx1 and 2Nx1.",
)


matrix_option = click.option(
    "--matrix",
    "matrix_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("matrix.csv"),
    show_default=True,
    help="The file of rows.",
)


where_option = click.option(
    "--where",
    default="",
    metavar="CONDITIONS",
    help='Conditions that all hold, like "hardware=h100x1 task=txt2img,img2img phase!=1"; a comma '
    "means any of. They may name the columns of matrix.csv, phase and image. Default: every row of the tier.",
)


tier_option = click.option(
    "--tier",
    type=click.Choice(["core", "extended", "all"]),
    default="core",
    show_default=True,
    help="core: no ControlNet, and canny. extended: depth and pose.",
)
