"""Where the time of one request went: text, denoise, decode, and the mean denoising step.

On a GPU the marks are CUDA events: they cost microseconds and do not make the host wait. The request's own
time is ``perf_counter`` around a full synchronise (``load.py`` around ``Worker.serve``), because only that
includes what the host does. Ranks that share a request begin it together, and the last of them ends it.
"""

from __future__ import annotations

import time
from typing import Any

STAGES = ("text", "denoise", "decode")


def synchronise(device: str) -> None:
    """Wait until the device has done everything it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


class StageClock:
    """Collects marks while one request runs; ``seconds()`` after the device was synchronised."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stages: list[tuple[str, Any]] = []
        self._steps: list[Any] = []

    def stage(self, name: str) -> None:
        """A stage begins, and the one before it ends. ``end`` ends the last one."""
        self._stages.append((name, self._mark()))

    def step(self) -> None:
        """A denoising step ended."""
        self._steps.append(self._mark())

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage; ``step`` is the mean over all steps but the first, whose start no mark
        shows, and is absent when fewer than two ran."""
        taken: dict[str, float] = {}
        for (name, begin), (_, end) in zip(self._stages, self._stages[1:], strict=False):
            taken[name] = taken.get(name, 0.0) + self._between(begin, end)
        if len(self._steps) > 1:
            taken["step"] = self._between(self._steps[0], self._steps[-1]) / (len(self._steps) - 1)
        return taken

    def _mark(self) -> Any:
        if self._device != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _between(begin: Any, end: Any) -> float:
        if isinstance(begin, float):
            return float(end - begin)
        return float(begin.elapsed_time(end)) / 1000
