"""A row of two ranks from `fluxbench run` to result.json: Ulysses and replicas, on the tiny FLUX."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_row
from test_failures import campaign, only_result
from warm_runner import WarmExecutor, WarmServer

from bench import check, correctness, layout
from bench.config import SINGLE, Shape
from bench.host import docker
from bench.matrix import Row
from bench.record import Code, Result
from bench.runner import processes
from bench.runner.environment import speed_variables
from bench.runner.messages import Place


def row(parallel: str) -> Row:
    return fake_row(hardware="cpu", precision="fp32", steps=2, parallel=parallel)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    with WarmServer(tmp_path_factory.mktemp("warm")) as running:
        yield running


def measured(server: WarmServer, results: Path, parallel: str, **changes: object) -> Result:
    campaign(results, WarmExecutor(server), row=row(parallel), **changes)
    result = only_result(results)
    assert result.status.code is Code.OK, result.status
    assert not list(check.result_faults(result))
    return result


def test_ranks_that_share_a_request_make_one_picture_and_one_result(
    server: WarmServer, tmp_path: Path
) -> None:
    result = measured(server, tmp_path, "ulysses2", cells=(SINGLE, Shape(2, 2)))
    assert result.effective["parallel"]["ranks"] == 2
    for cell in result.cells:
        assert cell.counts["parallel"] == {"identical_on_all_ranks": cell.n}
    sent = result.communication
    assert sent is not None
    assert sent.calls_per_step >= 16, "four all-to-alls in each of four blocks"
    assert sent.sent_bytes_per_step > 0
    assert sent.kernel_seconds_by_rank == [], "no kernels are timed on a CPU"
    assert result.agreement is not None
    assert result.agreement.latent_relative_error < correctness.EQUAL
    assert result.agreement.image_relative_error is None, "the VAE is not shared out"
    (folder,) = layout.attempts(tmp_path)
    assert len(list((folder / layout.IMAGES).glob("*.png"))) == 2
    assert [(folder / layout.rank_log(rank)).exists() for rank in range(2)] == [True, True]


def servers(line: dict[str, Any]) -> tuple[str, ...]:
    return tuple(line["counts"]["parallel"])


def at_once(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two requests of the first round, which were scheduled at the same moment, were served at the
    same time."""
    (begun, done), (other_begun, other_done) = (
        (line["queue_seconds"], line["queue_seconds"] + line["service_seconds"]) for line in (one, other)
    )
    return bool(begun < other_done and other_begun < done)


def test_replicas_share_one_queue_and_each_serves_its_part(server: WarmServer, tmp_path: Path) -> None:
    result = measured(server, tmp_path, "replicas", cells=(SINGLE, Shape(4, 1)))
    assert len(set(result.effective["parallel"]["devices"])) == 2
    alone, crowd = result.cells
    served = crowd.counts["parallel"]
    assert sum(served.values()) == crowd.n == 4
    assert result.communication is None
    assert result.agreement is None, "each paints its own"
    (folder,) = layout.attempts(tmp_path)
    lines = [json.loads(line) for line in (folder / layout.REQUESTS).read_text().splitlines()]
    lines = [line for line in lines if line["cell"] == "4x1"]
    assert [line["counted"] for line in lines] == [False] * 4 + [True] * 4
    # Of all eight: a machine busy with other things may let one replica have the four that count.
    assert {servers(line) for line in lines} == {("served_by_rank_0",), ("served_by_rank_1",)}
    first = [line for line in lines if line["index"] < 4]
    pairs = combinations(first, 2)
    assert any(servers(one) != servers(other) and at_once(one, other) for one, other in pairs)
    assert alone.counts["parallel"]["served_by_rank_0"] >= 1, "idle replicas take turns"


def test_every_rank_gets_the_callers_variables_unchanged_and_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "NCCL_DEBUG": "INFO",
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "0",
        "NVSHMEM_DEBUG": "WARN",
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", show))
    job = row("ulysses2")

    def place(rank: int, port: int, fd: int | None) -> Place:
        return Place(rank, 2, port, fd, 60.0, True, job, "tiny", "cpu", None)

    begun = processes.start(place, 2, lambda rank: tmp_path / layout.rank_log(rank))
    begun.end(30.0)
    torchruns = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    for rank in range(2):
        told = json.loads((tmp_path / layout.rank_log(rank)).read_text())
        assert told["RANK"] == told["LOCAL_RANK"] == str(rank)
        ours = {name for name, value in told.items() if os.environ.get(name) != value}
        assert ours <= torchruns | {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
        assert set(os.environ) <= set(told)
    assert asked.items() <= speed_variables(os.environ).items(), "and the result records them"
    assert docker.passed_on(asked) == asked, "and a container gets them"
