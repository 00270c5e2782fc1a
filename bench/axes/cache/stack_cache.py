"""One cache for every method: a step runs the whole stack of blocks, or adds what the stack added last time.

What is kept is ``image tokens after the last block - image tokens where the methods part``: the embedder's
output, or for FirstBlockCache, whose first block runs anyway, that block's output. All ControlNet residuals
lie behind that point, so they are inside what is kept and never added twice. (diffusers' FirstBlockCache adds
them once more on skipped steps: images are off by a third.)

The ControlNet's own call is put off: the pipeline calls it before the transformer, gets a promise, and hands
that to the transformer, which redeems it only in a step that is computed. So both share one decision, made
from the transformer's own inputs.

Nothing here is compiled and nothing touches the inside of a block: with ``compilation inductor`` each block
stays one whole graph, and the decision is Python between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bench.axes.cache.decisions import Decide, Method
from bench.axes.cache.flux_stack import (
    Control,
    Streams,
    blocks_of,
    embed,
    head,
    modulated_input,
    run_block,
    run_stack,
)


@dataclass
class Tally:
    """What ran in one request, counted where it is called."""

    steps: int
    """Denoising steps that the pipeline's schedule executes."""
    stack: int
    """Blocks of the transformer."""
    blocks_run: list[int] = field(default_factory=list)
    """By step."""
    distances: list[float | None] = field(default_factory=list)
    """By step; each but None was read by the host, which waits for the device to get there."""
    controlnet_calls: int = 0

    @property
    def computed(self) -> list[bool]:
        return [blocks == self.stack for blocks in self.blocks_run]

    def counts(self) -> dict[str, int]:
        computed = sum(self.computed)
        return {
            "steps_computed": computed,
            "steps_skipped": len(self.blocks_run) - computed,
            "blocks_run": sum(self.blocks_run),
            "controlnet_calls": self.controlnet_calls,
        }


@dataclass(frozen=True)
class PromisedControl:
    """What the pipeline carries from the ControlNet to the transformer in place of residuals."""

    redeem: Callable[[], tuple[Any, Any]]

    def then(self, change: Callable[[Any, Any], tuple[Any, Any]]) -> PromisedControl:
        """What it is redeemed for is changed first."""
        return PromisedControl(lambda: change(*self.redeem()))


@dataclass
class Request:
    """The one that is running."""

    tally: Tally
    decide: Decide
    reference: Any = None
    """The probe that the next one is compared with."""
    kept: Any = None
    """What the stack added to the image tokens when it last ran."""


