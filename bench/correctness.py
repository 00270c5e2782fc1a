"""Is an option's image the right one? What it paints against what the plain stack paints, on the tiny model.

Compared are the final latents of one request of the tiny model's usual steps; of axis vae what they are
decoded to. The error is the Frobenius norm of the difference over that of the plain output. An option that
leaves no evidence has no error: that of one which never ran would be 0. Where an option takes float32 it is
compared in float32, and one that is exact must then agree to float32's rounding, whatever tolerance its
declaration leaves for half precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from pydantic import Field

from bench import tiny, tryout
from bench.axes import AXES
from bench.axes.option import Option
from bench.axes.parallel import ranks_of
from bench.covering import Stack
from bench.matrix import PLAIN, Row
from bench.record import Strict
from bench.rules import refusal
from bench.runner.outputs import relative_error

ROUNDING = 1e-4
"""Of float32 over a whole request: thousands of sums in another order."""
EQUAL = 1e-5
"""Between one process and several ranks, in float32: only sums over ranks have another order."""

PRECISIONS = ("fp32", "bf16")

Case = tuple[str, str, Row]
"""(axis, option, row)"""


class Compared(Strict):
    """One option on one use case."""

    axis: str
    option: str
    task: str
    control: str
    precision: str
    beside: dict[str, str] = Field(default_factory=dict)
    """What else of its stack is not plain: axis -> option."""
    ranks: int = 1
    ended: tryout.Ended
    reason: str = ""
    error: float | None = None
    tolerance: float
    held: bool | None = None
    """None where there is no error to judge."""


def rows(hardware: str, task: str, control: str) -> Iterator[tuple[str, str, Row]]:
    """(axis, option, plain stack with that option alone), in the first precision that no rule refuses."""
    for axis, options in AXES.items():
        for option in options:
            if needs_ranks(axis, option) or (axis != "precision" and option == PLAIN[axis]):
                continue
            asked = (option,) if axis == "precision" else PRECISIONS
            yield axis, option, row_of(hardware, {**PLAIN, axis: option}, task, control, asked)


def row_of(
    hardware: str, stack: Stack, task: str, control: str, precisions: Sequence[str] = PRECISIONS
) -> Row:
    """In the first of the precisions in which no rule refuses it; else in the last."""
    stacks = ({**stack, "precision": precision} for precision in precisions)
    tried = [tryout.tiny_row(hardware, each, task, control, tiny.STEPS) for each in stacks]
    return next((row for row in tried if not refusal(row)), tried[-1])


def compare(case: Case) -> Compared:
    axis, _, row = case
    errors: list[float] = []
    ended: tryout.Ended
    if refused := refusal(row):
        ended, reason = "refused", str(refused)
    else:
        ended, reason = tryout.attempt(lambda: errors.append(_error(axis, row)))
    return compared(case, ended, reason, errors[0] if errors else None)


def compared(case: Case, ended: tryout.Ended, reason: str = "", error: float | None = None) -> Compared:
    """The verdict; ``error``: None where there is nothing to judge."""
    axis, option, row = case
    tolerance = tolerance_of(AXES[axis][option], axis, row.precision)
    return Compared(
        axis=axis,
        option=option,
        task=row.task,
        control=row.control,
        precision=row.precision,
        beside=beside(axis, row),
        ranks=ranks_of(row),
        ended=ended,
        reason=reason,
        error=error,
        tolerance=tolerance,
        held=None if error is None else error <= tolerance,
    )


def beside(axis: str, row: Row) -> dict[str, str]:
    return {
        other: option
        for other, option in row.stack.items()
        if other != axis and option != PLAIN.get(other, row.precision)
    }


def tolerance_of(option: Option, axis: str, precision: str) -> float:
    exact = option.exact and precision == "fp32" and axis != "precision"
    rounding = EQUAL if needs_ranks(axis, option.id) else ROUNDING
    return rounding if exact else option.latent_tolerance


def needs_ranks(axis: str, option: str) -> bool:
    """Whether one process cannot try it: ``bench.equality`` does."""
    return (axis == "parallel" and option != PLAIN[axis]) or (axis, option) == ("vae", "parallel")


def _error(axis: str, row: Row) -> float:
    plain = {**PLAIN, "precision": "fp32" if axis == "precision" else row.precision}
    what = OF_VAE if axis == "vae" else {}
    found = painted(row, verified=True, **what)
    return relative_error(found, _painted_plainly(row.model_copy(update=plain), **what))


@cache
def _painted_plainly(row: Row, **what: Any) -> Any:
    return painted(row, **what)


OF_VAE: dict[str, Any] = {"images": 2, "decoded": True}
"""What a VAE option changes; slices need a batch."""


def painted(row: Row, *, images: int = 1, decoded: bool = False, verified: bool = False) -> Any:
    """Of the row's first request: latents (images, channels, height, width), or what the VAE makes of them,
    before it is rounded to bytes: one in a thousand pixels lies near enough to the border. float32, on the
    host. ``verified``: raises NotApplied where an option of the row left no evidence in that process."""
    import torch

    session = tryout.session_of(row)
    tryout.apply(session)
    found = session.run(images=images, latents=True).latents
    if decoded:
        vae = session.pipe.vae
        with torch.no_grad():
            found = vae.decode(found.to(session.device, vae.dtype), return_dict=False)[0].float().cpu()
    if verified:
        tryout.verify(session)
    return found
