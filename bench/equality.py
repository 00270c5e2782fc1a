"""Does a method of several ranks give the picture of one process? Every method, on every core use case, with
and without a cache, on the tiny model.

``compare`` starts the ranks once and lets them work through the cases one by one (``bench.equality_ranks``);
start-up is ten seconds a process. A rank that fails leaves the others waiting for ever, so a case that brings
no result in its time ends that start, is recorded, and the rest get new ranks.

    cases ->  [ ranks: case, case, case, (hangs or dies) ]  ->  [ new ranks: the rest ]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bench import correctness, tryout
from bench.axes import AXES
from bench.axes.parallel.degrees import Degrees, degrees_of
from bench.correctness import Case, Compared, needs_ranks
from bench.host.local import Exit
from bench.host.verdict import log_tail
from bench.matrix import BASELINE, CORE_CONTROLS, TASKS
from bench.rules import refusal

if TYPE_CHECKING:
    from bench.tryout_report import Correct

CACHES = ("none", "fbcache-0.2", "teacache-0.25")
"""Both probes; of both, 28 steps of Tiny FLUX skip some."""
RANKS = "bench.equality_ranks"
START_SECONDS = 120.0
"""Imports of every rank, on few cores."""
TORCHRUN_LOG = "torchrun.log"
LOGS = "logs"
"""Of the ranks, one folder each, as torchrun lays them out."""
FIRST_DEATH = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)
END_SECONDS = 10.0
"""For what was killed to be gone."""


def rank_counts() -> list[int]:
    """That methods are declared for."""
    return sorted({degrees.ranks for degrees in map(degrees_of, AXES["parallel"]) if degrees})


def cases(hardware: str, ranks: int) -> Iterator[Case]:
    """Each method of so many ranks that this hardware has; the parallel VAE on top of Ulysses; blocks
    rearranged, which under Ulysses exchange tokens in their own way, with one cache: it is the same code that
    probes and decides."""
    for id, option in AXES["parallel"].items():
        degrees = degrees_of(id)
        if degrees and degrees.ranks == ranks and not (hardware == "cpu" and option.needs_gpu):
            for cache in CACHES if not degrees.xdit else CACHES[:1]:
                yield from _of_use_cases(hardware, "parallel", _stack(id, degrees) | {"cache": cache})
    yield from _of_use_cases(hardware, "vae", {"parallel": f"ulysses{ranks}", "vae": "parallel"})
    for id in AXES["parallel"]:
        degrees = degrees_of(id)
        if degrees and degrees.ranks == ranks and _takes_rearranged_blocks(degrees):
            for cache in CACHES[:2]:
                rearranged = {"compilation": "inductor-fused", "cache": cache}
                yield from _of_use_cases(hardware, "parallel", _stack(id, degrees) | rearranged)


def _takes_rearranged_blocks(degrees: Degrees) -> bool:
    """Where diffusers shares out tokens, and weights stay whole."""
    return degrees.tokens == degrees.ranks and degrees.fsdp == 1 and not degrees.xdit


def _stack(option: str, degrees: Degrees) -> dict[str, str]:
    return {"parallel": option, "attention": "native-flash" if degrees.ring > 1 else "sdpa"}


def _of_use_cases(hardware: str, axis: str, changes: dict[str, str]) -> Iterator[Case]:
    for task in TASKS:
        for control in CORE_CONTROLS:
            yield axis, changes[axis], correctness.row_of(hardware, {**BASELINE, **changes}, task, control)


def compare(cases: Sequence[Case], ranks: int, seconds_a_case: float) -> Generator[Compared, None, None]:
    """One answer a case; those that a rule refuses need no ranks."""
    waiting = list(cases)
    while waiting:
        if refused := refusal(waiting[0][2]):
            yield correctness.compared(waiting.pop(0), "refused", str(refused))
            continue
        first = _start_of(waiting[0])
        together = [case for case in waiting if _start_of(case) == first and not refusal(case[2])]
        for case, found in zip(together, _started_once(together, ranks, seconds_a_case), strict=False):
            waiting.remove(case)
            yield found


def _start_of(case: Case) -> str:
    """Which cases can share a start: xDiT keeps its process groups for the life of a process."""
    degrees = degrees_of(case[2].parallel)
    return case[2].parallel if degrees and degrees.xdit else "diffusers"


def _started_once(cases: Sequence[Case], ranks: int, seconds_a_case: float) -> Iterator[Compared]:
    """Answers until the ranks are through, or one of them is lost: then that case's answer is the last."""
    with tempfile.TemporaryDirectory(prefix="fluxbench-equality-") as folder:
        asked, log = Path(folder, "cases.json"), Path(folder, TORCHRUN_LOG)
        asked.write_text(json.dumps([[axis, row.model_dump(mode="json")] for axis, _, row in cases]))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["--redirects=3", f"--log-dir={folder}/{LOGS}", "-m", RANKS, str(asked), folder]
        with log.open("wb") as output:
            torchrun = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield from _answers(torchrun, cases, Path(folder), seconds_a_case)
        finally:
            end_tree(torchrun)


