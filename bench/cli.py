"""The ``fluxbench`` command. Thin: every command imports what it needs inside its body,
so that ``fluxbench --help`` stays under 0.3 s and the host side never imports torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.config import BudgetName
    from bench.matrix import Row
    from bench.runner.load import Load


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fluxbench")
def main() -> None:
    """Run a matrix of FLUX inference optimisations and find the fastest stack you can defend."""


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


def choose_rows(path: Path, where: str, tier: str) -> list[Row]:
    """The rows of a matrix that ``--where`` and ``--tier`` describe; a message when there are none."""
    from bench.where import WhereError, select

    rows = read_rows(path)
    try:
        chosen = select(rows, where, tier)
    except WhereError as error:
        raise click.BadParameter(str(error), param_hint="--where") from None
    if not chosen:
        others = len(select(rows, where, "all"))
        more = f"; {others} in other tiers (--tier all)" if others else ""
        raise click.UsageError(f"no row matches --where {where!r} --tier {tier}{more}")
    return chosen


def find_row(rows: Sequence[Row], row_id: str, path: Path) -> Row:
    for row in rows:
        if row.row == row_id:
            return row
    raise click.BadParameter(
        f"no row {row_id} in {path}, which has {len(rows)}; `fluxbench rows` lists them", param_hint="ROW"
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
    help='Conditions that all hold, like "hardware=h100x1 task=txt2img,img2img phase!=1".',
)
tier_option = click.option(
    "--tier",
    type=click.Choice(["core", "extended", "all"]),
    default="core",
    show_default=True,
    help="core: no ControlNet, and canny. extended: depth and pose.",
)


@main.command()
@matrix_option
@click.option(
    "--check", is_flag=True, help="Write nothing; fail when the file and the declarations disagree."
)
def matrix(matrix_path: Path, check: bool) -> None:
    """Append to matrix.csv what the phases declare and the file lacks. Ids never change."""
    from bench.matrix_file import dump
    from bench.phases import drift, merged
    from bench.record import write_atomically

    rows = read_rows(matrix_path) if check or matrix_path.exists() else []
    if check:
        sentences = drift(rows)
        if sentences:
            listed = "\n".join(sentences)
            raise click.ClickException(f"{matrix_path} disagrees with bench/phases.py:\n{listed}")
        click.echo(f"{matrix_path}: {len(rows)} rows, as declared")
        return
    wanted = merged(rows)
    if wanted != rows:
        write_atomically(matrix_path, dump(wanted))
    click.echo(f"{matrix_path}: {len(wanted)} rows, {len(wanted) - len(rows)} new")


@main.command()
@matrix_option
@where_option
@tier_option
@click.option("--json", "as_json", is_flag=True, help="A JSON array instead of a table.")
def rows(matrix_path: Path, where: str, tier: str, as_json: bool) -> None:
    """Show rows of the matrix with their derived phase and image."""
    from bench.listing import as_dict, as_table

    chosen = choose_rows(matrix_path, where, tier)
    if as_json:
        import json

        click.echo(json.dumps([as_dict(row) for row in chosen], indent=1))
        return
    from rich.console import Console

    # Piped output has no width to fit: a row stays on one line, so that grep sees all of it.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(as_table(chosen))
    console.print(f"{len(chosen)} row{'s' * (len(chosen) != 1)}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of result.json."""
    import json

    from bench.record import Result

    click.echo(json.dumps(Result.model_json_schema(), indent=1))


def parse_cells(_: click.Context, __: click.Parameter, text: str) -> tuple[tuple[int, int], ...]:
    """``1x1,1x4`` -> users x images"""
    import re

    cells: list[tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part)
        if match is None:
            raise click.BadParameter(f"{part!r} is not <users>x<images>, like 1x1 or 4x1")
        cell = int(match[1]), int(match[2])
        if cell in cells:
            raise click.BadParameter(f"{part} stands twice")
        cells.append(cell)
    return tuple(cells)


