"""The whole transformer, and the whole ControlNet, as one graph each, its kernels chosen by measurement.

* ``max-autotune-no-cudagraphs`` and not ``max-autotune``: with CUDA graphs a model's output lies in memory
  that its next call overwrites. The pipeline hands the ControlNet's residuals to the transformer and keeps
  latents over steps, so each would have to be copied out; what graphs save, launches, a batch of 4608 tokens
  hides behind its kernels; and their memory pool is held beside the weights.
* It is ``forward`` that is compiled, not the module: hooks on the module (a profile, a clock) then stay
  outside the graph. Hooks on layers inside are not called any more.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.axes.compilation import graphs, workers
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
    events = graphs.compile_events(option, session)
    if events["graphs"] < len(components):
        raise NotApplied(
            f"compilation {option}: {len(components)} components are marked for it,"
            f" but dynamo compiled {events['graphs']} graphs"
        )
    return {"components": sorted(components), **events}


def _apply(session: Session) -> None:
    from torch._inductor.select_algorithm import add_feedback_saver

    chosen: list[str] = []
    session.notes["inductor-max"] = chosen
    # Called with the timings of each choice, measured now or known from the cache, and the operation's name.
    add_feedback_saver(lambda _timings, operation, *_: chosen.append(operation))
    compile_forward(session, mode=MODE)


def _verify(session: Session) -> Evidence:
    from torch._dynamo.utils import counters

    from bench.runner.compiler import cache_state

    found = require_whole_graphs("inductor-max", session)
    settings = {name: _require_mode(name, module) for name, module in denoisers(session.pipe).items()}
    choices, cache = len(session.notes["inductor-max"]), cache_state()
    if session.device != "cpu":
        require_choices(choices, cache)
    return {
        **found,
        "settings": settings["transformer"],
        "choices_by_timing": choices,
        "measured_here": counters["inductor"]["select_algorithm_autotune"],
        "graphs_from_cache": cache == "warm",
    }


def _require_mode(name: str, module: Any) -> dict[str, Any]:
    """What the module's compiler was told, of that which the mode stands for."""
    import torch._inductor

    wanted = {"triton.cudagraphs": False, **torch._inductor.list_mode_options(MODE)}
    told = graphs.compiler_settings(module)
    found = {setting: told.get(setting) for setting in wanted}
    if found != wanted:
        raise NotApplied(
            f"compilation inductor-max: the {name} is compiled with {found}, and {MODE} is {wanted}"
        )
    return found


def require_choices(choices: int, cache: str | None) -> None:
    """Raises NotApplied where no kernel was chosen by its timing, unless every graph came from the cache: the
    choices lie there with them."""
    if not choices and cache != "warm":
        raise NotApplied(
            f"compilation inductor-max: no kernel was chosen by its timing; the cache was {cache}"
        )


INDUCTOR_MAX = Option(
    "inductor-max",
    "torch.compile (whole model, max-autotune)",
    verify=_verify,
    require=partial(workers.require_compiler, "inductor-max"),
    apply=_apply,
    exact=True,
)
