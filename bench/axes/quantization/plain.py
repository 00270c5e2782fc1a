"""No quantisation, and how to tell: every linear is torch's own."""

from __future__ import annotations

from typing import Any

from bench.axes.option import Evidence, NotApplied, Option, Session
from bench.axes.quantization import census


def plain_linears(component: str, module: Any) -> Evidence:
    """Evidence that nothing is quantised: every linear is torch's own, its weight a float of 16 bits or more.

    Raises NotApplied naming the first that is not.
    """
    forms = {name: census.form(linear) for name, linear in census.linears(module).items()}
    for name, form in forms.items():
        if not form.plain:
            raise NotApplied(f"{component} should be plain, but {name} is {form}")
    return {"linears": len(forms), "quantised": 0}


def _verify_transformer(session: Session) -> Evidence:
    return plain_linears("quantization none: the transformer", session.pipe.transformer)


def _verify_t5(session: Session) -> Evidence:
    return plain_linears("text_encoder none: T5", session.pipe.text_encoder_2)


NONE = Option("none", "Not quantised", verify=_verify_transformer)
T5_NONE = Option("none", "T5 not quantised", verify=_verify_t5)