def campaign_options(command: Callable[..., None]) -> Callable[..., None]:
    """What ``fan-out`` and ``bench`` have in common."""
    options = (
        matrix_option,
        click.option(
            "--weights",
            type=click.Choice(["hub", "synthetic"]),
            default="hub",
            show_default=True,
            help="For flux.1-dev rows: the real weights, or full-size random ones (speed and memory only). "
            "Rows of the tiny model bring their own.",
        ),
        click.option(
            "--budget",
            type=click.Choice(["probe", "quick", "standard", "full"]),
            default="quick",
            show_default=True,
            help="How many requests a cell: 3, 13, 36 in 2 processes, 368 (a true p99).",
        ),
        click.option(
            "--cells",
            default="1x1,1x4,4x1,4x4",
            show_default=True,
            callback=parse_cells,
            help="users x images, in the order of measuring.",
        ),
        click.option(
            "--results",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("results"),
            show_default=True,
            help="The results tree.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="For one attempt. Default: four times the estimate and ten minutes.",
        ),
        click.option(
            "--wait",
            type=click.FloatRange(min=0),
            default=0.0,
            metavar="SECONDS",
            help="Wait this long for hardware that another fan-out holds, instead of refusing at once.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def run_campaign(
    rows: Sequence[Row],
    *,
    weights: str,
    budget: BudgetName,
    cells: tuple[tuple[int, int], ...],
    results: Path,
    timeout: float | None,
    wait: float,
    dry_run: bool = False,
    max_hours: float | None = None,
    retry: bool = False,
    again: bool = False,
) -> None:
    """Runs rows here and exits with the campaign's code."""
    from rich.console import Console

    from bench.config import BUDGETS
    from bench.host.command import fan_out, here
    from bench.host.fanout import Settings
    from bench.host.gpus import GpuError
    from bench.host.leases import Busy

    settings = Settings(
        results=results,
        weights=weights,
        budget=BUDGETS[budget],
        cells=cells,
        timeout_seconds=timeout,
        max_hours=max_hours,
        retry=retry,
        again=again,
    )
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        sys.exit(fan_out(rows, settings, here(), console, dry_run=dry_run, wait_seconds=wait))
    except (Busy, GpuError) as error:
        raise click.ClickException(f"nothing was run: {error}") from None


@main.command("fan-out")
@where_option
@tier_option
@campaign_options
@click.option(
    "--max-hours", type=click.FloatRange(min=0, min_open=True), help="Start no row that ends later."
)
@click.option(
    "--retry", is_flag=True, help="Also run again what failed in a way that would repeat (oom, ...)."
)
@click.option("--dry-run", is_flag=True, help="Say what would run, in which order and how long; run nothing.")
def fan_out_command(matrix_path: Path, where: str, tier: str, **asked: Any) -> None:
    """Run rows one after another on this machine, most valuable first, each in a fresh process.

    What is done here already is skipped and said so; Ctrl-C keeps every finished cell, and the same command
    goes on from there. Exits 1 when a row failed.
    """
    run_campaign(choose_rows(matrix_path, where, tier), **asked)


@main.command()
@click.argument("row_id", metavar="ROW")
@campaign_options
def bench(row_id: str, matrix_path: Path, **asked: Any) -> None:
    """Run one row here, again if it is done; attempts are pooled by the report."""
    from bench.host.command import here
    from bench.host.gpus import GpuError, misfit
    from bench.host.words import misfit_advice
    from bench.rules import refusals

    everything = read_rows(matrix_path)
    row = find_row(everything, row_id, matrix_path)
    try:
        gpus = here()
    except GpuError as error:
        raise click.ClickException(f"nothing was run: {error}") from None
    if not refusals(row) and misfit(row, gpus):
        raise click.ClickException(misfit_advice(row, everything, gpus))
    run_campaign([row], again=True, **asked)


def parse_row(text: str) -> Row:
    """``--row-json``"""
    from pydantic import ValidationError

    from bench.matrix import Row

    try:
        return Row.model_validate_json(text)
    except ValidationError as error:
        raise click.BadParameter(str(error), param_hint="--row-json") from None


def parse_load(_: click.Context, __: click.Parameter, text: str) -> Load:
    from bench.runner.load import Load

    try:
        return Load.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@main.command()
@click.argument("row_id", metavar="ROW", required=False)
@matrix_option
@click.option("--row-json", metavar="JSON", help="The row itself, as the host passes it, instead of ROW.")
@click.option(
    "--weights",
    type=click.Choice(["hub", "synthetic", "tiny"]),
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
@click.option(
    "--cells",
    default="1x1,1x4,4x1,4x4",
    show_default=True,
    callback=parse_cells,
    help="users x images, in the order of measuring.",
)
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


@main.command()
@click.argument(
    "path", metavar="[RESULTS]", type=click.Path(path_type=Path, exists=True), default=Path("results")
)
@click.option("--again", is_flag=True, help="Measure pictures again that have been compared already.")
def quality(path: Path, again: bool) -> None:
    """Hold saved pictures against their reference's and write quality.json; no row is run again.

    RESULTS is the tree, or any part of it. Exits 1 when pictures could not be compared.
    """
    from bench.judging import run

    sys.exit(run(path, again, click.echo))


@main.command()
@click.argument(
    "path", metavar="[RESULTS]", type=click.Path(path_type=Path, exists=True), default=Path("results")
)
@matrix_option
def check(path: Path, matrix_path: Path) -> None:
    """Validate every file of a results tree, or of a part of it: schema, raw values against the figures made
    from them, place, matrix, fingerprint. Names file and expectation; exits 1 when one fails."""
    from bench.check import run

    sys.exit(run(path, read_rows(matrix_path), click.echo))


@main.command()
@click.argument(
    "results",
    metavar="[RESULTS]",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("results"),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything is written. Default: RESULTS/analysis.",
)
@click.option("--readme", is_flag=True, help="Only renew the tables between the markers of README.md.")
@click.option(
    "--check", "only_check", is_flag=True, help="With --readme: write nothing, fail when they differ."
)
def report(results: Path, out: Path | None, readme: bool, only_check: bool) -> None:
    """Render a results tree: Markdown tables, charts, and an offline HTML report. Runs nothing."""
    from bench.report.command import render, renew_readme

    if only_check and not readme:
        raise click.UsageError("--check is about --readme")
    if readme:
        sys.exit(renew_readme(results, Path("README.md"), only_check, click.echo))
    sys.exit(render(results, out, click.echo))


@main.command()
def demo() -> None:
    """A chosen campaign on the tiny FLUX, with its report: no GPU, no Docker, under ten minutes."""
    from bench.demo import run

    sys.exit(run(click.echo))


@main.command()
@click.argument("row_id", metavar="ROW", required=False)
@matrix_option
@click.option(
    "--weights",
    type=click.Choice(["hub", "synthetic", "tiny"]),
    help="Default: tiny for rows of the tiny model, else synthetic.",
)
@click.option(
    "--pairs", type=click.IntRange(min=6), default=40, show_default=True, help="Requests, each twice."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the JSON goes. Default: only printed.",
)
def overhead(
    row_id: str | None, matrix_path: Path, weights: str | None, pairs: int, output: Path | None
) -> None:
    """What measuring costs: a row with and without load generator and telemetry.

    Without ROW: the reference on this machine's GPU, else the tiny baseline on its CPU. Exits 1 above 0.5 %.
    """
    from bench.host.command import here
    from bench.record import write_atomically
    from bench.runner.command import measure_overhead, usual_row

    everything = read_rows(matrix_path)
    row = find_row(everything, row_id, matrix_path) if row_id else usual_row(everything, here())
    cost = measure_overhead(row, weights, pairs)
    text = cost.model_dump_json(indent=1)
    if output is not None:
        write_atomically(output, text + "\n")
    click.echo(text)
    if not cost.holds:
        raise click.ClickException(f"{row.label}: measuring costs more than {cost.limit_share:.1%}")
