"""Links between GPUs: every pair is tried, and one that is far below its kind ends the row as `infra`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from fakes import fake_environment, fake_row

from bench.record import Code
from bench.runner import judge, links
from bench.runner.links import Measured

TOPOLOGY = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\t X \tNV18\tPIX\tSYS\tPIX\t0-47\t0\tN/A
GPU1\tNV18\t X \tSYS\tSYS\tSYS\t0-47\t0\tN/A
GPU2\tPIX\tSYS\t X \tNV12\tSYS\t48-95\t1\tN/A
GPU3\tSYS\tSYS\tNV12\t X \tSYS\t48-95\t1\tN/A
NIC0\tPIX\tSYS\tSYS\tSYS\t X \t\t\t

Legend:

  X    = Self
"""


@pytest.mark.parametrize("ranks", range(2, 9))
def test_every_pair_meets_once_and_no_rank_is_in_two_pairs_of_a_round(ranks: int) -> None:
    found = links.rounds(ranks)
    assert sorted(pair for pairs in found for pair in pairs) == list(combinations(range(ranks), 2))
    for pairs in found:
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))
    assert len(found) == ranks - 1 + ranks % 2


def test_the_kind_of_a_link_is_read_from_nvidia_smi() -> None:
    assert links.kinds(TOPOLOGY) == {
        (0, 1): "NV18",
        (0, 2): "PIX",
        (0, 3): "SYS",
        (1, 2): "SYS",
        (1, 3): "SYS",
        (2, 3): "NV12",
    }
    assert links.kinds(None) == {}


def both_ways(gb_per_s: float, back: float) -> list[list[Measured]]:
    return [[Measured(1, gb_per_s)], [Measured(0, back)]]


def test_a_slow_nvlink_is_the_machines_fault_and_names_what_disables_it() -> None:
    found = links.links(both_ways(310.0, 11.0), [1, 0], TOPOLOGY)
    (link,) = found
    assert (link.kind, link.gb_per_s, link.ranks) == ("NV18", 11.0, (0, 1))
    with pytest.raises(links.SlowLink, match=r"NV18 link between ranks 0 and 1 moves 11\.0 GB/s") as caught:
        links.require_fast("row 7", found, {"NCCL_P2P_DISABLE": "1"})
    assert "; NCCL_P2P_DISABLE=1 is set: `unset NCCL_P2P_DISABLE`, or take" in str(caught.value)
    assert judge.status_of(caught.value).code is Code.INFRA
    assert judge.ends_row(caught.value)


def test_what_is_slow_for_nvlink_is_fast_for_pcie() -> None:
    with pytest.raises(links.SlowLink, match="NV18"):
        links.require_fast("row 7", links.links(both_ways(20.0, 20.0), [0, 1], TOPOLOGY), {})
    links.require_fast("row 7", links.links(both_ways(310.0, 300.0), [0, 1], TOPOLOGY), {})
    links.require_fast("row 7", links.links(both_ways(20.0, 20.0), [0, 2], TOPOLOGY), {})
    links.require_fast("row 7", links.links(both_ways(0.5, 0.5), [0, 1], None), {})


@pytest.mark.parametrize("how", ["NCCL_P2P_DISABLE=1", "NCCL_P2P_LEVEL=LOC", "NCCL_P2P_LEVEL=0"])
def test_p2p_that_the_environment_disables_is_flagged_before_anything_is_loaded(how: str) -> None:
    machine = fake_environment(fake_row(hardware="h200x2")).model_copy(update={"topology": TOPOLOGY})
    assert judge.machine_anomalies(machine) == []
    name, value = how.split("=")
    disabled = machine.model_copy(update={"variables": {name: value}})
    (anomaly,) = judge.machine_anomalies(disabled)
    assert anomaly.kind == "p2p_disabled"
    assert how in anomaly.detail
    alone = fake_environment(fake_row(hardware="h200x1"))
    assert not judge.machine_anomalies(alone.model_copy(update={"variables": disabled.variables}))


def test_p2p_that_the_environment_only_shapes_is_not_called_disabled() -> None:
    assert links.p2p_disabled({"NCCL_P2P_DISABLE": "0", "NCCL_P2P_LEVEL": "NVL"}) is None
    assert links.p2p_disabled({"NCCL_P2P_DISABLE": "0", "NCCL_P2P_LEVEL": "LOC"}) == "NCCL_P2P_LEVEL=LOC"


@pytest.mark.parametrize("told", [None, "Failed to initialize NVML\n"])
def test_links_whose_kind_nobody_told_are_an_anomaly_of_several_gpus(told: str | None) -> None:
    machine = fake_environment(fake_row(hardware="h200x2")).model_copy(update={"topology": told})
    (anomaly,) = judge.machine_anomalies(machine)
    assert anomaly.kind == "no_topology"
    assert "`nvidia-smi topo -m`" in anomaly.detail
    assert not judge.machine_anomalies(fake_environment(fake_row(hardware="h200x1")))


FORKED_RANKS = """
import json, os, sys
import torch.distributed as dist
from bench.runner.links import exchange

for rank in range(3):
    if os.fork() == 0:
        dist.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=3)
        os.write(1, json.dumps([rank, exchange(rank, 3, "cpu")]).encode() + b"\\n")
        os._exit(0)
for _ in range(3):
    os.wait()
"""


def test_an_exchange_moves_bytes_between_real_ranks(tmp_path: Path) -> None:
    """Three ranks over gloo: in each round one sits out."""
    command = [sys.executable, "-c", FORKED_RANKS, f"file://{tmp_path / 'store'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    measured = dict(map(json.loads, done.stdout.splitlines()))
    for rank, seen in measured.items():
        assert sorted(peer for peer, _ in seen) == [each for each in range(3) if each != rank]
        assert all(0 < gb_per_s < 1000 for _, gb_per_s in seen)
    assert sorted(measured) == [0, 1, 2]
