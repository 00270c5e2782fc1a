"""Bytes that a rank sends in a step, from what its collectives were given."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import fake_row

from bench.axes.parallel.degrees import degrees_of
from bench.record import Profile
from bench.runner.traffic import communication, sent_bytes


def seen(name: str, input_bytes: int, calls: int = 1) -> dict[str, dict[str, int]]:
    return {name: {"calls": calls, "input_bytes": input_bytes}}


@pytest.mark.parametrize(
    ("option", "operation", "sent_of_1200"),
    [
        ("ulysses4", "_c10d_functional::all_to_all_single", 900),
        ("ulysses4", "_c10d_functional::all_gather_into_tensor", 3600),
        ("ring4", "_c10d_functional::all_gather_into_tensor", 3600),
        ("ulysses2xring2", "_c10d_functional::all_to_all_single", 600),
        ("ulysses2xring2", "_c10d_functional::all_gather_into_tensor", 1200),
        ("tp4", "_c10d_functional::all_reduce", 1800),
        ("fsdp4", "c10d::_allgather_base_", 3600),
        ("xdit-ulysses4", "c10d::alltoall_base_", 900),
        ("xdit-pipefusion4", "c10d::send", 1200),
        ("xdit-pipefusion4", "c10d::recv_", 0),
    ],
)
def test_each_collective_sends_its_share(option: str, operation: str, sent_of_1200: int) -> None:
    degrees = degrees_of(option)
    assert degrees is not None
    assert sent_bytes(seen(operation, 1200), degrees) == sent_of_1200


def test_an_operation_without_a_rule_is_no_zero() -> None:
    degrees = degrees_of("ulysses2")
    assert degrees is not None
    with pytest.raises(ValueError, match="scatter"):
        sent_bytes(seen("c10d::scatter_", 1), degrees)


def profile_with(seconds: float) -> Profile:
    return Profile(
        request_seconds=3.0, busy_seconds=2.0, launches=9, seconds_by_kind={"communication": seconds}, top=[]
    )


def test_what_is_sent_and_how_long_its_kernels_ran_is_known_by_rank() -> None:
    row = fake_row(hardware="h200x2", parallel="ulysses2")
    evidence: dict[str, Any] = {
        "by_rank": [{"collectives": seen("_c10d_functional::all_to_all_single", 1000, calls=8)}] * 2
    }
    found = communication(row, evidence, [profile_with(0.2), profile_with(0.4)])
    assert found is not None
    assert found.calls_per_step == 8
    assert found.sent_bytes_per_step == 500
    assert found.kernel_seconds_by_rank == [0.2, 0.4]


def test_replicas_send_nothing() -> None:
    assert communication(fake_row(hardware="h200x2", parallel="replicas"), {"ranks": 2}, []) is None
