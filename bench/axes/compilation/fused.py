"""Regional compilation of a FLUX that is first rearranged, losslessly but for rounding.

What compiling alone leaves on an H100 is in the profiles of the results: a modulation that reads a quarter of
the weights every step for one vector, GELU, quantising and concatenations between products, norms and rotary
embeddings before attention, the VAE's group norms, and gaps between launches. Each is taken away by one part
here; ``verify`` counts them.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

from bench.axes.attention.backends import attended, processors
from bench.axes.compilation import graphs, regional
from bench.axes.option import Evidence, NotApplied, Option, Session

REPLAYED = ("text_encoder", "text_encoder_2", "transformer")
"""Components whose launches are a large part of their time."""


def _rearrange(option: str, session: Session) -> None:
    from diffusers.models.resnet import ResnetBlock2D

    from bench.axes.compilation import products
    from bench.axes.compilation.modulation import Modulation
    from bench.axes.compilation.rotary import use_rotary_processors

    graphs.require_compiler(option, session)
    components = attended(session.pipe)
    vae_blocks = [module for module in session.pipe.vae.modules() if isinstance(module, ResnetBlock2D)]
    parts = {
        # In this order: a GELU that goes into no quantisation goes into a product.
        "split_single_blocks": products.split_single_blocks,
        "gelus_in_quantisation": products.gelus_into_quantisation,
        "gelus_in_products": products.gelus_into_products,
        "rotary_processors": use_rotary_processors,
    }
    session.notes[option] = {
        "parts": {
            part: {name: rearrange(module) for name, module in components.items()}
            for part, rearrange in parts.items()
        },
        "expected": {
            name: {
                "rotary_processors": len(processors(module)),
                "split_single_blocks": len(module.single_transformer_blocks),
            }
            for name, module in components.items()
        },
        "modulation": {name: Modulation(session.pipe, module) for name, module in components.items()},
        "vae_blocks": vae_blocks,
    }
    regional.compile_each([*chain.from_iterable(graphs.blocks(session.pipe).values()), *vae_blocks])


def _require_rearranged(option: str, session: Session) -> Evidence:
    notes = session.notes.get(option)
    if notes is None:
        raise NotApplied(f"compilation {option}: nothing was rearranged")
    compiled = regional.require_compiled(option, session)
    parts = notes["parts"]
    for name, expected in notes["expected"].items():
        found = {part: counts[name] for part, counts in parts.items()}
        moved = found["gelus_in_quantisation"] + found["gelus_in_products"]
        if not moved or any(found[part] != count for part, count in expected.items()):
            raise NotApplied(f"compilation {option}: of the {name} are rearranged {found}, not {expected}")
    eager = [block for block in notes["vae_blocks"] if not graphs.block_compiled(block)]
    if eager or not notes["vae_blocks"]:
        blocks = len(notes["vae_blocks"])
        raise NotApplied(f"compilation {option}: {len(eager)} of {blocks} blocks of the VAE are not compiled")
    return {
        **compiled,
        "modulation": _require_modulation(option, session, notes["modulation"]),
        **parts,
        "vae_blocks": len(notes["vae_blocks"]),
    }


def _require_modulation(option: str, session: Session, tables: dict[str, Any]) -> Evidence:
    """Of a request of two steps: one product gave the modulation of both."""
    session.run(steps=2)
    for name, table in tables.items():
        if table.steps_at_once != 2:
            raise NotApplied(
                f"compilation {option}: of two steps the {name}'s modulation was computed for"
                f" {table.steps_at_once} at once"
            )
    return {name: {"norms": table.layers} for name, table in tables.items()}


def _rearrange_and_capture(option: str, session: Session) -> None:
    from bench.axes.compilation.replayed import Replayed, all_paused

    _rearrange(option, session)
    replayed = {name: Replayed(getattr(session.pipe, name)) for name in REPLAYED}
    session.notes[option]["replayed"] = replayed
    session.unreplayed = partial(all_paused, replayed.values())


def _require_captured(option: str, session: Session) -> Evidence:
    found = _require_rearranged(option, session)
    replayed: dict[str, Any] = session.notes[option]["replayed"]
    before = {name: each.replays for name, each in replayed.items()}
    session.run(steps=1)
    for name, each in replayed.items():
        if each.replays != before[name] + 1:
            replays = each.replays - before[name]
            raise NotApplied(f"compilation {option}: one step replayed {name} {replays} times, not once")
    return {**found, "replays": {name: each.replays for name, each in replayed.items()}}


INDUCTOR_FUSED = Option(
    "inductor-fused",
    "torch.compile + FLUX rearranged (ours)",
    verify=partial(_require_rearranged, "inductor-fused"),
    apply=partial(_rearrange, "inductor-fused"),
    exact=True,
)
INDUCTOR_GRAPHS = Option(
    "inductor-graphs",
    "torch.compile + FLUX rearranged, a CUDA graph a step (ours)",
    verify=partial(_require_captured, "inductor-graphs"),
    apply=partial(_rearrange_and_capture, "inductor-graphs"),
    needs_gpu=True,
    exact=True,
)
