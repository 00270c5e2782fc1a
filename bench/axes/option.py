"""What an option is: a declaration that the host reads, and three functions that only the runner calls.

This module and every declaration import without torch. The three functions import it inside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.matrix import Row

Evidence = dict[str, Any]
"""JSON-ready facts that prove an option ran; goes into ``effective`` of the result."""


Counts = dict[str, int]
"""What an option counted while one request ran; every figure can be summed over requests."""


class NotApplied(Exception):
    """The option was asked for, the row ran, and nothing shows that the option took part."""


class Unavailable(Exception):
    """This machine lacks what the option needs. The message names it and the command that provides it."""


@dataclass
class Session:
    """What an option may touch: the pipeline of one row on one device."""

    row: Row
    pipe: Any
    """A diffusers pipeline, one of the six, already on ``device``."""
    device: str
    """``cuda`` or ``cpu``."""
    dtype: Any
    """torch.dtype of the transformer."""
    run: Callable[..., Any]
    """``run(steps=1)``: one request of the row's shape; used by ``verify`` for a short profile."""
    unreplayed: Callable[[], AbstractContextManager[None]] = nullcontext
    """While it is entered, requests call every operator by name, as a profile needs it. An option that
    replays what it captured puts its own here."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What ``apply`` leaves for ``verify``, by option id."""
    after_request: dict[str, Callable[[], Counts]] = field(default_factory=dict)
    """axis -> what its option counted in the request that has just ended; ``apply`` puts it here. The server
    calls each once after every measured or warm-up request, writes the answers into the request's line and
    sums them over a cell. It may raise NotApplied, which ends the row: evidence of every request, where
    ``verify`` saw one."""


def nothing(session: Session) -> None:
    """``apply`` of an option that is the absence of one."""


def runs_anywhere(row: Row, device: str) -> None:
    """``require`` of an option that every machine has."""


def tolerance_for(largest_error: float) -> float:
    """``latent_tolerance`` of an option whose largest error so far, over use cases on CPUs and GPUs, is this
    (results/correctness; `fluxbench correctness`): half as much again, for machines that have not tried it,
    but less than the 1 that nothing at all is away from everything."""
    return min(1.5 * largest_error, 0.95)


@dataclass(frozen=True)
class Option:
    id: str
    """What stands in matrix.csv. Permanent."""
    title: str
    """The plan's name for it, as tables print it."""
    verify: Callable[[Session], Evidence]
    """Called after warm-up. Returns evidence, or raises NotApplied."""
    apply: Callable[[Session], None] = nothing
    require: Callable[[Row, str], None] = runs_anywhere
    """(row, device) -> raises Unavailable where this machine lacks what ``apply`` takes for granted. Asked of
    every option of the row, in every process that serves it, before weights are loaded."""
    images: frozenset[str] = frozenset({"cpu", "torch", "gguf", "sage", "xdit", "tensorrt"})
    """Container images that hold it."""
    callers_file: str | None = None
    """Environment variable in which the caller names a file of their own that this option runs."""
    needs_gpu: bool = False
    needs_sm: int = 0
    """Lowest compute capability that runs it: 80 is A100, 89 Ada, 90 H100 and H200."""
    gpu_precisions: frozenset[str] = frozenset({"fp32", "tf32", "fp16", "bf16"})
    """Precisions (options of that axis) that its GPU kernels take; a rule refuses the others on a GPU."""
    exact: bool = False
    """Another way to compute just what the plain option of its axis computes: the images of the reference
    with this option alone make the noise floor."""
    latent_tolerance: float = 0.02
    """Largest relative error (Frobenius) that its final latents (of axis vae: pictures) may have against the
    plain stack of the same precision on the tiny model, for any use case; the default leaves room for bf16's
    rounding."""
