"""One attempt: from an empty folder to a result.json that says how it ended, whatever happened between.

The host writes a first result.json before the runner starts (status ``interrupted``, as the runner's own
until it ends), so an attempt is honest even when host and runner are killed together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bench import layout, record
from bench.host.local import Executor, Job
from bench.host.supervise import Stop, supervise
from bench.host.verdict import Ending, kernel_oom_kills, log_tail, verdict
from bench.record import Cell, Environment, Result, Status
from bench.runner.diary import RUNNING

BALLAST = ".ballast"
BALLAST_BYTES = 2_000_000
"""Room on the disk kept for the verdict: given up when the disk is full. A result.json of a full budget
with all cells has about a tenth of it."""


def first_result(job: Job, fingerprint: str, environment: Environment) -> Result:
    return Result(
        status=RUNNING,
        row=job.row.model_dump(mode="json"),
        attempt=job.attempt_dir.name,
        budget=job.budget,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=fingerprint,
        environment=environment,
    )


def begin(job: Job, fingerprint: str, environment: Environment) -> Result:
    """The attempt's folder, its first result.json and its ballast. Raises OSError when there is no room."""
    result = first_result(job, fingerprint, environment)
    record.save(result, job.attempt_dir)
    with (job.attempt_dir / BALLAST).open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, BALLAST_BYTES)
    return result


def execute(
    executor: Executor,
    job: Job,
    started: Result,
    timeout_seconds: float,
    stop: Stop,
    look: Callable[[], None],
) -> Result:
    """Runs the attempt to its end and returns what its result.json says then."""
    kills_before = kernel_oom_kills()
    begun = time.monotonic()
    try:
        handle = executor.start(job)
    except OSError as error:
        status = Status(code=record.Code.INFRA, reason=f"the runner does not start: {error}")
        return _finish(job.attempt_dir, started.model_copy(update={"status": status}))
    try:
        ended = supervise(handle, timeout_seconds, stop, look)
    except BaseException:
        handle.kill()
        raise
    ending = Ending(
        exit=ended.exit,
        stopped_for=ended.stopped_for,
        after_seconds=time.monotonic() - begun,
        log_tail=log_tail(job.attempt_dir / layout.LOG),
        kernel_oom_kills=kernel_oom_kills() - kills_before,
        free_disk_bytes=shutil.disk_usage(job.attempt_dir).free,
    )
    return conclude(job, ending, started)


def conclude(job: Job, ending: Ending, started: Result) -> Result:
    """Leaves the runner's result as it is where that is its last word; else adds the host's verdict to
    the cells that were finished."""
    written = _read(job.attempt_dir / layout.RESULT)
    status = verdict(ending, written)
    if status is None and written is not None:
        (job.attempt_dir / BALLAST).unlink(missing_ok=True)
        return written
    result = (written or started).model_copy(update={"status": status})
    result.cells = [*result.cells, *_cell_at_work(job, result)]
    return _finish(job.attempt_dir, result)


def _cell_at_work(job: Job, result: Result) -> list[Cell]:
    """The cell in which the runner ended, where others were finished before it: it alone is to blame, and
    the next attempt goes on with the cells after it. Without any finished cell the row itself is."""
    finished = {(cell.users, cell.images) for cell in result.cells}
    unfinished = [cell for cell in job.cells if cell not in finished]
    if not finished or not unfinished:
        return []
    users, images = unfinished[0]
    return [Cell(users=users, images=images, status=result.status)]


def _read(path: Path) -> Result | None:
    """None where the file is missing or not a result; such a file is kept beside the verdict."""
    try:
        return record.load(path)
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        path.replace(path.with_name(f"{path.name}.damaged"))
        return None


def _finish(attempt_dir: Path, result: Result) -> Result:
    ballast = attempt_dir / BALLAST
    try:
        record.save(result, attempt_dir)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        ballast.unlink(missing_ok=True)
        record.save(result, attempt_dir)
    ballast.unlink(missing_ok=True)
    for half in attempt_dir.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            half.unlink()
    return result
