"""Regional compilation of a FLUX that is first rearranged, losslessly but for rounding.

What compiling alone leaves on an H100 is in the profiles of the results: a modulation that reads a quarter of
the weights every step for one vector, GELU, quantising and concatenations between products, norms and rotary
embeddings before attention, the VAE's group norms, and gaps between launches. Each is taken away by one part
here. ``verify`` counts them among the modules that are there when it is asked, and their operators in the
profile of a step.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

from bench.axes.compilation import graphs, regional, workers
from bench.axes.denoisers import denoisers
from bench.axes.option import Evidence, NotApplied, Option, Session
from bench.axes.profiles import profile_step

REPLAYED = ("text_encoder", "text_encoder_2", "transformer")
"""Components whose launches are a large part of their time."""
OPERATORS = {
    "rotary_processors": ("fluxbench_fused::rms_norm_rotary", 2),
    "gelus_in_products": ("fluxbench_fused::linear_gelu", 1),
    "gelus_in_quantisation": ("fluxbench_fused::gelu_to_fp8_rows", 1),
}
"""Part -> the operator that it computes with, and its calls in a step: queries and keys are rotated apart."""
STEPS = 2
"""Of the request that shows whether modulation is computed for all steps at once."""


def _rearrange(session: Session) -> None:
    from bench.axes.compilation import products
    from bench.axes.compilation.modulation import Modulation
    from bench.axes.compilation.rotary import use_rotary_processors

    for component in denoisers(session.pipe).values():
        products.split_single_blocks(component)
        # In this order: a GELU that goes into no quantisation goes into a product.
        products.gelus_into_quantisation(component)
        products.gelus_into_products(component)
        use_rotary_processors(component)
        Modulation(session.pipe, component)
    blocks = chain.from_iterable(graphs.blocks(session.pipe).values())
    regional.compile_each([*blocks, *_vae_blocks(session.pipe)])


def _vae_blocks(pipe: Any) -> list[Any]:
    from diffusers.models.resnet import ResnetBlock2D

    return [module for module in pipe.vae.modules() if isinstance(module, ResnetBlock2D)]


def _require_rearranged(option: str, session: Session) -> Evidence:
    compiled = regional.require_compiled(option, session)
    parts: dict[str, dict[str, int]] = {}
    for name, component in denoisers(session.pipe).items():
        for part, count in _require_parts(option, name, component).items():
            parts.setdefault(part, {})[name] = count
    blocks = _vae_blocks(session.pipe)
    eager = [block for block in blocks if not graphs.block_compiled(block)]
    if eager or not blocks:
        raise NotApplied(
            f"compilation {option}: {len(eager)} of {len(blocks)} blocks of the VAE are not compiled"
        )
    return {
        **compiled,
        **parts,
        "operators_in_one_step": _require_operators(option, session, parts),
        "modulation": _require_modulation(option, session),
        "vae_blocks": len(blocks),
    }


def _require_parts(option: str, name: str, component: Any) -> dict[str, int]:
    from bench.axes.compilation import products
    from bench.axes.compilation.rotary import rotaries

    parts = {
        "split_single_blocks": products.splits(component),
        "rotary_processors": rotaries(component),
        **products.gelus(component),
    }
    if any(found != wanted for found, wanted in parts.values()):
        told = ", ".join(f"{found} of {wanted} {part}" for part, (found, wanted) in parts.items())
        raise NotApplied(f"compilation {option}: the {name} has {told}")
    return {part: found for part, (found, _) in parts.items()}


def _require_operators(option: str, session: Session, parts: dict[str, dict[str, int]]) -> dict[str, int]:
    operations, _ = profile_step(session)
    wanted = {name: each * sum(parts[part].values()) for part, (name, each) in OPERATORS.items()}
    found = {name: operations.get(name, 0) for name in wanted}
    if found != wanted:
        raise NotApplied(f"compilation {option}: one step called {found}, not {wanted}")
    return found


def _require_modulation(option: str, session: Session) -> Evidence:
    """Of a request of several steps: each product was computed once, for all of them."""
    from bench.axes.compilation.modulation import products

    components = denoisers(session.pipe)
    with ExitStack() as stack:
        calls = {name: stack.enter_context(products(module)) for name, module in components.items()}
        session.run(steps=STEPS)
    for name, by_norm in calls.items():
        if wrong := {norm: count for norm, count in by_norm.items() if count != 1}:
            raise NotApplied(
                f"compilation {option}: in {STEPS} steps the {name}'s modulation was computed once for"
                f" {len(by_norm) - len(wrong)} of {len(by_norm)} norms; {next(iter(wrong.items()))}"
            )
    return {
        name: {"norms": len(by_norm), "products_in_two_steps": sum(by_norm.values())}
        for name, by_norm in calls.items()
    }


def _rearrange_and_capture(option: str, session: Session) -> None:
    from bench.axes.compilation.replayed import Replayed, all_paused

    _rearrange(session)
    replayed = {name: Replayed(getattr(session.pipe, name)) for name in REPLAYED}
    session.notes[option] = replayed
    session.unreplayed = partial(all_paused, replayed.values())


def _require_captured(option: str, session: Session) -> Evidence:
    found = _require_rearranged(option, session)
    replayed: dict[str, Any] = session.notes[option]
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
    require=partial(workers.require_compiler, "inductor-fused"),
    apply=_rearrange,
    exact=True,
)
INDUCTOR_GRAPHS = Option(
    "inductor-graphs",
    "torch.compile + FLUX rearranged, a CUDA graph a step (ours)",
    verify=partial(_require_captured, "inductor-graphs"),
    require=partial(workers.require_compiler, "inductor-graphs"),
    apply=partial(_rearrange_and_capture, "inductor-graphs"),
    needs_gpu=True,
    exact=True,
)
