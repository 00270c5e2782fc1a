"""``matrix`` and ``rows``: writing, checking and showing matrix.csv."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.commands.options import choose_rows, matrix_option, read_rows, tier_option, where_option

DISAGREEMENTS_SHOWN = 20
MENDING = "`fluxbench matrix` appends what is missing; `git diff` shows what was edited"


@click.command()
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
            more = len(sentences) - DISAGREEMENTS_SHOWN
            listed = [*sentences[:DISAGREEMENTS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
            raise click.ClickException(
                "\n".join([f"{matrix_path} disagrees with bench/phases.py:", *listed, MENDING])
            )
        click.echo(f"{matrix_path}: {len(rows)} rows, as declared")
        return
    wanted = merged(rows)
    if wanted != rows:
        write_atomically(matrix_path, dump(wanted))
    click.echo(f"{matrix_path}: {len(wanted)} rows, {len(wanted) - len(rows)} new")


@click.command()
@matrix_option
@where_option
@tier_option
@click.option("--json", "as_json", is_flag=True, help="A JSON array instead of a table.")
def rows(matrix_path: Path, where: str, tier: str, as_json: bool) -> None:
    """Show rows of the matrix with their derived phase and image."""
    from bench.listing import as_dict, as_table

    chosen = choose_rows(read_rows(matrix_path), where, tier)
    if as_json:
        import json

        click.echo(json.dumps([as_dict(row) for row in chosen], indent=1))
        return
    from rich.console import Console

    # Piped output has no width to fit: a row stays on one line, so that grep sees all of it.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(as_table(chosen))
    console.print(f"{len(chosen)} row{'s' * (len(chosen) != 1)}")
