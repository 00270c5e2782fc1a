"""One attempt: from an empty folder to a result.json that says how it ended, whatever happened between.

The host writes a first result.json before the runner starts (status ``interrupted``, as the runner's own
until it ends), so an attempt is honest even when host and runner are killed together.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bench import layout, record
from bench.config import Shape
from bench.host.local import Executor, Handle, Job
from bench.host.supervise import Ended
from bench.host.verdict import Ending, kernel_oom_kills, log_tail, verdict
from bench.identity import fingerprint_of
from bench.record import Cell, Code, Environment, Ingredients, Result, Status
from bench.runner.diary import RUNNING

BALLAST_BYTES = 2_000_000
"""Room on the disk kept for the verdict and given up when the disk is full. A result.json of a full budget
with all its cells has about a tenth of it."""


def first_result(job: Job, made_of: Ingredients, environment: Environment) -> Result:
    return Result(
        status=RUNNING,
        row=job.row.model_dump(mode="json"),
        attempt=job.attempt_dir.name,
        budget=job.budget,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=fingerprint_of(job.row, made_of),
        ingredients=made_of,
        environment=environment,
    )


def execute(executor: Executor, job: Job, started: Result, watch: Callable[[Handle], Ended]) -> Result:
    """Runs the attempt to its end, which ``watch`` waits for, and returns what its result.json says then.
    Raises OSError when there is no room to begin, or for the verdict."""
    job.attempt_dir.mkdir(parents=True, exist_ok=True)
    # Without a name, so that it is gone with this process, however that ends.
    with tempfile.TemporaryFile(dir=job.attempt_dir) as ballast:
        ballast.write(bytes(BALLAST_BYTES))
        ballast.flush()
        record.save(started, job.attempt_dir)
        ending = _run(executor, job, watch)
        return conclude(job, ending, started, give_up_ballast=ballast.close)


def _run(executor: Executor, job: Job, watch: Callable[[Handle], Ended]) -> Ending:
    kills_before = kernel_oom_kills()
    handle = executor.start(job)
    try:
        ended = watch(handle)
    except BaseException:
        handle.kill()
        raise
    return Ending(
        exit=ended.exit,
        stopped_for=ended.stopped_for,
        after_seconds=ended.after_seconds,
        log_tail=log_tail(job.attempt_dir / layout.LOG),
        kernel_oom_kills=kernel_oom_kills() - kills_before,
        free_disk_bytes=shutil.disk_usage(job.attempt_dir).free,
    )


def conclude(job: Job, ending: Ending, started: Result, give_up_ballast: Callable[[], None]) -> Result:
    """Leaves the runner's result as it is where that is its last word; else adds the host's verdict to
    the cells that were finished."""
    written = _read(job.attempt_dir / layout.RESULT)
    status = verdict(ending, written)
    if status is None and written is not None:
        return written
    base = written or started
    result = base.model_copy(
        update={
            "status": status,
            "environment": base.environment or started.environment,
            "cells": cells_after(status, base.cells, job.cells) if status else base.cells,
        }
    )
    try:
        record.save(result, job.attempt_dir)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        give_up_ballast()
        record.save(result, job.attempt_dir)
    for half_written in job.attempt_dir.glob(".*.tmp"):
        half_written.unlink(missing_ok=True)
    return result


def cells_after(status: Status, written: Sequence[Cell], asked: Sequence[Shape]) -> list[Cell]:
    """The finished cells, and one for each that was not. Where cells were finished, the one at work is to
    blame and the next attempt goes on with those after it; without a finished cell the row itself is."""
    finished = [cell for cell in written if cell.status.code is not Code.INTERRUPTED]
    known = {cell.shape for cell in finished}
    unfinished = [shape for shape in asked if shape not in known]
    blamed = status.model_copy(update={"log_tail": []})
    not_reached = Status(code=Code.INTERRUPTED, reason=f"not reached: an earlier cell ended as {status.code}")
    return finished + [
        Cell(users=users, images=images, status=not_reached if finished and place else blamed)
        for place, (users, images) in enumerate(unfinished)
    ]


def _read(path: Path) -> Result | None:
    """None where the file is missing or not a result; such a file is kept beside the verdict."""
    try:
        return record.load(path)
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        path.replace(path.with_name(f"{path.name}.damaged"))
        return None
