"""``fan-out``, ``bench`` and ``demo``: rows run here, each in a fresh process; ``sync`` carries them off."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import (
    USUAL_CELLS,
    cells_option,
    choose_rows,
    find_row,
    matrix_option,
    read_rows,
    tier_option,
    where_option,
)
from bench.flux import MODELS, weights_of

if TYPE_CHECKING:
    from bench.config import BudgetName, ExecutorName, Shape
    from bench.host.fanout import Settings
    from bench.host.gpus import Gpu
    from bench.matrix import Row
    from bench.typed import Asked

USUAL_WEIGHTS = "hub"
CAMPAIGN_OPTIONS = (
    matrix_option,
    click.option(
        "--weights",
        type=click.Choice(MODELS["flux.1-dev"].sources),
        default=USUAL_WEIGHTS,
        show_default=True,
        help="For flux.1-dev rows: the real weights, or full-size random ones (speed and memory only). "
        "Rows of the tiny model bring their own.",
    ),
    click.option(
        "--budget",
        type=click.Choice(["probe", "quick", "standard", "full"]),
        default="quick",
        show_default=True,
        help="How many requests a cell: 3, 13, 36 in 2 processes, 368 in 3 (a true p99).",
    ),
    click.option(
        "--processes",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Fresh processes a row is measured in, where its budget asks for fewer. With two a side a "
        "speed-up has an interval: how far equal processes differ is known.",
    ),
    cells_option,
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
    click.option(
        "--executor",
        type=click.Choice(["local", "venv", "docker"]),
        help="Where rows run: this environment, the environment of their image's lock (`fluxbench env`), "
        "a container of their image. Default: docker where a daemon answers, else venv where it is "
        "built, else local.",
    ),
    click.option(
        "--registry",
        envvar="FLUXBENCH_REGISTRY",
        default="",
        help="With docker: pull missing images from here before building them.",
    ),
    click.option(
        "--price-per-gpu-hour",
        type=click.FloatRange(min=0),
        metavar="PRICE",
        help="Say what the GPU-hours cost, before and after.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Say what would run, in which order and how long, for one row its command too; run nothing.",
    ),
)
"""What ``fan-out`` and ``bench`` have in common."""


def campaign_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(CAMPAIGN_OPTIONS):
        command = option(command)
    return command


def run_campaign(
    rows: Sequence[Row],
    matrix: Sequence[Row],
    *,
    asked: Asked | None = None,
    wait: float,
    executor: ExecutorName | None,
    registry: str,
    dry_run: bool = False,
    again: bool = False,
    on: str | None = None,
    **settings: Any,
) -> None:
    """Runs rows here, and references of the matrix that they lack, and exits with the campaign's code.
    ``settings`` as ``settings_of`` takes them."""
    from rich.console import Console

    from bench.host import executors
    from bench.host.command import fan_out, here
    from bench.host.daemon import Silent
    from bench.host.gpus import GpuError, misfit
    from bench.host.image import ImageError
    from bench.host.leases import Busy
    from bench.matrix import references_of
    from bench.rules import refusal

    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        chosen = executors.executor(executor, rows, click.echo)
        gpus = _rented(on, dry_run) if on else here()
        if not dry_run:
            fitting = [row for row in rows if not refusal(row) and misfit(row, gpus) is None]
            fitting += () if again else references_of([row for row in fitting if row.gpu], matrix)
            executors.get_images(chosen, fitting, registry, click.echo)
        code = fan_out(
            rows,
            settings_of(again=again, **settings),
            gpus,
            console,
            dry_run=dry_run,
            wait_seconds=wait,
            executor=chosen,
            matrix=matrix,
            asked=asked,
        )
        sys.exit(code)
    except (Busy, GpuError, ImageError, Silent) as error:
        raise click.ClickException(f"nothing was run: {error}") from None


def settings_of(
    *,
    weights: str,
    budget: BudgetName,
    processes: int,
    cells: tuple[Shape, ...] | None,
    results: Path,
    timeout: float | None,
    max_hours: float | None = None,
    retry: bool = False,
    again: bool = False,
    pack: bool = True,
    elsewhere: bool = False,
    price_per_gpu_hour: float | None = None,
) -> Settings:
    from bench.config import BUDGETS
    from bench.host.fanout import Settings

    return Settings(
        results=results,
        weights=weights,
        budget=replace(BUDGETS[budget], processes=max(processes, BUDGETS[budget].processes)),
        cells=cells,
        timeout_seconds=timeout,
        max_hours=max_hours,
        retry=retry,
        again=again,
        pack=pack,
        elsewhere=elsewhere,
        price_per_gpu_hour=price_per_gpu_hour,
    )


def asked_for(
    *,
    weights: str,
    budget: str,
    processes: int,
    cells: tuple[Shape, ...] | None,
    results: Path,
    executor: str | None,
    registry: str,
    **_: Any,
) -> Asked:
    """What messages repeat of a campaign's options."""
    from bench.host.local import cells_text
    from bench.typed import Asked

    shapes = USUAL_CELLS if cells is None else cells_text(cells)
    return Asked(weights, budget, str(processes), shapes, str(results), executor or "", registry)


