"""How the end of a runner is named: the table of signs, the log, the kernel's counter. Real processes are
killed for memory, time and disk in test_host_fanout_faults.py and test_failures.py."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from signal import SIGKILL, SIGSEGV, SIGTERM

import pytest
from campaigns import is_alive
from fakes import fake_cell, fake_result, fake_row

from bench.config import SINGLE, Shape
from bench.host import verdict as verdicts
from bench.host.attempt import cells_after
from bench.host.local import Exit, Job, LocalExecutor, cells_text, runner_arguments
from bench.host.progress import AttemptWatch, Look, Tail, clock
from bench.host.verdict import Ending, kernel_oom_kills, log_tail, verdict
from bench.matrix import Row
from bench.record import Code, Status
from bench.runner.diary import RUNNING

PARTIAL = fake_result(fake_row(hardware="cpu")).model_copy(update={"status": RUNNING})
DONE = fake_result(fake_row(hardware="cpu"))
OUT_OF_MEMORY = fake_result(fake_row(hardware="cpu"), code=Code.OOM, reason="the 1x4 cell")


def ended(**facts: object) -> Ending:
    defaults: dict[str, object] = {"exit": Exit(code=1), "free_disk_bytes": 10**12}
    return Ending(**{**defaults, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ending", "code", "says"),
    [
        (ended(stopped_for="timeout", after_seconds=61, exit=Exit(signal=SIGKILL)), Code.TIMEOUT, "61 s"),
        (ended(stopped_for="interrupt", exit=Exit(signal=SIGTERM)), Code.INTERRUPTED, "goes on from here"),
        (ended(exit=Exit(signal=SIGTERM)), Code.INTERRUPTED, "SIGTERM by somebody else"),
        (ended(exit=Exit(signal=SIGKILL), kernel_oom_kills=1), Code.OOM, "out-of-memory killer"),
        (ended(exit=Exit(signal=SIGKILL)), Code.CRASHED, "killed by SIGKILL"),
        (ended(exit=Exit(signal=SIGSEGV), kernel_oom_kills=1), Code.CRASHED, "SIGSEGV"),
        (ended(exit=Exit(code=7)), Code.CRASHED, "exit code 7"),
        (ended(log_tail=("torch.OutOfMemoryError: CUDA out of memory. Tried",)), Code.OOM, "GPU's memory"),
        (ended(log_tail=("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED",)), Code.OOM, "GPU's memory"),
        (ended(log_tail=("MemoryError",)), Code.OOM, "the machine's memory"),
        (
            ended(log_tail=("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried",)),
            Code.OOM,
            "the machine's memory",
        ),
        (ended(log_tail=("OSError: [Errno 28] No space left on device",)), Code.INFRA, "free space"),
        (ended(free_disk_bytes=0), Code.INFRA, "free space"),
        (ended(log_tail=("CUDA driver version is insufficient for",)), Code.INFRA, "nvidia-smi"),
        (ended(log_tail=("Error 802: system not yet initialized",)), Code.INFRA, "nvidia-fabricmanager"),
        (
            ended(log_tail=("CUDA out of memory, retrying with less", "Segmentation fault")),
            Code.OOM,
            "GPU's memory",
        ),
        (
            ended(log_tail=("MemoryError in cell 1x4", "OSError: [Errno 28] No space left on device")),
            Code.INFRA,
            "the disk is full",
        ),
    ],
)
def test_a_runner_that_died_is_named_by_the_last_sign_it_left(ending: Ending, code: Code, says: str) -> None:
    status = verdict(ending, PARTIAL)
    assert status is not None
    assert status.code is code
    assert says in status.reason
    assert status.log_tail == list(ending.log_tail)


def test_the_runners_own_last_word_stands_where_its_exit_code_agrees() -> None:
    assert verdict(ended(exit=Exit(code=0)), DONE) is None
    assert verdict(ended(exit=Exit(code=3)), OUT_OF_MEMORY) is None
    interrupted = fake_result(code=Code.INTERRUPTED, reason="stopped by SIGTERM")
    assert verdict(ended(exit=Exit(code=3), stopped_for="interrupt"), interrupted) is None
    assert verdict(ended(exit=Exit(code=0), stopped_for="timeout"), DONE) is None, "done within the grace"


def test_a_hung_runner_that_obeyed_sigterm_is_a_timeout_all_the_same() -> None:
    interrupted = fake_result(code=Code.INTERRUPTED, reason="stopped by SIGTERM")
    status = verdict(ended(exit=Exit(code=3), stopped_for="timeout", after_seconds=9), interrupted)
    assert status is not None
    assert status.code is Code.TIMEOUT


@pytest.mark.parametrize("exit_", [Exit(code=0), Exit(code=3)])
def test_an_exit_code_that_contradicts_the_result_is_a_crash(exit_: Exit) -> None:
    for written in (PARTIAL, None, OUT_OF_MEMORY if exit_.code == 0 else DONE):
        status = verdict(ended(exit=exit_), written)
        assert status is not None
        assert status.code is Code.CRASHED


def test_only_the_cell_at_work_is_blamed_and_those_after_it_are_not_reached() -> None:
    timeout = Status(code=Code.TIMEOUT, reason="hung", log_tail=["line"])
    asked = (SINGLE, Shape(1, 4), Shape(4, 1))
    cells = cells_after(timeout, [fake_cell(1, 1)], asked)
    assert [(cell.users, cell.images, cell.status.code) for cell in cells] == [
        (1, 1, Code.OK),
        (1, 4, Code.TIMEOUT),
        (4, 1, Code.INTERRUPTED),
    ]
    assert [cell.status.code for cell in cells_after(timeout, [], asked)] == [Code.TIMEOUT] * 3


def test_the_end_of_a_huge_log_is_read_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert log_tail(path) == ()
    path.write_bytes(
        b"x" * 1_000_000 + b"\n" + b"".join(b"line %d\n\n" % n for n in range(100)) + b"\xff end"
    )
    tail = log_tail(path, lines=3)
    assert tail == ("line 98", "line 99", "� end")


def test_a_log_is_read_when_what_is_being_written_to_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a stack is: in pieces."""
    monkeypatch.setattr(verdicts, "STILL_SECONDS", 0.5)
    monkeypatch.setattr(verdicts, "MOST_WAIT_SECONDS", 60.0)
    path = tmp_path / "log.txt"
    path.write_text("rank 1:\n  File ")

    def write_the_rest() -> None:
        with path.open("a") as log:
            for piece in ('"a.py", ', "line 7 ", "in act\n"):
                time.sleep(0.02)
                log.write(piece)
                log.flush()

    writer = threading.Thread(target=write_the_rest)
    writer.start()
    assert log_tail(path) == ("rank 1:", '  File "a.py", line 7 in act')
    writer.join()


