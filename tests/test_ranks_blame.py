"""Several ranks end in one moment, and one of them is to blame: real processes that stand in for ranks."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from campaigns import wait_for
from fakes import fake_row

from bench import config
from bench.record import Code, Status
from bench.runner import processes
from bench.runner.judge import RankLost
from bench.runner.messages import Place

STANDIN = Path(__file__).parent / "standin_rank.py"


def blamed(folder: Path, monkeypatch: pytest.MonkeyPatch, *does: str, **rule: float) -> Status:
    """``does``: by rank. They are asked when all are ready: who is still starting is not hanging."""
    ready = folder / f"ready-{len(list(folder.iterdir()))}"
    ready.mkdir()
    monkeypatch.setenv("READY", str(ready))
    row = fake_row(hardware="cpu", parallel="ulysses2")
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, str(STANDIN)))
    monkeypatch.setattr(config, "RANKS", dataclasses.replace(config.RANKS, settle_seconds=2.0, **rule))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    for rank, what in enumerate(does):
        monkeypatch.setenv(f"RANK_{rank}", what)

    def place(rank: int, port: int, fd: int | None) -> Place:
        return Place(rank, len(does), port, fd, 60.0, True, row, "tiny", "cpu", None)

    begun = processes.start(place, len(does), lambda rank: folder / f"rank-{rank}.log")
    wait_for(lambda: len(list(ready.iterdir())) == len(does), seconds=60)
    with pytest.raises(RankLost) as raised:
        begun.ask("answer")
    assert all(process.popen.poll() is not None for process in begun), "no process is left"
    return raised.value.status


def test_who_waited_in_vain_is_not_who_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a collective gives up before the conductor does."""
    for waiter in ("peer", "watchdog"):
        status = blamed(tmp_path, monkeypatch, waiter, "hang")
        assert status.code is Code.TIMEOUT
        assert status.reason.startswith("rank 1 of 2 did not answer, and the others waited in vain"), waiter
        assert "in act" in "\n".join(status.log_tail)


def test_of_four_only_those_without_an_answer_are_asked_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = blamed(tmp_path, monkeypatch, "peer", "hang", "peer 0.3", "peer 0.5")
    assert status.reason.startswith("rank 1 of 4 did not answer")
    assert [line for line in status.log_tail if line.startswith("rank")] == ["rank 1:"]


def test_where_all_blame_a_peer_the_first_to_say_so_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = blamed(tmp_path, monkeypatch, "peer 1", "peer")
    assert (status.code, status.reason) == (Code.CRASHED, "rank 1 of 2: Timed out waiting")


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (("abort", "kill"), "rank 1 of 2: the runner was killed by SIGKILL"),
        (("abort 0.3", "kill"), "rank 1 of 2: the runner was killed by SIGKILL"),
        (("kill 1", "kill"), "rank 1 of 2: the runner was killed by SIGKILL"),
        (("watchdog 0.5", "abort"), "rank 1 of 2: the runner was killed by SIGABRT"),
        (("abort", "hang"), "rank 0 of 2: the runner was killed by SIGABRT"),
        (("watchdog", "watchdog"), "of 2: the runner was killed by SIGABRT"),
        (("kill", "raise 0.5"), "rank 1 of 2: mine"),
        (("hang", "kill"), "rank 1 of 2: the runner was killed by SIGKILL"),
    ],
)
def test_of_several_that_die_the_one_that_no_other_aborted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: tuple[str, ...], says: str
) -> None:
    status = blamed(tmp_path, monkeypatch, *does)
    assert status.code is Code.CRASHED
    assert says in status.reason


def test_a_fatal_signal_leaves_the_line_that_it_struck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = blamed(tmp_path, monkeypatch, "hang", "segfault")
    assert "rank 1 of 2: the runner was killed by SIGSEGV" in status.reason
    assert status.log_tail[:2] == ["progress bar", "Fatal Python error: Segmentation fault"]
    assert "in act" in status.log_tail[2]


def test_a_rank_that_closes_its_connection_and_lives_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = blamed(tmp_path, monkeypatch, "peer 0.3", "close")
    assert status.reason.startswith("rank 1 of 2 did not answer")
    assert blamed(tmp_path, monkeypatch, "close", "close").code is Code.TIMEOUT


def test_a_rank_that_hangs_is_asked_where_before_a_collective_gives_up() -> None:
    rule = config.RANKS
    asked_seconds = rule.silence_seconds + rule.settle_seconds + 2 * processes.LOOK_SECONDS
    assert rule.collective_seconds > asked_seconds