class StackCache:
    """Takes the place of ``pipe.transformer.forward`` and, where there is one, ``pipe.controlnet.forward``.

    A request begins where the pipeline's scheduler stands before its first step, so one that was cut off
    leaves nothing to the next, and ends with the schedule's last step, where every kept tensor is freed.
    """

    def __init__(self, pipe: Any, method: Method, *, shared: bool = False) -> None:
        """``shared``: all ranks of the process group compute the same request together."""
        self._pipe, self._method, self._shared = pipe, method, shared
        self._transformer = pipe.transformer
        self._request: Request | None = None
        self._finished: Tally | None = None
        pipe.transformer.forward = self.forward
        controlnet = getattr(pipe, "controlnet", None)
        if controlnet is not None:
            self._controlnet_forward = controlnet.forward
            controlnet.forward = self._promise

    def take(self) -> Tally | None:
        """The tally of the request that ended last, for the first who asks; then None until one has ended."""
        tally, self._finished = self._finished, None
        return tally

    def forward(
        self,
        hidden_states: Any,
        encoder_hidden_states: Any = None,
        pooled_projections: Any = None,
        timestep: Any = None,
        img_ids: Any = None,
        txt_ids: Any = None,
        guidance: Any = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        controlnet_block_samples: Any = None,
        controlnet_single_block_samples: Any = None,
        return_dict: bool = True,
        controlnet_blocks_repeat: bool = False,
    ) -> Any:
        """As ``FluxTransformer2DModel.forward``; the names are what context parallelism's hooks look for."""
        if joint_attention_kwargs or return_dict:
            raise ValueError("the cache serves no joint_attention_kwargs and returns tuples only")
        request = self._enter_step()
        embedded = embed(
            self._transformer,
            hidden_states,
            encoder_hidden_states,
            pooled_projections,
            timestep,
            guidance,
            txt_ids,
            img_ids,
        )
        control = Control(controlnet_block_samples, controlnet_single_block_samples, controlnet_blocks_repeat)
        end = self._through_stack(request, embedded, control)
        if len(request.tally.blocks_run) == request.tally.steps:
            self._request, self._finished = None, request.tally
        return (head(self._transformer, end),)

    def _enter_step(self) -> Request:
        """Where the schedule stands is the pipeline's to say: requests of several lengths share a process.
        Raises RuntimeError when a step calls the transformer again, as true classifier-free guidance does."""
        scheduler = self._pipe.scheduler
        if scheduler.step_index is None:
            steps = self._pipe.num_timesteps
            tally = Tally(steps, stack=len(blocks_of(self._transformer)))
            self._request, step = Request(tally, self._method.decider(steps)), 0
        else:
            step = scheduler.step_index - (scheduler.begin_index or 0)
        calls = len(self._request.tally.blocks_run) if self._request else None
        if self._request is None or step != calls:
            raise RuntimeError(f"cache: call {calls} of the transformer in step {step}; one a step is served")
        self._request.tally.blocks_run.append(0)
        return self._request

    def _through_stack(self, request: Request, embedded: Streams, control: Control) -> Streams:
        base, probe = self._probe(request.tally, embedded)
        known = request.reference
        distance = None if known is None else agree(*difference(probe, known), shared=self._shared)
        computes = request.decide(len(request.tally.distances), distance)
        request.tally.distances.append(distance)
        if computes or self._method.compared_with == "last step":
            request.reference = probe
        if not computes:
            return replace(base, image=base.image + request.kept)
        request.kept = None  # freed before the stack needs room for its own
        done = request.tally.blocks_run[-1]
        run = partial(_run_block, request.tally)
        end = run_stack(self._transformer, base, self._redeem(request.tally, control), done, run)
        request.kept = end.image - base.image
        return end

    def _probe(self, tally: Tally, embedded: Streams) -> tuple[Streams, Any]:
        """(where computed and skipped steps part, what tells how far this step is from another)"""
        if self._method.probe == "modulated input":
            return embedded, modulated_input(self._transformer, embedded)
        after = _run_block(tally, blocks_of(self._transformer)[0], embedded)
        return after, after.image - embedded.image

    def _promise(self, *args: Any, **kwargs: Any) -> tuple[PromisedControl, None]:
        """As ``FluxControlNetModel.forward(..., return_dict=False)``, which all three pipelines ask for."""
        return PromisedControl(partial(self._controlnet_forward, *args, **kwargs)), None

    @staticmethod
    def _redeem(tally: Tally, control: Control) -> Control:
        if not isinstance(control.double, PromisedControl):
            return control
        double, single = control.double.redeem()
        tally.controlnet_calls += 1
        return replace(control, double=double, single=single)


def _run_block(tally: Tally, block: Any, streams: Streams) -> Streams:
    after = run_block(block, streams)
    tally.blocks_run[-1] += 1
    return after


def difference(probe: Any, reference: Any) -> tuple[Any, Any]:
    """mean |probe - reference| and mean |reference| over the tokens of all images that are here, on the
    device and in the tensors' own dtype. Their ratio is what diffusers' FirstBlockCache and TeaCache compare.
    """
    return (probe - reference).abs().mean(), reference.abs().mean()


def agree(moved: Any, size: Any, *, shared: bool) -> float:
    """The distance ``moved / size`` on the host: the one synchronisation of a step.

    Ranks that share a request see other tokens, would decide otherwise and wait for each other for ever. All
    have as many, so the means of all are the mean over all tokens, and every rank reads the same number.
    """
    if shared:
        import torch
        import torch.distributed as dist

        both = torch.stack((moved, size)).float()
        dist.all_reduce(both)
        moved, size = both.to(moved.dtype)
    return float((moved / size).item())