def test_a_log_that_never_rests_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "STILL_SECONDS", float("inf"))
    monkeypatch.setattr(verdicts, "MOST_WAIT_SECONDS", 0.1)
    path = tmp_path / "log.txt"
    path.write_text("step 7")
    assert log_tail(path) == ("step 7",)


@pytest.mark.parametrize(
    ("membership", "file", "text", "kills"),
    [
        ("0::/job\n", "cgroup/job/memory.events", "low 0\noom 2\noom_kill 2\n", 2),
        ("0::/not-mounted\n", "cgroup/memory.events", "oom_kill 4\n", 4),
        ("4:memory:/job\n0::/\n", "cgroup/memory/job/memory.oom_control", "under_oom 0\noom_kill 3\n", 3),
        ("0::/\n", "proc/vmstat", "nr_free_pages 5\noom_kill 6\n", 6),
        ("garbage", "proc/other", "", 0),
    ],
)
def test_oom_kills_are_counted_in_cgroups_of_either_version_and_without(
    tmp_path: Path, membership: str, file: str, text: str, kills: int
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(membership)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert kernel_oom_kills(tmp_path / "proc", tmp_path / "cgroup") == kills


# --- What crosses to the runner, and what comes back -------------------------------------------------


def test_a_row_crosses_to_the_runner_whole_on_its_command_line(tmp_path: Path) -> None:
    row = fake_row(why='quotes " and spaces, and ümlauts')
    arguments = dict(
        argument.removeprefix("--").split("=", 1)
        for argument in runner_arguments(Job(row, "synthetic", "quick", (SINGLE, Shape(4, 1)), tmp_path))
    )
    assert Row.model_validate_json(arguments["row-json"]) == row
    assert arguments["cells"] == cells_text((SINGLE, Shape(4, 1))) == "1x1,4x1"
    assert (arguments["weights"], arguments["budget"]) == ("synthetic", "quick")
    assert arguments["attempt-dir"] == str(tmp_path)


def test_no_process_that_the_runner_started_outlives_it(tmp_path: Path) -> None:
    job = Job(fake_row(hardware="cpu"), "tiny", "probe", (SINGLE,), tmp_path / "attempt")
    script = f"sleep 60 & echo $! > {tmp_path / 'pid'}; exit 5"
    handle = LocalExecutor(["bash", "-c", script]).start(job)
    assert handle.wait(10) == Exit(code=5)
    orphan = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while is_alive(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_progress_reads_phases_and_requests_as_they_grow(tmp_path: Path) -> None:
    watch = AttemptWatch(tmp_path)
    watch.look()
    assert (watch.phase, watch.requests) == ("start", 0)
    events, requests = tmp_path / "events.jsonl", tmp_path / "requests.jsonl"
    events.write_text('{"t": 1, "phase": "load", "event": "begin"}\n{"t": 2, "phase": "warm-up x1", "ev')
    watch.look()
    assert watch.phase == "load", "a half-written line waits"
    with events.open("a") as file:
        file.write('ent": "begin"}\n{"t": 3, "phase": "warm-up x1", "event": "end"}\nnot json\n')
    requests.write_text("{}\n{}\n{")
    watch.look()
    assert (watch.phase, watch.requests) == ("warm-up x1", 2)
    assert Tail(requests).lines() == ["{}", "{}"]


def test_a_progress_line_names_row_phase_times_and_gpu_hours() -> None:
    look = Look("row 42 (bf16 on h100x1)", 3, 12, "cell 1x1", 7, 34, 75, 3600, 1.234)
    line = look.line()
    for part in ("[3/12] row 42", "cell 1x1, 7 requests", "0:34 of about 1:15", "1:00:00", "1.23 GPU-hours"):
        assert part in line
    assert clock(59.6) == "1:00"
