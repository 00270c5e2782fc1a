"""The ``fluxbench`` command. Thin: every command imports what it needs inside its body,
so that ``fluxbench --help`` stays under 0.3 s and the host side never imports torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bench.matrix import Row


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
