"""``construct`` and ``correctness``: every option on the tiny model, in this process."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

_out = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write JSON here, and go on from what is there.",
)
_limit = click.option(
    "--limit-seconds", type=click.FloatRange(min=0), help="Start nothing new after this; --out goes on later."
)
_hardware = click.option(
    "--hardware",
    default="cpu",
    show_default=True,
    help="As in matrix.csv: h100x1. It must be this machine's.",
)


@click.command()
@_hardware
@click.option(
    "--pairs/--singles",
    default=True,
    show_default=True,
    help="Every two options together at least once, or each option once, beside plain ones.",
)
@click.option(
    "--capture",
    is_flag=True,
    help="Only capture what would be compiled: whether a stack is one full graph, not whether it is fast.",
)
@_limit
@_out
def construct(
    hardware: str, pairs: bool, capture: bool, limit_seconds: float | None, out: Path | None
) -> None:
    """Try to build stacks of options on the tiny model and say how each ended.

    Each is loaded, applied, run and verified as a row is; or refused by a rule, unavailable here, not
    applied, or an error. Exit code 1 when one ended in an error or was not applied.
    """
    from bench import tryout_report as report
    from bench.tryout import construct as construct_one

    _prepare(hardware)
    found = _read(report.Constructed, out, hardware)
    rows = [row for row in report.rows(hardware, pairs=pairs) if not found.holds(row)]
    _go_on(rows, lambda row: found.add(construct_one(row, capture=capture)), limit_seconds, found, out)


@click.command()
@_hardware
@click.option("--extended", is_flag=True, help="All twelve use cases instead of the six of tier core.")
@click.option(
    "--ranks",
    type=click.IntRange(min=2),
    help="Compare the methods of so many ranks with one process instead, with and without a cache.",
)
@click.option(
    "--case-seconds",
    default=120.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="With --ranks: when a case is given up. A failed rank leaves the others waiting for ever.",
)
@_limit
@_out
def correctness(
    hardware: str,
    extended: bool,
    ranks: int | None,
    case_seconds: float,
    limit_seconds: float | None,
    out: Path | None,
) -> None:
    """Compare each option's latents with the plain stack's, on every use case of the tiny model.

    Exit code 1 when one is outside its tolerance or ended in an error. With --ranks and --out a table in
    Markdown stands beside the JSON.
    """
    from bench import correctness as compared
    from bench import tryout_report as report

    _prepare(hardware)
    found = _read(report.Correct, out, hardware)
    if ranks is not None:
        _equality(hardware, ranks, case_seconds, limit_seconds, found, out)
        return
    cases = [case for case in report.cases(hardware, extended=extended) if not found.holds(case)]
    _go_on(cases, lambda case: found.add(compared.compare(*case)), limit_seconds, found, out)


def _equality(
    hardware: str,
    ranks: int,
    case_seconds: float,
    limit_seconds: float | None,
    found: Any,
    out: Path | None,
) -> None:
    from bench import equality

    cases = [case for case in equality.cases(hardware, ranks) if not found.holds(case)]
    answers = equality.compare(cases, ranks, case_seconds)
    try:
        _go_on(cases, lambda _case: found.add(next(answers)), limit_seconds, found, out)
    finally:
        answers.close()
        if out is not None:
            out.with_suffix(".md").write_text(equality.table(found.compared))


def _prepare(hardware: str) -> None:
    """Point the compiler at its cache, and refuse a GPU that is not here."""
    from bench import tryout
    from bench.host.command import here
    from bench.host.gpus import GpuError, misfit
    from bench.matrix import REFERENCE
    from bench.runner import compiler

    try:
        row = tryout.tiny_row(hardware, REFERENCE)
        missing = misfit(row, here())
    except (GpuError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--hardware") from None
    if missing:
        raise click.BadParameter(missing, param_hint="--hardware")
    compiler.use_cache(row.gpu or "cpu", None)
    for library in ("diffusers", "transformers"):
        logging = import_module(f"{library}.utils.logging")
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _read(kind: Any, out: Path | None, hardware: str) -> Any:
    try:
        return kind.read(out, hardware)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--out") from None


def _go_on(
    work: list[Any], step: Callable[[Any], str], limit_seconds: float | None, found: Any, out: Path | None
) -> None:
    begun = time.monotonic()
    for number, item in enumerate(work, 1):
        if limit_seconds is not None and time.monotonic() - begun > limit_seconds:
            click.echo(f"time is up: {len(work) - number + 1} left; the same command with --out goes on")
            break
        click.echo(f"[{number}/{len(work)}] {step(item)}")
        if out is not None:
            found.write(out)
    click.echo(found.summary())
    if found.failures():
        raise SystemExit(1)
