"""adaLN's modulation of all steps, computed once a request.

Every block scales and shifts by a linear of (timestep, guidance, pooled text): 27 % of FLUX.1-dev's
parameters, read anew in each step to multiply one vector. All steps' inputs are known before the first, so
here one product over all of them takes the place of one a step, and a step copies its row of the table.

Imports torch: only ``fused`` imports this module, and only when it is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
)

from bench.axes.cache.flux_stack import conditioning

ADAPTIVE_NORMS = (AdaLayerNormZero, AdaLayerNormZeroSingle, AdaLayerNormContinuous)


class CurrentRow(torch.nn.Module):
    """Stands where an adaptive norm had its linear, and answers with what that says of the current step."""

    row: torch.Tensor
    """(batch, out_features)"""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("row", None, persistent=False)

    def forward(self, _conditioning: torch.Tensor) -> torch.Tensor:
        return self.row


@contextmanager
def products(component: Any) -> Iterator[dict[str, int]]:
    """Adaptive norm of a component -> products, meanwhile, by the linear that it scales and shifts by."""
    linears = {
        name: norm.linear.linear if isinstance(norm.linear, CurrentRow) else norm.linear
        for name, norm in component.named_modules()
        if isinstance(norm, ADAPTIVE_NORMS)
    }
    calls = dict.fromkeys(linears, 0)

    def count(name: str) -> Any:
        return lambda *_: calls.update({name: calls[name] + 1})

    handles = [linear.register_forward_hook(count(name)) for name, linear in linears.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Modulation:
    """Of one component, transformer or ControlNet; the pipeline's scheduler says which step it is."""

    def __init__(self, pipe: Any, component: Any) -> None:
        self._pipe, self._component = pipe, component
        self._norms: list[Any] = [
            module for module in component.modules() if isinstance(module, ADAPTIVE_NORMS)
        ]
        for norm in self._norms:
            norm.linear = CurrentRow(norm.linear)
        self._table = torch.empty(0)
        """(steps, batch, features of all norms)"""
        self._current: dict[int, torch.Tensor] = {}
        """batch -> the step's row of the table. One place for each batch, for as long as the process lives:
        a captured graph reads it there."""
        component.register_forward_pre_hook(self._enter_step, with_kwargs=True)

    def _enter_step(self, _component: Any, _args: Any, inputs: dict[str, Any]) -> None:
        scheduler = self._pipe.scheduler
        first = scheduler.begin_index or 0
        step = 0 if scheduler.step_index is None else scheduler.step_index - first
        if step == 0:
            timesteps = scheduler.timesteps[first : first + self._pipe.num_timesteps]
            self._table = self._computed(timesteps, inputs)
        self._place(batch=self._table.shape[1]).copy_(self._table[step])

    def _computed(self, timesteps: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Timesteps are rounded and scaled as the pipelines do it, which hand over one a call."""
        latents, pooled = inputs["hidden_states"], inputs["pooled_projections"]
        guidance = inputs.get("guidance")
        batch, steps = latents.shape[0], len(timesteps)
        conditioned = conditioning(
            self._component,
            timesteps.to(latents.device, latents.dtype).repeat_interleave(batch) / 1000,
            None if guidance is None else guidance.repeat(steps),
            pooled.repeat(steps, 1),
            latents.dtype,
        )
        rows = [norm.linear.linear(norm.silu(conditioned).to(latents.dtype)) for norm in self._norms]
        return torch.cat(rows, dim=1).unflatten(0, (steps, batch))

    def _place(self, batch: int) -> torch.Tensor:
        if batch not in self._current:
            self._current[batch] = torch.empty_like(self._table[0])
        place = self._current[batch]
        if self._norms[0].linear.row is None or self._norms[0].linear.row.shape[0] != batch:
            widths = [norm.linear.linear.out_features for norm in self._norms]
            for norm, row in zip(self._norms, place.split(widths, dim=1), strict=True):
                norm.linear.row = row
        return place
