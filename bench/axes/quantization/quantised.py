"""What every quantising option shares: which linears it is given, what it leaves behind, and its evidence.

A backend is one function ``convert(work)``: it replaces ``work.names`` in ``work.module`` in place, in the
seconds that the quantise phase has, and returns facts for the evidence. It sees only linears that it can
take; what ``misfit`` says about the others is counted and reported, never skipped in silence.
"""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.axes.option import Evidence, NotApplied, Option, Session, Unavailable
from bench.axes.quantization import census, layers

if TYPE_CHECKING:
    from bench.matrix import Row


@dataclass(frozen=True)
class Target:
    """The part of a pipeline that an axis quantises."""

    axis: str
    component: str
    """Attribute of the pipeline."""
    chosen: Callable[[str], bool]
    """Whether the linear of this name is to be quantised."""


TRANSFORMER = Target("quantization", "transformer", layers.in_flux_block)
T5 = Target("text_encoder", "text_encoder_2", layers.in_t5_block)


@dataclass(frozen=True)
class Package:
    """What a backend imports, and what provides it."""

    module: str
    requirement: str
    """As pip takes it; the version that was tested."""


@dataclass(frozen=True)
class Work:
    session: Session
    label: str
    """``row 42 (...): quantization bnb-nf4``, the beginning of every message."""
    component: str
    module: Any
    names: list[str]
    """The linears to convert."""

    def linears(self) -> Iterator[tuple[str, Any]]:
        """One after the other, so that each can go when its replacement has come."""
        for name in self.names:
            yield name, self.module.get_submodule(name)

    def replace(self, name: str, linear: Any) -> None:
        self.module.set_submodule(name, linear)


Convert = Callable[[Work], dict[str, Any]]
"""Converts ``work.names`` in place. Returns JSON-ready facts for the evidence."""


@dataclass(frozen=True)
class Method:
    """One way to quantise."""

    convert: Convert
    form: str
    """What it leaves in the place of each linear: a regular expression for ``census.Form`` as it prints
    itself."""


Misfit = Callable[[int, int], str | None]
"""(in_features, out_features) -> why this backend cannot take a linear of these sizes; None when it can."""


def needs_no_more(_label: str) -> None:
    """``also`` of a backend that needs its package and its GPU alone."""


def takes_any_size(_in_features: int, _out_features: int) -> None:
    """The Misfit of a backend without one."""


@dataclass(frozen=True)
class Applied:
    """What ``apply`` leaves for ``verify``."""

    chosen: list[str]
    misfits: dict[str, str]
    """Chosen linears that the backend cannot take -> why."""
    bytes_before: int
    seconds: float
    facts: dict[str, Any]

    @property
    def converted(self) -> int:
        return len(self.chosen) - len(self.misfits)


def option(
    id: str,
    title: str,
    method: Method,
    *,
    target: Target = TRANSFORMER,
    package: Package | None = None,
    misfit: Misfit = takes_any_size,
    also: Callable[[str], None] = needs_no_more,
    needs_gpu: bool = False,
    needs_sm: int = 0,
    **declared: Any,
) -> Option:
    """``also``: raises Unavailable, which begins with the label that it is given, where this machine lacks
    something else. ``declared``: further fields of Option.

    What an option depends on is bound with ``partial``, where ``bench.sources`` finds it for the fingerprint.
    """
    return Option(
        id,
        title,
        verify=partial(_verify, id, target, method.form),
        require=partial(_require, f"{target.axis} {id}", package, also, needs_sm),
        apply=partial(_apply, id, target, misfit, method.convert),
        needs_gpu=needs_gpu,
        needs_sm=needs_sm,
        **declared,
    )


def _require(
    option: str,
    package: Package | None,
    also: Callable[[str], None],
    needs_sm: int,
    row: Row,
    device: str,
) -> None:
    label = f"{row.label}: {option}"
    if package is not None:
        try:
            importlib.import_module(package.module)
        except ImportError as error:
            raise Unavailable(
                f"{label} needs the package {package.requirement.partition('==')[0]} ({error});"
                f" pip install {package.requirement}"
            ) from error
    also(label)
    if device == "cpu":
        return
    import torch

    major, minor = torch.cuda.get_device_capability()
    if major * 10 + minor < needs_sm:
        raise Unavailable(
            f"{label} needs a GPU of compute capability {needs_sm / 10:.1f} and this one has {major}.{minor};"
            " give it a row with hardware h100x1"
        )


def _apply(
    id: str,
    target: Target,
    misfit: Misfit,
    convert: Convert,
    session: Session,
) -> None:
    label = f"{session.row.label}: {target.axis} {id}"
    module = getattr(session.pipe, target.component)
    linears = census.linears(module)
    chosen = [name for name in linears if target.chosen(name)]
    sizes = {name: (linears[name].in_features, linears[name].out_features) for name in chosen}
    misfits = {name: reason for name in chosen if (reason := misfit(*sizes[name]))}
    names = [name for name in chosen if name not in misfits]
    del linears  # or every weight would live on beside its quantised copy
    before, begun = census.occupied_bytes(module), time.perf_counter()
    facts = convert(Work(session, label, target.component, module, names))
    _settle(session.device)
    seconds = time.perf_counter() - begun
    session.notes[target.axis] = Applied(chosen, misfits, before, seconds, facts)


def _settle(device: str) -> None:
    """Until what was replaced is really gone and its memory is the next one's to take."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _verify(id: str, target: Target, form: str, session: Session) -> Evidence:
    label = f"{target.axis} {id}"
    applied = session.notes.get(target.axis)
    if not isinstance(applied, Applied):
        raise NotApplied(f"{label}: nothing quantised the {target.component}")
    module = getattr(session.pipe, target.component)
    forms = {name: census.form(linear) for name, linear in census.linears(module).items()}
    # Asked of the linears that are there now: a compilation may have taken apart some of those converted.
    expected = [name for name in forms if target.chosen(name) and name not in applied.misfits]
    _require_form(label, form, {name: forms[name] for name in expected}, applied.converted)
    after = census.occupied_bytes(module)
    if after >= applied.bytes_before:
        raise NotApplied(
            f"{label}: the {target.component} occupies {after} bytes, and did {applied.bytes_before}"
        )
    quantised = sum(not each.plain for each in forms.values())
    return {
        "linears": len(forms),
        "quantised": quantised,
        "kept": len(forms) - quantised,
        "forms": census.count(forms.values()),
        "misfits": dict(Counter(applied.misfits.values())),
        "bytes_before": applied.bytes_before,
        "bytes_after": after,
        "bytes_saved": applied.bytes_before - after,
        "convert_seconds": applied.seconds,
        "left_plain": _left_plain(target, session.pipe),
        **applied.facts,
    }


def _require_form(label: str, form: str, forms: Mapping[str, census.Form], converted: int) -> None:
    """``forms``: of the linears that are to be quantised, of which there are ``converted`` at the least."""
    wrong = {name: found for name, found in forms.items() if not re.fullmatch(form, str(found))}
    if wrong:
        name, found = next(iter(wrong.items()))
        raise NotApplied(
            f"{label}: {len(wrong)} of the {len(forms)} linears that it should quantise are not {form};"
            f" {name} is {found}"
        )
    if len(forms) < max(converted, 1):
        raise NotApplied(f"{label}: {len(forms)} linears are quantised, and {converted} were converted")


def _left_plain(target: Target, pipe: Any) -> list[str]:
    """The components that this option does not touch, though they hold such linears too."""
    others = ("controlnet",) if target is TRANSFORMER else ("text_encoder",)
    return [name for name in others if getattr(pipe, name, None) is not None]
