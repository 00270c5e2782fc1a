"""``quality``, ``check``, ``report`` and ``schema``: what is made of result files. Nothing is run."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from bench.commands.options import matrix_option, read_rows


@click.command()
@click.argument(
    "path", metavar="[RESULTS]", type=click.Path(path_type=Path, exists=True), default=Path("results")
)
@click.option("--again", is_flag=True, help="Measure pictures again that have been compared already.")
@matrix_option
def quality(path: Path, again: bool, matrix_path: Path) -> None:
    """Hold saved pictures against their reference's and write quality.json; no row is run again.

    RESULTS is the tree, or any part of it. Exits 1 when pictures could not be compared, and 2 when RESULTS
    has no attempt.
    """
    from bench.judging import run

    sys.exit(run(path, again, read_rows(matrix_path), click.echo))


@click.command()
@click.argument(
    "path", metavar="[RESULTS]", type=click.Path(path_type=Path, exists=True), default=Path("results")
)
@matrix_option
def check(path: Path, matrix_path: Path) -> None:
    """Validate every file of a results tree, or of a part of it: schema, raw values against the figures made
    from them, place, matrix, fingerprint. A file stands for its attempt. Names file and expectation; exits 1
    when one fails, and 2 when RESULTS has no attempt."""
    from bench.check import run

    sys.exit(run(path, read_rows(matrix_path), click.echo))


def results_tree(_: click.Context, __: click.Parameter, path: Path) -> Path:
    """A report of anything else would be an empty one, and written to the wrong place."""
    from bench import layout

    tree = layout.tree_near(path)
    if tree == path.resolve():
        return path
    if tree is None:
        raise click.BadParameter(f"{path} holds no result; `make demo` or `make bench ROW=42` makes some")
    root = os.path.relpath(tree)
    raise click.BadParameter(
        f"{path} is not the root of a results tree; {root} is: `fluxbench report {shlex.quote(root)}`"
    )


@click.command()
@click.argument(
    "results",
    metavar="[RESULTS]",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("results"),
    callback=results_tree,
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything is written. Default: RESULTS/analysis.",
)
@matrix_option
@click.option("--readme", is_flag=True, help="Only renew the tables between the markers of README.md.")
@click.option(
    "--check", "only_check", is_flag=True, help="With --readme: write nothing, fail when they differ."
)
def report(results: Path, out: Path | None, matrix_path: Path, readme: bool, only_check: bool) -> None:
    """Render a results tree: Markdown tables, charts, and an offline HTML report. Runs nothing."""
    from bench.report.command import render, renew_readme

    if only_check and not readme:
        raise click.UsageError("--check is about --readme")
    if readme:
        sys.exit(renew_readme(results, Path("README.md"), only_check, click.echo))
    if not matrix_path.exists():
        click.echo(f"{matrix_path} is not here: the pages will not say what was never run, nor how to run it")
    rows = read_rows(matrix_path) if matrix_path.exists() else []
    sys.exit(render(results, out, rows, click.echo))


@click.command()
def schema() -> None:
    """Print the JSON Schema of result.json."""
    import json

    from bench.record import Result

    click.echo(json.dumps(Result.model_json_schema(), indent=1))
