"""A module's forward as one CUDA graph: the thousand launches of a denoising step become one.

Imports torch: only ``fused`` imports this module, and only when it is applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

EAGER_CALLS = 2
"""Before a shape is captured: the first compiles, the second finds everything allocated and chosen."""


@dataclass
class Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Any]
    """Flat; the graph reads its tensors where they lie."""
    output: Any
    """Overwritten by the next replay. Whoever called reads it before that, on the same stream: the scheduler
    takes its step, pipelines repeat prompts."""


class Replayed:
    """Takes the place of a module's ``forward``. Each signature (shapes, dtypes and what is no tensor) is
    called as it is for ``EAGER_CALLS``, then captured, then replayed."""

    def __init__(self, module: Any) -> None:
        self._forward = module.forward
        self._calls: Counter[Any] = Counter()
        self._captured: dict[Any, Captured] = {}
        self._paused = False
        self.replays = 0
        module.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        signature = (structure, tuple(map(_described, leaves)))
        self._calls[signature] += 1
        if self._paused or self._calls[signature] <= EAGER_CALLS:
            return self._forward(*args, **kwargs)
        if signature not in self._captured:
            self._captured[signature] = self._capture(leaves, structure)
        captured = self._captured[signature]
        for place, leaf in zip(captured.inputs, leaves, strict=True):
            if isinstance(leaf, torch.Tensor):
                place.copy_(leaf)
        captured.graph.replay()
        self.replays += 1
        return captured.output

    def _capture(self, leaves: list[Any], structure: Any) -> Captured:
        inputs = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(inputs, structure)
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog, a thread of its own, asks for events while this one captures.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self._forward(*args, **kwargs)
        return Captured(graph, inputs, output)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls go to the function that is captured: a replay calls no operator that a profile could name."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


@contextmanager
def all_paused(replayed: Iterable[Replayed]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in replayed:
            stack.enter_context(each.paused())
        yield


def _described(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return (leaf.shape, leaf.dtype, leaf.device, leaf.stride())
    return leaf
