"""Ulysses' exchange in one message. Ranks here are turns of one process; the messages of each are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench.axes.compilation import exchange  # noqa: E402
from bench.axes.compilation.exchange import Ulysses  # noqa: E402

RANKS, BATCH, TOKENS, HEADS, CHANNELS = 2, 2, 3, 4, 5
"""Tokens of one rank."""


class Mesh:
    def get_group(self) -> str:
        return "the group"


def on_every_rank(
    call: Callable[[int, Ulysses], Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], list[list[Any]]]:
    """What each rank's call returns, and its messages: asked once for what it sends, and again with what the
    others sent it."""
    sent: list[list[Any]] = []
    for rank in range(RANKS):
        sent.append([])
        monkeypatch.setattr(
            exchange, "_all_to_all_single", lambda message, _group: sent[-1].append(message) or message
        )
        call(rank, Ulysses(RANKS, None))
    found = []
    for rank in range(RANKS):
        received = torch.stack([messages[0][rank] for messages in sent])
        monkeypatch.setattr(exchange, "_all_to_all_single", lambda _message, _group, got=received: got)
        found.append(call(rank, Ulysses(RANKS, None)))
    return found, sent


def of_rank(whole: Any, rank: int) -> Any:
    return whole[:, rank * TOKENS : (rank + 1) * TOKENS]


def test_three_parts_travel_in_one_message_and_arrive_as_own_heads_of_all_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [torch.randn(BATCH, RANKS * TOKENS, HEADS, CHANNELS) for _ in range(3)]
    found, sent = on_every_rank(
        lambda rank, ulysses: ulysses.heads_of_all_tokens([of_rank(part, rank) for part in parts]),
        monkeypatch,
    )
    assert [len(messages) for messages in sent] == [1] * RANKS
    own = HEADS // RANKS
    for rank, heads in enumerate(found):
        for part, arrived in zip(parts, heads, strict=True):
            assert torch.equal(arrived, part[:, :, rank * own : (rank + 1) * own])


def test_the_way_back_gives_all_heads_of_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, own = torch.randn(BATCH, RANKS * TOKENS, HEADS, CHANNELS), HEADS // RANKS
    found, _ = on_every_rank(
        lambda rank, ulysses: ulysses.tokens_of_all_heads(whole[:, :, rank * own : (rank + 1) * own]),
        monkeypatch,
    )
    for rank, tokens in enumerate(found):
        assert torch.equal(tokens, of_rank(whole, rank))


def test_ulysses_alone_is_ours_and_ring_beside_it_is_left_to_diffusers() -> None:
    from diffusers import ContextParallelConfig, ParallelConfig

    both = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2, ring_degree=2))
    ring = ParallelConfig(context_parallel_config=ContextParallelConfig(ring_degree=2))
    alone = ContextParallelConfig(ulysses_degree=2)
    alone._ulysses_mesh = Mesh()
    found = exchange.ulysses_of(ParallelConfig(context_parallel_config=alone))
    assert found == Ulysses(2, "the group")
    assert exchange.ulysses_of(both) is exchange.ulysses_of(ring) is exchange.ulysses_of(None) is None
