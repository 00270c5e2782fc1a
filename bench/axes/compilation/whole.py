"""The whole transformer, and the whole ControlNet, as one graph each, its kernels chosen by measurement.

* ``max-autotune-no-cudagraphs`` and not ``max-autotune``: with CUDA graphs a model's output lies in memory
  that its next call overwrites. The pipeline hands the ControlNet's residuals to the transformer and keeps
  latents over steps, so each would have to be copied out; what graphs save, launches, a batch of 4608 tokens
  hides behind its kernels; and their memory pool is held beside the weights.
* It is ``forward`` that is compiled, not the module: hooks on the module (a profile, a clock) then stay
  outside the graph. Hooks on layers inside are not called any more.
"""

from __future__ import annotations

from typing import Any

from bench.axes.compilation import graphs
from bench.axes.denoisers import denoisers
from bench.axes.option import Evidence, NotApplied, Option, Session

MODE = "max-autotune-no-cudagraphs"


def compile_forward(session: Session, **how: Any) -> None:
    """``how`` goes to ``torch.compile``. One graph or an error, of static shapes."""
    import torch

    torch._dynamo.config.recompile_limit = graphs.RECOMPILE_LIMIT
    for module in denoisers(session.pipe).values():
        module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False, **how)


def require_whole_graphs(option: str, session: Session) -> Evidence:
    """Every component is compiled and has run as compiled; raises NotApplied otherwise."""
    components = denoisers(session.pipe)
    missing = [name for name, module in components.items() if not graphs.forward_compiled(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise NotApplied(f"compilation {option}: the {' and the '.join(missing)} {verb} not compiled")
    events = graphs.compile_events(session)
    if events["graphs"] < len(components):
        raise NotApplied(
            f"compilation {option}: {len(components)} components are marked for it,"
            f" but dynamo compiled {events['graphs']} graphs"
        )
    return {"components": sorted(components), **events}


def _apply(session: Session) -> None:
    graphs.require_compiler("inductor-max", session)
    compile_forward(session, mode=MODE)


def _verify(session: Session) -> Evidence:
    from torch._dynamo.utils import counters

    found = require_whole_graphs("inductor-max", session)
    # 0 where the graphs came from the cache: the choices lie there with them.
    return {"mode": MODE, **found, "autotuned": counters["inductor"]["select_algorithm_autotune"]}


INDUCTOR_MAX = Option(
    "inductor-max", "torch.compile (whole model, max-autotune)", verify=_verify, apply=_apply, exact=True
)
