"""How diffusers is told which attention to use, and how the profile shows that it was used.

diffusers keeps the choice on every attention processor *and* in a process-wide default that
``reset_attention_backend()`` does not undo, so each option, ``sdpa`` too, sets its backend by name.
The VAE and the text encoders call torch's SDPA by themselves and are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.axes.denoisers import denoisers, processors
from bench.axes.option import Evidence, NotApplied, Session
from bench.axes.parallel.degrees import degrees_of
from bench.axes.profiles import profile_step
from bench.kernel_kinds import kind_of

_TORCH_OPERATION = re.compile(r"aten::_scaled_dot_product_\w*attention\w*")
_OWN_OPERATION = re.compile(r"fluxbench::\w+")  # attention alone: bench.axes.attention.packages


def set_backend(session: Session, backend: str) -> None:
    for module in denoisers(session.pipe).values():
        module.set_attention_backend(backend)


def require_backend(option: str, session: Session, backend: str) -> dict[str, int]:
    """Processors by component, all of which are set to ``backend``; raises NotApplied otherwise."""
    by_component: dict[str, int] = {}
    for name, module in denoisers(session.pipe).items():
        backends = [getattr(p._attention_backend, "value", p._attention_backend) for p in processors(module)]
        strays = [found for found in backends if found != backend]
        if strays or not backends:
            raise NotApplied(
                f"attention {option}: {len(strays)} of {len(backends)} processors of the {name} are set to"
                f" {sorted({str(stray) for stray in strays})}, not {backend}"
            )
        by_component[name] = len(backends)
    return by_component


def evidence(
    option: str, session: Session, backend: str, *, operation: re.Pattern[str], kernel: re.Pattern[str] | None
) -> Evidence:
    """Of the profile of a step: every attention call of transformer and ControlNet ran as ``operation``, no
    fewer and no more, and where a ``kernel`` is known by name, launched it. Raises NotApplied with what the
    profile shows instead."""
    by_component = require_backend(option, session, backend)
    operations, kernels = profile_step(session)
    calls = sum(by_component.values())
    if degrees := degrees_of(session.row.parallel):
        # The transformer attends to the keys of one rank after the other's; no ControlNet is shared out.
        calls += by_component["transformer"] * (degrees.ring - 1)
    ran = attention_operations(operations)
    attention_kernels = {name: count for name, count in kernels.items() if kind_of(name) == "attention"}
    require_calls(option, calls, operation, ran)
    if kernel is not None:
        require_calls(option, calls, kernel, attention_kernels, at_least=True)
    return {
        "backend": backend,
        "processors": by_component,
        "operations_in_one_step": ran,
        "kernels_in_one_step": attention_kernels,
    }


def attention_operations(operations: Mapping[str, int]) -> dict[str, int]:
    """Of a profile's operations those that are attention: torch's, and ours."""
    return {
        name: count
        for name, count in operations.items()
        if _TORCH_OPERATION.fullmatch(name) or _OWN_OPERATION.fullmatch(name)
    }


def require_calls(
    option: str, calls: int, pattern: re.Pattern[str], seen: Mapping[str, int], *, at_least: bool = False
) -> None:
    """``seen``: names and counts out of a profile. Raises NotApplied when other than ``calls`` match.
    ``at_least``: of kernels, of which one call may launch several."""
    matching = sum(count for name, count in seen.items() if pattern.search(name))
    if matching < calls or (matching > calls and not at_least):
        raise NotApplied(
            f"attention {option}: {matching} of {calls} attention calls of one step ran as"
            f" {pattern.pattern}; the profile shows {dict(seen) or 'none'}"
        )