def _answers(
    torchrun: subprocess.Popen[bytes], cases: Sequence[Case], folder: Path, seconds_a_case: float
) -> Iterator[Compared]:
    deadline = time.monotonic() + START_SECONDS + seconds_a_case
    for number, case in enumerate(cases):
        answer = folder / f"{number}.json"
        while not answer.exists():
            ended = torchrun.poll() is not None
            if (ended or time.monotonic() > deadline) and not answer.exists():
                yield _lost(case, folder, None if ended else seconds_a_case)
                return
            time.sleep(0.1)
        yield Compared.model_validate_json(answer.read_bytes())
        deadline = time.monotonic() + seconds_a_case


def _lost(case: Case, folder: Path, waited_seconds: float | None) -> Compared:
    """In the words of the ranks that failed; of one that died without any, how it did."""
    failed = [path.read_text() for path in sorted(folder.glob("rank*.txt"))]
    reason = " | ".join(failed) or _death(folder)
    if waited_seconds is not None:
        return correctness.compared(case, "timeout", f"no answer in {waited_seconds:g} s; {reason}")
    verdicts = {tryout.RAISED[kind] for text in failed if (kind := text.split(": ")[1]) in tryout.RAISED}
    return correctness.compared(case, verdicts.pop() if len(verdicts) == 1 else "error", reason)


def _death(folder: Path) -> str:
    """torchrun's summary says who died first, and how; nothing of what that rank said last."""
    told = (folder / TORCHRUN_LOG).read_text(errors="replace")
    if died := FIRST_DEATH.search(told):
        rank, code = died[1], int(died[2])
        lines = [log_tail(path, lines=1) for path in folder.glob(f"{LOGS}/*/attempt_0/{rank}/stderr.log")]
        said = "".join(f": {line}" for (line,) in filter(None, lines))
        return f"rank {rank}: {Exit(signal=-code) if code < 0 else Exit(code=code)}{said}"
    return " ".join(told.split())[-300:]


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that came of it."""
    try:
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        tree = []
    for each in tree:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(tree, timeout=END_SECONDS)


def page(found: Correct) -> str:
    """The table, and what a reader must know of it."""
    versions = ", ".join(f"{name} {found.packages[name]}" for name in ("torch", "diffusers"))
    return f"""\
# Several ranks against one process: {found.hardware}

Each number is |together - alone| / |alone|, Euclidean: the latents (of `vae parallel`: the pictures) that all
ranks paint together against those of one process, with the same prompt and seed, on the tiny FLUX.
{found.summary()}; packages: {versions}. Each error and its
tolerance stand in the JSON beside this file; `fluxbench correctness --ranks N --out FILE.json` writes both.

{table(found.compared)}"""


def table(compared: Sequence[Compared]) -> str:
    """Markdown: a line a method and what stands beside it, a column a use case; below, why a cell has no
    error."""
    lines = [c for c in compared if needs_ranks(c.axis, c.option)]
    columns = list(dict.fromkeys(_use_case(c) for c in lines))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for c in lines:
        rows.setdefault(_name(c), {})[_use_case(c)] = _cell(c)
    head = ["ranks", "method", "with", "dtype", *columns]
    written = [[*name, *(cells.get(column, "") for column in columns)] for name, cells in rows.items()]
    parts = [head, ["---"] * len(head), *written]
    reasons = sorted(
        {f"- {c.option}, {_use_case(c)}: {c.ended}: {c.reason}" for c in lines if c.error is None}
    )
    return "\n".join([*(f"| {' | '.join(part)} |" for part in parts), "", *reasons]).rstrip() + "\n"


def _name(c: Compared) -> tuple[str, ...]:
    option = f"vae {c.option}" if c.axis == "vae" else c.option
    return str(c.ranks), option, ", ".join(c.beside.values()) or "-", c.precision


def _use_case(c: Compared) -> str:
    return c.task if c.control == "none" else f"{c.task}+{c.control}"


def _cell(c: Compared) -> str:
    if c.error is None:
        return c.ended
    return f"{c.error:.1e}" if c.held else f"**{c.error:.1e}** (over {c.tolerance:g})"
