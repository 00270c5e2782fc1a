"""Stacks on the tiny model, one after the other in this process: load, apply, run, verify, say how it ended.

    refused       a rule says no; nothing was loaded
    constructed   every option applied and left its evidence
    unavailable   this machine lacks what an option needs
    not_applied   an option left no evidence
    error         anything else
    timeout       ranks that waited for one another (``bench.equality``)

A row has a fresh process to itself; stacks that share one must find it as a fresh one is, so what options
change in torch is put back in between.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal
from unittest import mock

from pydantic import field_validator

from bench import tiny
from bench.axes import AXES, require
from bench.axes.option import NotApplied, Session, Unavailable
from bench.covering import Stack
from bench.matrix import PLAIN, Row
from bench.record import Strict
from bench.rules import refusal

STEPS = 8
"""Enough for a cache to skip one."""

Ended = Literal["refused", "constructed", "unavailable", "not_applied", "error", "timeout"]
RAISED: dict[str, Ended] = {Unavailable.__name__: "unavailable", NotApplied.__name__: "not_applied"}
"""What was raised -> how the work ended; whatever else it was, in an error."""


class Tried(Strict):
    """One stack and how it ended."""

    stack: dict[str, str]
    ended: Ended
    reason: str = ""
    """A rule's name and reason, or what was raised."""
    graphs: Literal["compiled", "captured"] | None = None
    """Of a compiled stack that was constructed: by inductor, or only captured (see ``captured_only``)."""
    seconds: float = 0.0

    @field_validator("stack")
    @classmethod
    def _of_our_axes(cls, stack: dict[str, str]) -> dict[str, str]:
        if stack.keys() != AXES.keys():
            raise ValueError(f"one option of each of {', '.join(AXES)} makes a stack")
        return stack


def tiny_row(
    hardware: str, stack: Stack, task: str = "txt2img", control: str = "none", steps: int = STEPS
) -> Row:
    """Not a row of matrix.csv."""
    values = {"hardware": hardware, "task": task, "control": control, "steps": steps, **stack}
    return Row.model_validate({"row": "1", "tier": "core", "model": "tiny", "size": tiny.SIZE, **values})


def session_of(row: Row) -> Session:
    """The row's pipeline on its device, nothing applied yet."""
    from bench.runner import models, tasks

    device = "cpu" if row.gpu is None else "cuda"
    pipe = models.load(row, "tiny", device).pipe
    manifest = tasks.manifest(row)

    def run(steps: int | None = None, images: int = 1, **options: Any) -> Any:
        return tasks.generate(pipe, row, manifest.request(0, images), steps=steps, **options)

    return Session(row, pipe, device, pipe.transformer.dtype, run)


def apply(session: Session) -> None:
    require(session.row, session.device)
    for axis, option in session.row.stack.items():
        AXES[axis][option].apply(session)


def verify(session: Session) -> None:
    """Raises NotApplied for the first option that left no evidence."""
    for axis, option in session.row.stack.items():
        AXES[axis][option].verify(session)


def construct(row: Row, *, capture: bool) -> Tried:
    """``capture``: see ``captured_only``."""
    if refused := refusal(row):
        return Tried(stack=row.stack, ended="refused", reason=str(refused))
    begun = time.perf_counter()
    ended, reason = attempt(lambda: _construct(row), capture=capture)
    compiled = row.compilation != PLAIN["compilation"] and ended == "constructed"
    return Tried(
        stack=row.stack,
        ended=ended,
        reason=reason,
        graphs=("captured" if capture else "compiled") if compiled else None,
        seconds=round(time.perf_counter() - begun, 2),
    )


def _construct(row: Row) -> None:
    session = session_of(row)
    apply(session)
    for _ in range(2):
        session.run(steps=1)
    verify(session)


def attempt(work: Callable[[], object], *, capture: bool = False) -> tuple[Ended, str]:
    """How the work ended, and what it raised."""
    try:
        with as_in_a_fresh_process(), captured_only() if capture else nullcontext():
            work()
    except Exception as error:
        return RAISED.get(type(error).__name__, "error"), told(error)
    return "constructed", ""


def told(error: BaseException) -> str:
    """In one line, the kind first."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


@contextmanager
def as_in_a_fresh_process() -> Iterator[None]:
    """Dynamo's graphs and counters, inductor's settings (TorchAO changes them) and the GPU's memory."""
    import torch._dynamo
    import torch._inductor.config

    settings = torch._inductor.config.save_config()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        yield
    finally:
        torch._inductor.config.load_config(settings)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def captured_only() -> Iterator[None]:
    """Graphs are captured, guarded and counted as ever, then run as they are. Whether a stack can be one full
    graph shows without inductor's kernels, which take tens of seconds a stack."""
    import torch._inductor.compile_fx  # noqa: F401

    target = "torch._inductor.compile_fx.compile_fx"
    with mock.patch(target, lambda graph, _inputs, **_: graph.forward):
        yield
