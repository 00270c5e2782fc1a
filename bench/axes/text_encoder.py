"""text_encoder: how T5's weights are stored. So far only not quantised."""

from __future__ import annotations

from bench.axes.option import Evidence, Option, Session
from bench.axes.quantization.plain import plain_linears


def _verify_none(session: Session) -> Evidence:
    return plain_linears("text_encoder none: T5", session.pipe.text_encoder_2)


OPTIONS = (Option("none", "T5 not quantised", verify=_verify_none),)
