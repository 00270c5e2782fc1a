"""Caches on the trained Tiny FLUX: what a threshold skips there is decided by a model, not by noise."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest

from bench.axes import AXES
from bench.axes.cache.decisions import Method, first_block_cache, replay, replay_schedule, teacache
from bench.axes.cache.stack_cache import StackCache, Tally
from bench.axes.option import NotApplied, Session
from bench.matrix import CONTROLS, TASKS, Row
from bench.runner import models, tasks

STRENGTH = tasks.SETTINGS["tiny"].strength

MakeRow = Callable[..., Row]


class Flux:
    """One use case of the shipped model. All of them share one set of weights."""

    def __init__(self, row: Row, components: dict[str, Any]) -> None:
        self.row = row
        self.pipe = models.assemble(row, components)
        self.pipe.set_progress_bar_config(disable=True)
        self.manifest = tasks.manifest(row, "tiny")

    def latents(self, steps: int, images: int = 1, index: int = 0, **options: Any) -> Any:
        """(images, 16, 16, 16), of a request in which this many steps are executed."""
        request = self.manifest.request(index, images)
        return tasks.generate(self.pipe, self.row, request, steps=steps, latents=True, **options).latents

    @contextmanager
    def cached(self, method: Method) -> Iterator[StackCache]:
        modules = [self.pipe.transformer, getattr(self.pipe, "controlnet", None)]
        try:
            yield StackCache(self.pipe, method)
        finally:
            for module in filter(None, modules):
                module.__dict__.pop("forward", None)

    def with_cache(self, method: Method, steps: int, **request: Any) -> tuple[Any, Tally]:
        with self.cached(method) as cache:
            latents = self.latents(steps, **request)
            tally = cache.take()
        assert tally is not None
        return latents, tally

    def session(self) -> Session:
        def run(steps: int = 1) -> Any:
            return self.latents(steps)

        return Session(self.row, self.pipe, "cpu", self.pipe.transformer.dtype, run)


MakeFlux = Callable[..., Flux]


@pytest.fixture(scope="module")
def make_flux(make_row: MakeRow) -> MakeFlux:
    components = models.load(make_row(control="canny"), "tiny", "cpu").pipe.components

    def make(**changes: Any) -> Flux:
        return Flux(make_row(**changes), components)

    return make


@pytest.fixture
def applied(make_flux: MakeFlux) -> Iterator[Callable[..., Session]]:
    """Sessions with their row's cache applied, as the server does it."""
    used: list[Any] = []

    def make(**changes: Any) -> Session:
        session = make_flux(**changes).session()
        used.extend((session.pipe.transformer, getattr(session.pipe, "controlnet", None)))
        AXES["cache"][session.row.cache].apply(session)
        return session

    yield make
    for module in filter(None, used):
        module.__dict__.pop("forward", None)


@contextmanager
def calls(*modules: Any) -> Iterator[list[Any]]:
    """The modules that ran, in order."""
    ran: list[Any] = []
    handles = [module.register_forward_hook(lambda module, *_: ran.append(module)) for module in modules]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def relative_error(latents: Any, reference: Any) -> float:
    return float((latents - reference).norm() / reference.norm())


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
    executed = tasks.executed_steps(task, 8, STRENGTH)
    assert executed == 6
    _, tally = flux.with_cache(replay(50), executed)
    assert tally.computed == list(replay_schedule(executed, 50))
    assert tally.computed[0]
    assert tally.computed[-1]


def test_two_calls_a_step_are_refused(make_flux: MakeFlux) -> None:
    """True classifier-free guidance; its two branches would need a memory each."""
    flux = make_flux()
    settings = tasks.SETTINGS["tiny"]
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
