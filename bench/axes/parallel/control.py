"""ControlNet beside a transformer whose tokens are shared out.

diffusers' context parallelism shares out the transformer's own inputs and forgets what a ControlNet adds to
its image tokens: whole residuals meet a part of the tokens. Here each rank keeps its own part of every
residual. The ControlNet itself runs whole on every rank.
"""

from __future__ import annotations

from typing import Any


def shard_residuals(controlnet: Any, mesh: Any) -> None:
    """``mesh``: over all ranks, in the order in which they share out the tokens."""
    from diffusers.hooks.context_parallel import EquipartitionSharder

    from bench.axes.cache.stack_cache import PromisedControl

    def mine(residuals: Any) -> Any:
        """Of tensors (batch, image tokens, width); None stays None."""
        if residuals is None:
            return None
        return [EquipartitionSharder.shard(residual, 1, mesh).contiguous() for residual in residuals]

    def after_call(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(promise := output[0], PromisedControl):
            return promise.then(lambda double, single: (mine(double), mine(single))), None
        return tuple(map(mine, output))

    controlnet.register_forward_hook(after_call)
