"""No cache: every step is computed."""

from __future__ import annotations

from bench.axes.option import Evidence, NotApplied, Option, Session
from bench.axes.parallel.degrees import degrees_of


def _verify_none(session: Session) -> Evidence:
    """Counts transformer calls in a two-step request: every step is computed, and of PipeFusion's second,
    which is no longer whole, every patch."""
    calls: list[int] = []
    transformer = session.pipe.transformer
    handle = transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        session.run(steps=2)
    finally:
        handle.remove()
    if transformer.is_cache_enabled:
        raise NotApplied("cache none: diffusers reports a cache on the transformer")
    degrees = degrees_of(session.row.parallel)
    if len(calls) != 1 + (degrees.pipefusion if degrees else 1):
        raise NotApplied(f"cache none: the transformer ran {len(calls)} times in a two-step request")
    return {"cache_enabled": False, "transformer_calls": len(calls)}


NONE = Option("none", "No cache", verify=_verify_none)
