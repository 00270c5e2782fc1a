"""Caches that reuse the stack of blocks: FirstBlockCache, TeaCache, and the replay of a stated schedule.

A replay stands in for a threshold where weights are random: no threshold is ever reached there, or by
accident only, so the row shows what a cache costs and saves when it skips a stated share of the steps. All of
them work in all six pipelines, with and without ControlNet, at any strength and batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.axes.cache.decisions import Method, first_block_cache, replay, replay_schedule, teacache
from bench.axes.cache.stack_cache import StackCache
from bench.axes.option import Evidence, NotApplied, Option, Session
from bench.axes.parallel.degrees import degrees_of
from bench.flux import MODELS, executed_steps

FBCACHE = {0.08: 0.01, 0.12: 0.02, 0.2: 0.03}
TEACACHE = {0.25: 0.02, 0.4: 0.03, 0.6: 0.05}
"""Threshold -> ``latent_tolerance``: twice the largest error that 28 and 21 steps of Tiny FLUX showed in any
use case, rounded up. Fewer steps are further apart and cost more."""
REPLAY = {50: 0.02, 65: 0.03}
"""Per cent of the executed steps that are skipped -> ``latent_tolerance``."""


def _apply(option: str, method: Method, session: Session) -> None:
    shared = degrees_of(session.row.parallel) is not None  # replicas serve requests of their own
    cache = StackCache(session.pipe, method, shared=shared)
    session.notes[option] = cache
    session.after_request["cache"] = partial(_count, option, cache)


def _count(option: str, cache: StackCache) -> dict[str, int]:
    tally = cache.take()
    if tally is None:
        raise NotApplied(f"cache {option}: a request ended in which the cache was not asked once")
    return tally.counts()


def _verify(option: str, method: Method, session: Session) -> Evidence:
    """Of one whole request: its decisions, next to an independent count of the transformer's calls."""
    cache: StackCache | None = session.notes.get(option)
    steps = _executed_steps(session)
    with _transformer_calls(session.pipe.transformer) as calls:
        session.run(steps=steps)
    tally = cache.take() if cache else None
    if tally is None:
        raise NotApplied(f"cache {option}: asked in none of {len(calls)} calls of the transformer")
    if not len(calls) == len(tally.blocks_run) == steps:
        raise NotApplied(
            f"cache {option}: asked in {len(tally.blocks_run)} of {len(calls)} calls of the transformer,"
            f" in a request of {steps} steps"
        )
    return {
        **tally.counts(),
        "computed": [step for step, computed in enumerate(tally.computed) if computed],
        "probe": method.probe,
        "compared_with": method.compared_with,
        "distances": [None if each is None else round(each, 4) for each in tally.distances],
    }


def _executed_steps(session: Session) -> int:
    row = session.row
    return executed_steps(row.task, row.steps, MODELS[row.model].settings.strength)


@contextmanager
def _transformer_calls(transformer: Any) -> Iterator[list[None]]:
    """One entry a call: every call ends in the output projection, whoever computes what comes before."""
    calls: list[None] = []
    handle = transformer.proj_out.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def _verify_threshold(option: str, method: Method, threshold: float, session: Session) -> Evidence:
    """A cache that skipped nothing was applied all the same: it decided, and its evidence says how. The
    cell's anomaly ``nothing_skipped`` says it where the numbers are."""
    return {"decided_by": f"threshold {threshold:g}", **_verify(option, method, session)}


def _verify_replay(option: str, method: Method, skip_percent: int, session: Session) -> Evidence:
    evidence = _verify(option, method, session)
    steps = evidence["steps_computed"] + evidence["steps_skipped"]
    stated = [step for step, computed in enumerate(replay_schedule(steps, skip_percent)) if computed]
    if evidence["computed"] != stated:
        raise NotApplied(f"cache {option}: computed steps {evidence['computed']}, but stated are {stated}")
    return {"decided_by": f"replay of a schedule that skips {skip_percent} %", **evidence}


def _threshold(name: str, title: str, method: Method, threshold: float, tolerance: float) -> Option:
    id = f"{name}-{threshold:g}"
    return Option(
        id,
        f"{title} {threshold:g}",
        verify=partial(_verify_threshold, id, method, threshold),
        apply=partial(_apply, id, method),
        latent_tolerance=tolerance,
    )


def _replay(skip_percent: int, tolerance: float) -> Option:
    id, method = f"replay-{skip_percent}", replay(skip_percent)
    return Option(
        id,
        f"Replay: {skip_percent} % of steps skipped",
        verify=partial(_verify_replay, id, method, skip_percent),
        apply=partial(_apply, id, method),
        latent_tolerance=tolerance,
    )


OPTIONS = (
    *(_threshold("fbcache", "FirstBlockCache", first_block_cache(at), at, FBCACHE[at]) for at in FBCACHE),
    *(_threshold("teacache", "TeaCache", teacache(at), at, TEACACHE[at]) for at in TEACACHE),
    *(_replay(skip_percent, tolerance) for skip_percent, tolerance in REPLAY.items()),
)
