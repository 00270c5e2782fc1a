"""What caches compute, on the trained Tiny FLUX: what a threshold skips there is decided by a model, not by
noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from cached_flux import Flux, MakeFlux, calls, make_flux, relative_error

from bench.axes.cache.decisions import Method, first_block_cache, replay, teacache
from bench.matrix import CONTROLS, TASKS

__all__ = ["make_flux"]  # a fixture


# --- Right on all twelve use cases --------------------------------------------------------------------


@pytest.mark.parametrize(("task", "control"), list(product(TASKS, CONTROLS)))
def test_threshold_0_gives_the_latents_of_no_cache_bit_for_bit(
    make_flux: MakeFlux, task: str, control: str
) -> None:
    import torch

    flux = make_flux(task=task, control=control)
    uncached = flux.latents(steps=3)
    for method in (first_block_cache(0), teacache(0)):
        cached, tally = flux.with_cache(method, steps=3)
        assert torch.equal(cached, uncached)
        assert tally.computed == [True] * 3
        assert tally.controlnet_calls == (0 if control == "none" else 3)


@pytest.mark.parametrize("threshold", [0.08, 0.12, 0.2])
def test_txt2img_decides_as_diffusers_and_gives_its_latents_bit_for_bit(
    make_flux: MakeFlux, threshold: float
) -> None:
    import torch
    from diffusers.hooks import FirstBlockCacheConfig

    flux = make_flux()
    transformer = flux.pipe.transformer
    last_block = transformer.single_transformer_blocks[-1].attn  # hooked outside of diffusers' own hooks
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        with calls(last_block, transformer.proj_out) as ran:
            theirs = flux.latents(steps=20)
    finally:
        transformer.disable_cache()
    ours, tally = flux.with_cache(first_block_cache(threshold), steps=20)
    ends = [index for index, module in enumerate(ran) if module is transformer.proj_out]
    assert tally.computed == [index > 0 and ran[index - 1] is last_block for index in ends]
    assert not all(tally.computed)
    assert torch.equal(ours, theirs)


def predict_twice(flux: Flux) -> tuple[Any, Any]:
    """The prediction of the first step, and that of a second step whose every input is the same."""
    inputs: dict[str, dict[str, Any]] = {}

    def keep_first(module: Any, _positional: Any, named: dict[str, Any]) -> None:
        inputs.setdefault(type(module).__name__, dict(named))

    modules = flux.pipe.controlnet, flux.pipe.transformer
    handles = [module.register_forward_pre_hook(keep_first, with_kwargs=True) for module in modules]
    with flux.pipe.transformer.cache_context("only diffusers' own cache asks for it"):
        flux.latents(steps=3)
    for handle in handles:
        handle.remove()
    predictions = []
    scheduler = flux.pipe.scheduler
    for step in (None, (scheduler.begin_index or 0) + 1):
        scheduler._step_index = step
        double, single = flux.pipe.controlnet(**inputs["FluxControlNetModel"])
        control = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
        with flux.pipe.transformer.cache_context("the same for both steps"):
            arguments = inputs["FluxTransformer2DModel"] | control
            predictions.append(flux.pipe.transformer(**arguments)[0])
    return predictions[0], predictions[1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "method", [first_block_cache(1.0), teacache(10.0), replay(65)], ids=["fb", "tea", "replay"]
)
def test_a_skipped_step_holds_the_controlnet_once(make_flux: MakeFlux, task: str, method: Method) -> None:
    """With unchanged inputs a skipped step has no approximation in it: whatever differs is a mistake."""
    import torch

    flux = make_flux(task=task, control="canny")
    with torch.no_grad(), flux.cached(method):
        computed, skipped = predict_twice(flux)
    assert relative_error(skipped, computed) < 1e-5


def test_diffusers_own_cache_adds_the_controlnet_again(make_flux: MakeFlux) -> None:
    """Why ours exists; when this fails, diffusers has mended it."""
    import torch
    from diffusers.hooks import FirstBlockCacheConfig

    flux = make_flux(control="canny")
    transformer = flux.pipe.transformer
    transformer.enable_cache(FirstBlockCacheConfig(threshold=1.0))
    try:
        with torch.no_grad():
            computed, skipped = predict_twice(flux)
    finally:
        transformer.disable_cache()
    assert relative_error(skipped, computed) > 0.01


def test_a_controlnet_row_with_skips_stays_close_to_the_uncached_one(make_flux: MakeFlux) -> None:
    flux = make_flux(control="canny")
    cached, tally = flux.with_cache(first_block_cache(0.12), steps=20)
    assert tally.computed.count(False) >= 4
    assert relative_error(cached, flux.latents(steps=20)) < 0.01


# --- Thresholds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [first_block_cache, teacache])
def test_a_higher_threshold_skips_more_and_costs_quality(
    make_flux: MakeFlux, of: Callable[[float], Method]
) -> None:
    flux = make_flux()
    uncached = flux.latents(20)
    thresholds = (0.08, 0.12, 0.2) if of is first_block_cache else (0.25, 0.4, 0.6)
    runs = [flux.with_cache(of(threshold), 20) for threshold in thresholds]
    skipped = [tally.computed.count(False) for _, tally in runs]
    errors = [relative_error(latents, uncached) for latents, _ in runs]
    assert 0 < skipped[0] < skipped[1] < skipped[2]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.05
