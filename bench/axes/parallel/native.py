"""diffusers' own methods: Ulysses, ring, both, and tensor parallel.

Ulysses and ring share out the tokens of the transformer; what lies around it (text encoders, VAE, a
ControlNet) runs whole on every rank, with the same inputs, so that all hold the same picture in the end.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.axes.option import Option, Session
from bench.axes.parallel import control, evidence, group, on_cpu
from bench.axes.parallel.degrees import Degrees, degrees_of

IMAGES = frozenset({"cpu", "torch", "gguf", "sage", "xdit"})


def _apply(degrees: Degrees, session: Session) -> None:
    if degrees.tp > 1:
        share_features(session, degrees.tp)
    else:
        share_tokens(session, ulysses=degrees.ulysses, ring=degrees.ring)


def share_features(session: Session, ranks: int) -> None:
    from diffusers import TensorParallelConfig

    with on_cpu.parallelism(session.device):
        session.pipe.transformer.enable_parallelism(config=TensorParallelConfig(tp_degree=ranks))


def share_tokens(session: Session, *, ulysses: int = 1, ring: int = 1) -> None:
    from diffusers import ContextParallelConfig

    config: Any = ContextParallelConfig(ulysses_degree=ulysses, ring_degree=ring)
    with on_cpu.parallelism(session.device):
        session.pipe.transformer.enable_parallelism(config=config)
    controlnet: Any = getattr(session.pipe, "controlnet", None)
    if controlnet is not None:
        control.shard_residuals(controlnet, config._flattened_mesh)


def _option(id: str, title: str) -> Option:
    degrees = degrees_of(id)
    assert degrees is not None
    return Option(
        id,
        title,
        require=partial(group.require_ranks, id, degrees.ranks),
        apply=partial(_apply, degrees),
        verify=partial(evidence.verify, id, degrees),
        images=IMAGES,
        exact=True,
    )


OPTIONS = (
    *(_option(f"ulysses{n}", f"ContextParallel, Ulysses {n}") for n in (2, 4, 8)),
    *(_option(f"ring{n}", f"ContextParallel, ring {n}") for n in (2, 4, 8)),
    *(
        _option(f"ulysses{u}xring{r}", f"ContextParallel, Ulysses {u} x ring {r}")
        for u, r in ((2, 2), (4, 2), (2, 4))
    ),
    *(_option(f"tp{n}", f"Tensor parallel {n}") for n in (2, 4, 8)),
)
