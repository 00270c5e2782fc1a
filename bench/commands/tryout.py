"""``construct`` and ``correctness``: every option on the tiny model, in this process or a few."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.noise import leave_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bench.correctness import Case

_out = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write JSON here, and go on from what is there.",
)
_limit = click.option(
    "--limit-seconds", type=click.FloatRange(min=0), help="Start nothing new after this; --out goes on later."
)
_processes = click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Work in so many at once: they share the GPU and the processors, and every one imports torch.",
)
_only = click.option(
    "--only",
    multiple=True,
    metavar="AXIS|OPTION",
    help="Only what is about this axis or option; may be repeated. Default: all.",
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
@_processes
@_limit
@_out
def construct(
    hardware: str, pairs: bool, capture: bool, processes: int, limit_seconds: float | None, out: Path | None
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
    todo = _Todo(rows, limit_seconds)
    _write_down(_each(partial(construct_one, capture=capture), todo, processes, hardware), todo, found, out)


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
@_only
@_processes
@_limit
@_out
def correctness(
    hardware: str,
    extended: bool,
    ranks: int | None,
    case_seconds: float,
    only: tuple[str, ...],
    processes: int,
    limit_seconds: float | None,
    out: Path | None,
) -> None:
    """Compare what each option paints with what the plain stack paints, on every use case of the tiny model:
    latents, and pictures where the option is one of the VAE.

    Exit code 1 when one is outside its tolerance, left no evidence or ended in an error. With --ranks and
    --out a table in Markdown stands beside the JSON.
    """
    from bench import correctness as compared
    from bench import equality
    from bench import tryout_report as report

    _prepare(hardware)
    found = _read(report.Correct, out, hardware)
    if ranks is None:
        cases = list(report.cases(hardware, extended=extended))
    elif ranks in (counts := equality.rank_counts()):
        cases = list(equality.cases(hardware, ranks))
    else:
        raise click.BadParameter(
            f"no method is declared for {ranks}; there are some for {', '.join(map(str, counts))}",
            param_hint="--ranks",
        )
    todo = _Todo([case for case in _about(cases, only) if not found.holds(case)], limit_seconds)
    if ranks is None:
        _write_down(_each(compared.compare, todo, processes, hardware), todo, found, out)
        return
    answers = equality.compare(todo.items, ranks, case_seconds)
    try:
        _write_down((next(answers) for _ in todo), todo, found, out)
    finally:
        answers.close()
        if out is not None:
            out.with_suffix(".md").write_text(equality.page(found))


def _about(cases: list[Case], only: tuple[str, ...]) -> list[Case]:
    """Raises click.BadParameter for a word that is neither an axis nor an option of a case."""
    known = {word for axis, option, _ in cases for word in (axis, option)}
    if unknown := set(only) - known:
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))}: no axis or option that is compared here; those are"
            f" {', '.join(sorted(known))}",
            param_hint="--only",
        )
    return [case for case in cases if not only or not {case[0], case[1]}.isdisjoint(only)]


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
    leave_out()
    for library in ("diffusers", "transformers"):
        logging = import_module(f"{library}.utils.logging")
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _read(kind: Any, out: Path | None, hardware: str) -> Any:
    try:
        return kind.read(out, hardware)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--out") from None


class _Todo:
    """What is left to do; nothing is taken from it once the time is up."""

    def __init__(self, items: list[Any], limit_seconds: float | None) -> None:
        self.items, self.taken = items, 0
        self._until = None if limit_seconds is None else time.monotonic() + limit_seconds

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            if self._until is not None and time.monotonic() > self._until:
                return
            self.taken += 1
            yield item


def _each(work: Callable[[Any], Any], todo: _Todo, processes: int, hardware: str) -> Iterator[Any]:
    """Answers, as they come."""
    if processes == 1:
        yield from map(work, todo)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    # Not forked: CUDA does not survive that.
    with ProcessPoolExecutor(processes, get_context("spawn"), _prepare_one, (hardware, threads)) as pool:
        try:
            left = iter(todo)
            running = {pool.submit(work, item) for item in islice(left, processes)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(work, item) for item in islice(left, len(done))}
                for each in done:
                    yield each.result()
        except BaseException:
            for process in active_children():
                process.kill()
            raise


def _prepare_one(hardware: str, threads: int) -> None:
    """Of several processes, which share the processors out: threads of torch and compiling processes of
    inductor, each as many as there are processors, wait actively for one another."""
    for variable in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        os.environ.setdefault(variable, str(threads))
    _prepare(hardware)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C, so that whatever was started for this is ended too: it would wait for ever, and slow down
    what is measured next."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_ended_by_sigterm()
def _write_down(answers: Iterable[Any], todo: _Todo, found: Any, out: Path | None) -> None:
    for number, answer in enumerate(answers, 1):
        click.echo(f"[{number}/{len(todo.items)}] {found.add(answer)}")
        if out is not None:
            found.write(out)
    if left := len(todo.items) - todo.taken:
        click.echo(f"time is up: {left} left; the same command with --out goes on")
    click.echo(found.summary())
    if found.failures():
        raise SystemExit(1)
