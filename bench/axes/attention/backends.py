"""How diffusers is told which attention to use, and how the profile shows that it was used.

diffusers keeps the choice on every attention processor *and* in a process-wide default that
``reset_attention_backend()`` does not undo, so each option, ``sdpa`` too, sets its backend by name.
The VAE and the text encoders call torch's SDPA by themselves and are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.axes.option import Evidence, NotApplied, Session
from bench.axes.profiles import profile_transformer

_TORCH_OPERATION = re.compile(r"aten::_scaled_dot_product_\w*attention\w*")
_OWN_OPERATION = re.compile(r"fluxbench::\w+")  # attention alone: bench.axes.attention.packages
_ANY_KERNEL = re.compile(r"flash|fmha|sdpa|attention|attn", re.IGNORECASE)


def attended(pipe: Any) -> dict[str, Any]:
    """The components whose attention this axis sets, by name."""
    components = {"transformer": pipe.transformer, "controlnet": getattr(pipe, "controlnet", None)}
    return {name: module for name, module in components.items() if module is not None}


def processors(module: Any) -> list[Any]:
    """The processors that diffusers dispatches through: those that can hold a backend."""
    return [
        child.processor
        for child in module.modules()
        if hasattr(getattr(child, "processor", None), "_attention_backend")
    ]


def set_backend(session: Session, backend: str) -> None:
    for module in attended(session.pipe).values():
        module.set_attention_backend(backend)


def require_backend(option: str, session: Session, backend: str) -> dict[str, int]:
    """Processors by component, all of which are set to ``backend``; raises NotApplied otherwise."""
    by_component: dict[str, int] = {}
    for name, module in attended(session.pipe).items():
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
    """Of a one-step profile: every attention call of the transformer ran as ``operation`` and, where a
    ``kernel`` is known by name, launched it. Raises NotApplied with what the profile shows instead."""
    by_component = require_backend(option, session, backend)
    operations, kernels = profile_transformer(session)
    calls = by_component["transformer"]
    ran = {n: count for n, count in operations.items() if _TORCH_OPERATION.fullmatch(n)}
    ran |= {n: count for n, count in operations.items() if _OWN_OPERATION.fullmatch(n)}
    attention_kernels = {n: count for n, count in kernels.items() if _ANY_KERNEL.search(n)}
    require_calls(option, calls, operation, ran)
    if kernel is not None:
        require_calls(option, calls, kernel, attention_kernels)
    return {
        "backend": backend,
        "processors": by_component,
        "operations_in_one_step": ran,
        "kernels_in_one_step": attention_kernels,
    }


def require_calls(option: str, calls: int, pattern: re.Pattern[str], seen: Mapping[str, int]) -> None:
    """``seen``: names and counts out of a profile. Raises NotApplied when fewer than ``calls`` match."""
    matching = sum(count for name, count in seen.items() if pattern.search(name))
    if matching < calls:
        raise NotApplied(
            f"attention {option}: {matching} of {calls} attention calls of one step ran as"
            f" {pattern.pattern}; the profile shows {dict(seen) or 'none'}"
        )
