"""What shows that every rank did its part: collectives in the profile of one step, and what each rank holds.

Each rank counts its own; all see what all counted, so all come to the same verdict and none is left waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bench.axes.compilation import graphs
from bench.axes.option import Evidence, NotApplied, Session
from bench.axes.parallel import group
from bench.axes.parallel.degrees import Degrees
from bench.axes.profiles import collectives_of_step

ALL_TO_ALL = "_c10d_functional::all_to_all_single"
ALL_GATHER = "_c10d_functional::all_gather_into_tensor"
ALL_REDUCE = "_c10d_functional::all_reduce"
GATHER_WEIGHTS = "c10d::_allgather_base_"
SEND = "c10d::send"


def required(degrees: Degrees, blocks: int, *, rearranged: bool = False) -> dict[str, int]:
    """Operation -> its calls in one step of a transformer of so many blocks, at the least."""
    together = degrees.xdit or _in_one_message(degrees, rearranged)
    exchanges = 2 if together else 4  # queries, keys and values; the result
    return {
        name: calls
        for name, calls, needed in (
            (ALL_TO_ALL, exchanges * blocks, degrees.ulysses > 1 or degrees.fsdp > 1),
            (ALL_GATHER, blocks, degrees.ring > 1),  # keys and values together
            (ALL_REDUCE, blocks, degrees.tp > 1),
            (GATHER_WEIGHTS, blocks, degrees.fsdp > 1),
        )
        if needed
    }


def _in_one_message(degrees: Degrees, rearranged: bool) -> bool:
    """Whether it is our own exchange that takes place: see ``exchange.ulysses_of``."""
    return rearranged and degrees.ulysses > 1 and degrees.ring == 1


def verify(option: str, degrees: Degrees, session: Session) -> Evidence:
    transformer = session.pipe.transformer
    with _tokens(transformer) as tokens:
        collectives = collectives_of_step(_from_the_first_weights(session) if degrees.fsdp > 1 else session)
    mine = {
        "collectives": {name: found._asdict() for name, found in collectives.items()},
        **tokens,
        "heads": transformer.config.num_attention_heads // degrees.heads,
        **_parameters(transformer),
    }
    ranks = group.of_all_ranks(mine)
    blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    rearranged = session.row.compilation in graphs.REARRANGED
    needed = required(degrees, blocks, rearranged=rearranged)
    for rank, found in enumerate(ranks):
        _require_calls(option, rank, found["collectives"], needed)
        if _in_one_message(degrees, rearranged):
            _require_no_more(option, rank, found["collectives"], needed[ALL_TO_ALL])
        if degrees.tp > 1 or degrees.fsdp > 1:
            _require_shards(option, rank, found)
    return {"ranks": len(ranks), "by_rank": ranks}


def _require_calls(
    option: str, rank: int, seen: Mapping[str, Mapping[str, int]], needed: Mapping[str, int]
) -> None:
    for name, calls in needed.items():
        found = seen.get(name, {}).get("calls", 0)
        if found < calls:
            raise NotApplied(
                f"parallel {option}: rank {rank} called {name} {found} times in one step, not {calls};"
                f" its profile shows {({n: c['calls'] for n, c in seen.items()}) or 'no collective'}"
            )


def _require_no_more(option: str, rank: int, seen: Mapping[str, Mapping[str, int]], exchanges: int) -> None:
    """diffusers' way of exchanging takes twice as many, and paints the same picture."""
    found = seen[ALL_TO_ALL]["calls"]
    if found > exchanges:
        raise NotApplied(
            f"parallel {option}: rank {rank} exchanged {found} messages in one step, not {exchanges}:"
            " queries, keys and values did not travel together"
        )


def _require_shards(option: str, rank: int, found: Mapping[str, int]) -> None:
    if found["parameters_here"] >= found["parameters"]:
        raise NotApplied(
            f"parallel {option}: rank {rank} holds all {found['parameters']} parameters of the transformer"
        )


def _parameters(transformer: Any) -> dict[str, int]:
    """Of the transformer, in all and on this rank."""
    from torch.distributed.tensor import DTensor

    here = held_bytes = total = 0
    for parameter in transformer.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        total += parameter.numel()
        here += local.numel()
        held_bytes += local.numel() * local.element_size()
    return {"parameters": total, "parameters_here": here, "parameter_bytes_here": held_bytes}


def _from_the_first_weights(session: Session) -> Session:
    """FSDP gathers what no block holds, and xDiT the first block too, in a hook that comes before all others;
    the profile of a step begins in one that comes last. In a request of this session it comes first."""

    def run(**arguments: Any) -> Any:
        hooks = session.pipe.transformer._forward_pre_hooks
        hooks.move_to_end(next(reversed(hooks)), last=False)
        return session.run(**arguments)

    return replace(session, run=run)


@contextmanager
def _tokens(transformer: Any) -> Iterator[dict[str, int]]:
    """Of the last call: the tokens of image and text that this rank embedded. Empty where the whole model is
    one graph: a hook inside it would compile another."""
    seen: dict[str, int] = {}
    if graphs.forward_compiled(transformer):
        yield seen
        return

    def count(name: str) -> Any:
        return lambda _module, _inputs, output: seen.update({name: output.shape[1]})

    handles = (
        transformer.x_embedder.register_forward_hook(count("image_tokens")),
        transformer.context_embedder.register_forward_hook(count("text_tokens")),
    )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
