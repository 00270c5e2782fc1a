"""No cache: every step is computed."""

from __future__ import annotations

from bench.axes.option import Evidence, NotApplied, Option, Session


def _verify_none(session: Session) -> Evidence:
    """Counts transformer calls in a two-step request: every step is computed, or each of its patches."""
    calls: list[int] = []
    transformer = session.pipe.transformer
    handle = transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        session.run(steps=2)
    finally:
        handle.remove()
    if transformer.is_cache_enabled:
        raise NotApplied("cache none: diffusers reports a cache on the transformer")
    if len(calls) < 2:
        raise NotApplied(f"cache none: the transformer ran {len(calls)} times in a two-step request")
    return {"cache_enabled": False, "transformer_calls": len(calls)}


NONE = Option("none", "No cache", verify=_verify_none)
