"""No quantisation, and how to tell: every linear is torch's own."""

from __future__ import annotations

from typing import Any

from bench.axes.option import Evidence, NotApplied, Option, Session


def plain_linears(component: str, module: Any) -> Evidence:
    """Evidence that nothing is quantised: every linear is torch's own, its weight a float of 16 bits or more.

    Raises NotApplied naming the first that is not.
    """
    import torch

    linears = 0
    for name, child in module.named_modules():
        if not isinstance(child, torch.nn.Linear):
            continue
        weight = child.weight
        if type(child) is not torch.nn.Linear or not weight.is_floating_point() or weight.element_size() < 2:
            raise NotApplied(
                f"{component} should be plain, but {name} is {type(child).__name__} ({weight.dtype})"
            )
        linears += 1
    return {"linears": linears, "quantised": 0}


def _verify_none(session: Session) -> Evidence:
    return plain_linears("quantization none: the transformer", session.pipe.transformer)


NONE = Option("none", "Not quantised", verify=_verify_none)
