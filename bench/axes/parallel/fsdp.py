"""fsdpN: the weights of transformer and T5 shared out over the ranks (FSDP2), the tokens too (Ulysses).

Each block's weights are gathered just before it runs and given back after. Without Ulysses all ranks would
compute the same; with it, what one GPU saves in memory costs no time of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from bench.axes.option import Option, Session
from bench.axes.parallel import evidence, group, native
from bench.axes.parallel.degrees import Degrees


def _apply(ranks: int, session: Session) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    native.share_tokens(session, ulysses=ranks)
    mesh = init_device_mesh(session.device, (ranks,), mesh_dim_names=("fsdp",))
    transformer, t5 = session.pipe.transformer, session.pipe.text_encoder_2
    _shard(transformer, (*transformer.transformer_blocks, *transformer.single_transformer_blocks), mesh)
    _shard(t5, t5.encoder.block, mesh)
    if session.device == "cuda":
        import torch

        torch.cuda.empty_cache()  # the whole weights, which the shards have replaced


def _shard(model: Any, blocks: Iterable[Any], mesh: Any) -> None:
    """Each block by itself, and what is left of the model as one more, which FSDP2 keeps whole on every rank
    once it has been gathered: a step gathers the blocks alone."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _option(ranks: int) -> Option:
    id = f"fsdp{ranks}"
    return Option(
        id,
        f"FSDP2 {ranks} with Ulysses",
        require=partial(group.require_ranks, id, ranks),
        apply=partial(_apply, ranks),
        verify=partial(evidence.verify, id, Degrees(fsdp=ranks)),
        images=native.IMAGES,
        exact=True,
    )


OPTIONS = tuple(map(_option, (2, 4, 8)))
