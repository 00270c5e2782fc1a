"""What a replayed module does with its calls. The graph here is a stand-in that computes nothing: only what
is handed to it and back is looked at; that CUDA replays what it captured is seen on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench.axes.compilation.replayed import EAGER_CALLS, Replayed, all_paused  # noqa: E402


class Graph:
    """Replaying it is only counted."""

    replayed = 0

    def replay(self) -> None:
        type(self).replayed += 1


@contextmanager
def _capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
    yield


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", _capture)


class Doubling(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, hidden: Any, *, scale: float = 2.0) -> Any:
        self.seen.append(hidden)
        return {"out": hidden * scale}


def test_a_module_runs_as_it_is_before_it_is_captured_and_not_again_after() -> None:
    module = Doubling()
    replayed = Replayed(module)
    for _ in range(EAGER_CALLS):
        assert torch.equal(module(torch.ones(2))["out"], torch.full((2,), 2.0))
    assert replayed.replays == 0
    for _ in range(3):
        module(torch.ones(2))
    assert replayed.replays == 3
    assert len(module.seen) == EAGER_CALLS + 1


def test_a_replay_reads_the_values_of_its_own_call_where_the_graph_looks_for_them() -> None:
    module = Doubling()
    Replayed(module)
    for value in range(EAGER_CALLS + 2):
        module(torch.full((2,), float(value)))
    place = module.seen[-1]
    assert torch.equal(place, torch.full((2,), EAGER_CALLS + 1.0))


def test_another_shape_or_another_number_is_captured_by_itself() -> None:
    module = Doubling()
    replayed = Replayed(module)
    calls = [{"hidden": torch.ones(2)}, {"hidden": torch.ones(3)}, {"hidden": torch.ones(2), "scale": 3.0}]
    for call in calls * (EAGER_CALLS + 1):
        module(**call)
    assert replayed.replays == len(calls)
    assert [len(place) for place in module.seen[-3:]] == [2, 3, 2]


def test_while_paused_every_module_runs_as_it_is() -> None:
    module = Doubling()
    replayed = Replayed(module)
    for _ in range(EAGER_CALLS + 1):
        module(torch.ones(2))
    with all_paused([replayed]):
        assert torch.equal(module(torch.full((2,), 5.0))["out"], torch.full((2,), 10.0))
    assert replayed.replays == 1
