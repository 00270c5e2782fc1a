"""``run`` and ``overhead``: measuring in this very process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import cells_option, find_row, matrix_option, read_rows
from bench.flux import SOURCES

if TYPE_CHECKING:
    from bench.matrix import Row
    from bench.runner.load import Load


def parse_row(text: str) -> Row:
    """``--row-json``"""
    from pydantic import ValidationError

    from bench.matrix import Row
    from bench.vocabulary import unknown

    try:
        row = Row.model_validate_json(text)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, each['loc'])) or 'row'}: {each['msg']}" for each in error.errors()]
        raise click.BadParameter("; ".join(told), param_hint="--row-json") from None
    mistakes = [f"{axis}: {wrong}" for axis, option in row.stack.items() if (wrong := unknown(axis, option))]
    if mistakes:
        raise click.BadParameter("\n".join(mistakes), param_hint="--row-json")
    return row


def parse_load(_: click.Context, __: click.Parameter, text: str) -> Load:
    from bench.runner.load import Load

    try:
        return Load.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("row_id", metavar="[ROW]", required=False)
@matrix_option
@click.option("--row-json", metavar="JSON", help="The row itself, as the host passes it, instead of ROW.")
@click.option(
    "--weights",
    type=click.Choice(SOURCES),
    help="Default: tiny for rows of the tiny model, else hub.",
)
@click.option(
    "--budget",
    type=click.Choice(["probe", "quick", "standard", "full"]),
    default="quick",
    show_default=True,
    help="How many requests a cell; of standard and full, the share of one process.",
)
@click.option(
    "--requests", type=click.IntRange(min=1), help="Steady requests a cell, instead of the budget's."
)
@cells_option
@click.option(
    "--load",
    default="closed",
    show_default=True,
    callback=parse_load,
    help="closed: a user sends its next request when the last one returned. poisson:RATE: each user sends "
    "RATE requests a second, whatever the server does.",
)
@click.option(
    "--quality/--no-quality",
    default=True,
    show_default=True,
    help="Keep images and latents of the quality prompts.",
)
@click.option(
    "--profile/--no-profile",
    default=None,
    help="On a GPU, pay for one more request that shows where its time goes: kernels, launches,"
    " communication.  [default: unless the budget is probe]",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="The results tree.",
)
@click.option(
    "--attempt-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the host wants this attempt's files and keeps its log. Default: a new folder in the tree.",
)
def run(row_id: str | None, row_json: str | None, matrix_path: Path, **asked: Any) -> None:
    """Measure one row in this process: what the host starts, and what replays a row by hand.

    Exits 0 when result.json says ok, 3 when it says another status.
    """
    from bench.runner.command import job_of, run_here

    if row_id is not None and row_json is None:
        row = find_row(read_rows(matrix_path), row_id, matrix_path)
    elif row_json is not None and row_id is None:
        row = parse_row(row_json)
    else:
        raise click.UsageError("name one row, either by its id or by --row-json")
    try:
        job = job_of(row, **asked)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        sys.exit(run_here(job, keep_log=asked["attempt_dir"] is None))
    except OSError as error:
        raise click.ClickException(f"{row.label}: {error}; make room and run it again") from None


@click.command()
@click.argument("row_id", metavar="[ROW]", required=False)
@matrix_option
@click.option(
    "--weights",
    type=click.Choice(SOURCES),
    help="Default: tiny for rows of the tiny model, else synthetic.",
)
@click.option(
    "--pairs", type=click.IntRange(min=6), default=40, show_default=True, help="Requests, each twice."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the JSON goes, with the seconds of every pair. Default: only printed, without them.",
)
def overhead(
    row_id: str | None, matrix_path: Path, weights: str | None, pairs: int, output: Path | None
) -> None:
    """What measuring costs: a row with and without load generator and telemetry.

    Without ROW: the reference on this machine's GPU, else the tiny baseline on its CPU. Exits 1 above 0.5 %.
    """
    from bench.axes.option import Unavailable
    from bench.host.command import here
    from bench.record import write_atomically
    from bench.runner.command import measure_overhead, usual_row

    everything = read_rows(matrix_path)
    row = find_row(everything, row_id, matrix_path) if row_id else usual_row(everything, here())
    try:
        cost = measure_overhead(row, weights, pairs)
    except Unavailable as error:
        raise click.ClickException(f"nothing was measured: {error}") from None
    if output is not None:
        write_atomically(output, cost.model_dump_json(indent=1) + "\n")
    click.echo(cost.model_dump_json(indent=1, exclude={"bare_seconds", "measured_seconds"}))
    if not cost.holds:
        raise click.ClickException(f"{row.label}: measuring costs more than {cost.limit_share:.1%}")
