"""What a cached request runs, keeps and leaves behind, on the trained Tiny FLUX."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from cached_flux import MakeFlux, applied, calls, make_flux, relative_error

from bench.axes import AXES
from bench.axes.cache.decisions import Method, first_block_cache, replay, replay_schedule, teacache
from bench.axes.option import NotApplied, Session
from bench.flux import MODELS, executed_steps

__all__ = ["applied", "make_flux"]  # fixtures

STRENGTH = MODELS["tiny"].settings.strength


# --- What a skipped step does not run -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "always"), [(replay(50), 1), (teacache(0.4), 0)], ids=["replay", "teacache"]
)
def test_skipped_steps_run_neither_blocks_nor_controlnet(
    make_flux: MakeFlux, method: Method, always: int
) -> None:
    """Counted by hooks on the layers themselves; ``always``: blocks that decide and run in every step."""
    flux = make_flux(task="img2img", control="depth")
    first, *others = (
        flux.pipe.transformer.transformer_blocks,
        *flux.pipe.transformer.single_transformer_blocks,
    )
    (control_block,) = flux.pipe.controlnet.single_transformer_blocks
    with calls(*first, *others, control_block) as ran:
        _, tally = flux.with_cache(method, steps=8)
    computed = tally.counts()["steps_computed"]
    assert 2 <= computed < 8
    assert ran.count(first[0]) == computed + always * (8 - computed)
    assert all(ran.count(block) == computed for block in (*others, control_block))
    assert tally.counts() == {
        "steps_computed": computed,
        "steps_skipped": 8 - computed,
        "blocks_run": len(ran) - computed,
        "controlnet_calls": computed,
    }


def test_kept_tensors_are_freed_before_the_image_is_decoded(make_flux: MakeFlux) -> None:
    import torch

    flux = make_flux()
    width = flux.pipe.transformer.inner_dim

    def alive() -> int:
        gc.collect()
        tensors = (each for each in gc.get_objects() if torch.is_tensor(each))
        return sum(each.shape == (1, 64, width) for each in tensors)

    alive_at: dict[str, int] = {}
    steps: list[int] = []
    with flux.cached(first_block_cache(0.2)):
        flux.latents(
            3,
            on_stage=lambda stage: alive_at.setdefault(stage, alive()),
            on_step=lambda: steps.append(alive()),
        )
    assert steps[0] == steps[1] == alive_at["denoise"] + 2, "the residual and the probe"
    assert alive_at["decode"] == alive_at["denoise"]


# --- Requests do not touch each other ------------------------------------------------------------------


def test_requests_of_other_batches_and_cut_off_ones_leave_nothing_behind(make_flux: MakeFlux) -> None:
    import torch

    flux, method = make_flux(control="pose"), first_block_cache(0.2)
    alone = {images: flux.with_cache(method, steps=6, images=images, index=images)[0] for images in (1, 4)}

    def strike() -> None:
        raise TimeoutError

    with flux.cached(method) as cache:
        for images in (1, 4, 1):
            assert torch.equal(flux.latents(6, images=images, index=images), alone[images])
            assert cache.take() is not None
            assert cache.take() is None, "a tally is of one request"
            with pytest.raises(TimeoutError):
                flux.latents(6, index=7, on_step=strike)
        assert cache.take() is None


def test_a_batch_is_decided_as_one(make_flux: MakeFlux) -> None:
    flux = make_flux()
    cached, tally = flux.with_cache(first_block_cache(0.2), steps=12, images=4)
    assert len(tally.computed) == 12
    assert 0 < tally.computed.count(False) < 10
    for ours, uncached in zip(cached, flux.latents(12, images=4), strict=True):
        assert relative_error(ours, uncached) < 0.05


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_a_schedule_that_strength_shortened_is_followed_to_its_own_last_step(
    make_flux: MakeFlux, task: str
) -> None:
    flux = make_flux(task=task, steps=8)
    executed = executed_steps(task, 8, STRENGTH)
    assert executed == 6
    _, tally = flux.with_cache(replay(50), executed)
    assert tally.computed == list(replay_schedule(executed, 50))
    assert tally.computed[0]
    assert tally.computed[-1]


def test_two_calls_a_step_are_refused(make_flux: MakeFlux) -> None:
    """True classifier-free guidance; its two branches would need a memory each."""
    flux = make_flux()
    settings = MODELS["tiny"].settings
    with flux.cached(first_block_cache(0.2)), pytest.raises(RuntimeError, match="one a step"):
        flux.pipe(
            "a red circle",
            negative_prompt="a blue square",
            true_cfg_scale=2.0,
            guidance_scale=settings.guidance,
            max_sequence_length=settings.text_tokens,
            num_inference_steps=3,
            height=128,
            width=128,
            output_type="latent",
        )


# --- Compiled -----------------------------------------------------------------------------------------


def test_each_block_stays_one_graph_and_nothing_is_compiled_after_warm_up(make_flux: MakeFlux) -> None:
    """With dynamo's ``eager`` backend: the question is what dynamo traces, not what inductor makes of it."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    flux = make_flux(control="canny")
    uncached = flux.latents(6)
    blocks = [
        block
        for module in (flux.pipe.transformer, flux.pipe.controlnet)
        for block in (*module.transformer_blocks, *module.single_transformer_blocks)
    ]
    torch._dynamo.reset()
    counters.clear()
    try:
        with flux.cached(first_block_cache(0.2)) as cache:
            for block in blocks:
                block.compile(fullgraph=True, dynamic=False, backend="eager")
            flux.latents(6)
            graphs = counters["stats"]["unique_graphs"]
            cached = flux.latents(6)
            flux.latents(12, index=3)
            tally = cache.take()
        assert graphs > 0
        assert counters["stats"]["unique_graphs"] == graphs
        assert sum(counters["graph_break"].values()) == 0
        assert tally is not None
        assert tally.counts()["steps_skipped"] > 0
        assert relative_error(cached, uncached) < 0.05
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()


# --- Evidence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [name for name in AXES["cache"] if name != "none"])
def test_every_cache_shows_what_it_computed(applied: Callable[..., Session], cache: str) -> None:
    session = applied(cache=cache, steps=10)
    evidence = AXES["cache"][cache].verify(session)
    assert evidence["steps_computed"] + evidence["steps_skipped"] == 10
    assert len(evidence["computed"]) == evidence["steps_computed"]
    assert evidence["distances"][0] is None
    assert all(distance > 0 for distance in evidence["distances"][1:])
    session.run(steps=3)
    counts = session.after_request["cache"]()
    assert counts["steps_computed"] + counts["steps_skipped"] == 3
    assert counts["controlnet_calls"] == 0


def test_a_cache_that_was_never_asked_is_not_applied(applied: Callable[..., Session]) -> None:
    session = applied(cache="fbcache-0.12", steps=2)
    del session.pipe.transformer.forward
    with pytest.raises(NotApplied, match=r"fbcache-0\.12: asked in none of 2 calls of the transformer"):
        AXES["cache"]["fbcache-0.12"].verify(session)
    session.run(steps=2)
    with pytest.raises(NotApplied, match="a request ended in which the cache was not asked"):
        session.after_request["cache"]()


def test_a_replay_of_another_schedule_is_not_applied(applied: Callable[..., Session]) -> None:
    session = applied(cache="replay-65", steps=8)
    session.notes["replay-50"] = session.notes["replay-65"]
    with pytest.raises(NotApplied, match=r"computed steps \[0, .*7\], but stated are \[0, "):
        AXES["cache"]["replay-50"].verify(session)
