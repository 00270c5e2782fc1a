"""A runner without FLUX, for tests of the host: the same command line, files, signals and exit codes.

STANDIN in the environment says what happens in a cell: ``1x4=segv,4x1=hang``. STANDIN_SECONDS is how long a
cell takes, STANDIN_FINGERPRINT what it says to have measured, STANDIN_REFERENCE the latencies in seconds of
the reference's first, second, ... attempt; in one of ``nan`` the runner dies.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from bench import layout, record, stats
from bench.config import BUDGETS
from bench.matrix import Row
from bench.pictures import LATENTS
from bench.record import Cell, Code, Status
from bench.runner.diary import Diary


class Stopped(BaseException):
    pass


def on_sigterm(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def sleep_forever() -> None:
    while True:
        time.sleep(1)


def eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(b"x" * 10_000_000)


def happen(what: str, folder: Path) -> None:
    """What goes wrong inside a cell. Returns when nothing does."""
    if what == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "exit7":
        print("something is broken", flush=True)
        os._exit(7)
    elif what == "hang":
        sleep_forever()
    elif what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleep_forever()
    elif what == "memory":
        eat_memory()
    elif what == "cuda-oom":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB", flush=True)
        os._exit(1)
    elif what == "driver":
        print("NVML: Driver/library version mismatch", flush=True)
        os._exit(1)
    elif what == "fill-disk":
        with (folder / "filler").open("wb") as filler:
            while True:
                filler.write(b"x" * 1_000_000)
    elif what == "scribble":
        (folder / layout.RESULT).write_text('{"half a result')
        os._exit(1)


def latency_seconds(row: dict[str, object], folder: Path) -> float:
    told = [float(text) for text in os.environ.get("STANDIN_REFERENCE", "5").split(",")]
    if not Row.model_validate(row).is_reference:
        return told[0]
    return told[min(len(list(folder.parent.iterdir())), len(told)) - 1]


def leave_pictures(images: Path) -> None:
    """Of one prompt, by their names alone."""
    images.mkdir()
    for name in ("p0.png", f"p0{LATENTS}"):
        (images / name).touch()


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--row-json", "--weights", "--budget", "--cells", "--attempt-dir"):
        parser.add_argument(name, required=True)
    asked = parser.parse_args()
    print(f"cells {asked.cells} pid {os.getpid()} gpus {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    faults = dict(part.split("=") for part in os.environ.get("STANDIN", "").split(",") if part)
    seconds = float(os.environ.get("STANDIN_SECONDS", "0.02"))
    folder = Path(asked.attempt_dir)
    signal.signal(signal.SIGTERM, on_sigterm)
    result = record.load(folder / layout.RESULT)
    result.fingerprint = os.environ.get("STANDIN_FINGERPRINT", result.fingerprint)
    diary = Diary(folder, result)
    try:
        for text in asked.cells.split(","):
            users, images = map(int, text.split("x"))
            with diary.phase(f"cell {text}"):
                happen(faults.get(text, ""), folder)
                time.sleep(seconds)
                diary.request(cell=text)
            seconds_each = latency_seconds(result.row, folder)
            if math.isnan(seconds_each):
                happen("exit7", folder)
            n = BUDGETS[asked.budget].n_per_process
            latency = stats.summarise([seconds_each] * n, users)
            status = Status(code=Code.OK)
            diary.finish(Cell(users=users, images=images, status=status, n=n, latency=latency))
    except Stopped:
        diary.close(Status(code=Code.INTERRUPTED, reason="stopped by SIGTERM"))
        return 3
    leave_pictures(folder / layout.IMAGES)
    diary.close(Status(code=Code.OK))
    return 0


if __name__ == "__main__":
    sys.exit(main())