def _rented(hardware: str, dry_run: bool) -> list[Gpu]:
    from bench.hardware import HARDWARE, gpus_of
    from bench.host.gpus import imagined

    gpu, count = gpus_of(hardware) if HARDWARE.fullmatch(hardware) else (None, 0)
    if gpu is None:
        raise click.BadParameter(
            f"{hardware} is no hardware of GPUs, such as h100x1 or a100x8", param_hint="--on"
        )
    if not dry_run:
        raise click.UsageError(f"--on plans for {hardware}, and nothing runs on it from here: add --dry-run")
    return imagined(gpu, count)


@click.command("fan-out")
@where_option
@tier_option
@campaign_options
@click.option(
    "--max-hours", type=click.FloatRange(min=0, min_open=True), help="Start no row that ends later."
)
@click.option(
    "--pack/--no-pack",
    default=True,
    show_default=True,
    help="Run rows of one GPU side by side, one per GPU, within the budgets probe and quick.",
)
@click.option(
    "--elsewhere",
    is_flag=True,
    help="Count what another machine with the same model of GPU has done as done: goes on with a campaign "
    "that was preempted there and whose results were brought along (`make sync`).",
)
@click.option(
    "--on",
    metavar="HARDWARE",
    help="With --dry-run: plan as if this machine were that hardware (h100x8), before you rent it.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Also run again what failed in a way that would repeat (oom, ...), or stayed unstable.",
)
def fan_out_command(matrix_path: Path, where: str, tier: str, **options: Any) -> None:
    """Run rows on this machine, most valuable first, each in a fresh process.

    Rows of a GPU that come without their reference get it: it is added from the matrix, and said so. What is
    done here already is skipped and said so; Ctrl-C keeps every finished cell, and the same command
    goes on from there. Exits 1 when a row failed.
    """
    if not (where or options["dry_run"]):
        raise click.UsageError(
            'nothing was run: say which rows, such as --where "hardware=h100x1 phase=1";'
            " --dry-run without --where plans all that this machine fits"
        )
    rows = read_rows(matrix_path)
    run_campaign(choose_rows(rows, where, tier), rows, **options)


@click.command()
@click.argument("row_id", metavar="ROW")
@campaign_options
def bench(row_id: str, matrix_path: Path, **options: Any) -> None:
    """Run one row here, again if it is done; attempts are pooled by the report."""
    from bench.host.command import here
    from bench.host.gpus import GpuError, misfit
    from bench.host.words import misfit_advice
    from bench.rules import refusal

    everything = read_rows(matrix_path)
    row = find_row(everything, row_id, matrix_path)
    if options["weights"] not in {USUAL_WEIGHTS, weights_of(row, options["weights"])}:
        raise click.BadParameter(
            f"nothing was run: {row.label} brings weights of its own; leave this out", param_hint="--weights"
        )
    asked = asked_for(**options)
    try:
        gpus = here()
    except GpuError as error:
        raise click.ClickException(f"nothing was run: {error}") from None
    if not refusal(row) and misfit(row, gpus):
        raise click.ClickException(misfit_advice(row, everything, gpus, asked))
    run_campaign([row], everything, again=True, asked=asked, **options)


@click.command()
@click.argument("destination", metavar="DEST")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="The results tree.",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Go on copying what is new, until Ctrl-C or SIGTERM and once more then. Default: once.",
)
def sync(destination: str, results: Path, every: float | None) -> None:
    """Copy results to DEST, a folder or rsync's host:path, also while rows run; deletes nothing there."""
    from bench.host.sync import SyncError, copy, keep_copying

    try:
        if every is None:
            click.echo(f"{copy(results, destination)} files copied to {destination}")
        else:
            keep_copying(results, destination, every, click.echo)
    except SyncError as error:
        raise click.ClickException(str(error)) from None


@click.command()
def demo() -> None:
    """A chosen campaign on the tiny FLUX, with its report: no GPU, no Docker, under ten minutes."""
    from bench.demo import run

    sys.exit(run(click.echo))
