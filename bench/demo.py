"""``make demo``: a chosen campaign on the tiny FLUX, as the commands that a user would type.

It needs no GPU, no Docker and no network, writes to ``results/demo/`` only, and goes on where it stopped.
The rows and budgets are chosen for two CPU cores without bf16 arithmetic, where everything together has to
stay under ten minutes: fp32 rows take a second a request there, bf16 ones several. Stacks that are compared
run in two processes of three requests: the fewest that carry a median and an interval of their speed-up. The
row of four steps shows what more requests are for.

One thread a row: the model is so small that a second one gains little, and two that wait for each other made
a request twenty times as slow on a busy machine.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench import layout, record
from bench.matrix import Row
from bench.matrix_file import read
from bench.where import select

MATRIX = Path("matrix.csv")
RESULTS = Path("results/demo")
ROW_FAILED = 1
"""Exit code of a fan-out in which a row was not made good."""

TINY = "hardware=cpu model=tiny"
TXT2IMG = f"{TINY} steps=28 precision=fp32 task=txt2img control=none"


@dataclass(frozen=True)
class Part:
    """One fan-out of the demo."""

    shows: str
    where: str
    budget: str = "quick"
    cells: str = "1x1"
    processes: int = 1


PARTS = (
    Part(
        "the reference, against which quality is measured",
        f"{TINY} steps=28 phase=1 precision=bf16 task=txt2img control=none",
        budget="probe",
        processes=2,
    ),
    Part(
        "the baseline, and what torch.compile makes of it",
        f"{TXT2IMG} quantization=none text_encoder=none attention=sdpa cache=none vae=full"
        " compilation=none,inductor",
        budget="probe",
        processes=2,
    ),
    Part(
        "quantised weights: fewer bytes, and what they cost in pictures",
        f"{TXT2IMG} quantization=torchao-int8wo,quanto-int8,bnb-nf4,gguf-q4_0",
        budget="probe",
        processes=2,
    ),
    Part(
        "caches that skip steps, as their thresholds decide",
        f"{TXT2IMG} cache=fbcache-0.2,teacache-0.4",
        budget="probe",
        processes=2,
    ),
    Part(
        "other pipelines",
        f"{TINY} steps=28 phase=1 precision=fp32 task=img2img,inpaint control=none",
        budget="probe",
    ),
    Part(
        "a ControlNet, and a cache that skips its call too",
        f"{TINY} steps=28 precision=fp32 task=txt2img control=canny attention=sdpa vae=full compilation=none"
        " quantization=none text_encoder=none cache=none,fbcache-0.2",
        budget="probe",
    ),
    Part(
        "the plan's Basic Performance Matrix, on four steps",
        f"{TINY} steps=4 precision=fp32",
        cells="1x4,4x1,4x4",
    ),
    Part(
        "its first cell, with a p99 that deserves the name: 368 requests",
        f"{TINY} steps=4 precision=fp32",
        budget="full",
    ),
)


def commands(results: Path = RESULTS) -> list[tuple[str, list[str]]]:
    """(what it shows, arguments of ``fluxbench``), in order."""
    campaigns = [
        (
            part.shows,
            [
                *("fan-out", "--where", part.where, "--budget", part.budget, "--cells", part.cells),
                *(("--processes", str(part.processes)) if part.processes > 1 else ()),
                *("--results", str(results), "--executor", "local"),
            ],
        )
        for part in PARTS
    ]
    return [
        *campaigns,
        ("what the optimisations cost in quality", ["quality", str(results)]),
        ("every file holds what it should", ["check", str(results)]),
        ("tables, charts and pages", ["report", str(results)]),
    ]


def run(
    say: Callable[[str], None],
    results: Path = RESULTS,
    fluxbench: Sequence[str] = (sys.executable, "-m", "bench"),
) -> int:
    """Runs the commands; goes on after one that fails, and returns 1 in the end if any did. A signal ends
    the command at work, in its own orderly way, and then the demo: 128 + its number."""
    started = time.monotonic()
    failed = []
    for shows, arguments in commands(results):
        line = shlex.join(["fluxbench", *arguments])
        say(f"\n# {shows}\n$ {line}")
        code, stopped_by = _execute([*fluxbench, *arguments])
        if stopped_by:
            say("\nStopped; what is finished is kept, and `make demo` goes on from there.")
            return 128 + stopped_by
        if code and not (code == ROW_FAILED and arguments[0] == "fan-out"):
            failed.append(f"{line}  (exit code {code})")
    failed += unmeasured(chosen_rows(), results)
    minutes = (time.monotonic() - started) / 60
    if failed:
        say(f"\nThe demo ended after {minutes:.1f} minutes, and this failed:")
        say("\n".join(failed))
        return 1
    say(f"\nDone in {minutes:.1f} minutes. Open the report in a browser:")
    say(str((results / "analysis" / "index.html").resolve()))
    return 0


def chosen_rows() -> list[Row]:
    rows = read(MATRIX)
    chosen = {row.row: row for part in PARTS for row in select(rows, part.where)}
    return list(chosen.values())


def unmeasured(rows: Iterable[Row], results: Path) -> Iterator[str]:
    """What became of each row whose last attempt has no numbers. An unstable one has them, and its mark in
    the report: a laptop that does something else meanwhile is no reason for the demo to fail."""
    for row in rows:
        attempts = sorted(layout.row_dir(results, row).glob(f"tiny/*/{layout.RESULT}"))
        if not attempts:
            yield f"{row.label}: was not run"
            continue
        status = record.load(attempts[-1]).status
        if status.code not in record.HAS_NUMBERS:
            yield f"{row.label}: {status.code}: {status.reason}"


def _execute(argv: Sequence[str]) -> tuple[int, int | None]:
    """(exit code, the signal that came meanwhile). Ctrl-C reaches the command by itself, from the terminal,
    and must not end this process first: the command would lose its parent while it saves what it has."""
    arrived: list[int] = []
    process = subprocess.Popen(argv, env={"OMP_NUM_THREADS": "1", **os.environ})

    def on_signal(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, arrived[0] if arrived else None
