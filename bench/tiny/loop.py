"""A training loop that can be killed and goes on where it was.

Randomness is seeded per step, so a run that was stopped and resumed sees the same batches in the same order
as one that was not. The checkpoint holds the modules, their exponential moving averages and the optimiser.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.record import write_atomically


@dataclass(frozen=True)
class Plan:
    """What decides the outcome of one stage; stands in its log."""

    stage: str
    seed: int
    steps: int
    batch: int
    pool: int
    """Pictures drawn once and sampled from."""
    learning_rate: float
    warmup_steps: int = 200
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    aim_seconds: float | None = None
    """If given, ``steps`` is chosen so that training takes about this long on this machine."""
    extra: dict[str, Any] = field(default_factory=dict)

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def step_generator(plan: Plan, step: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(plan.seed * 1_000_003 + step)


class Averages:
    """Exponential moving averages of parameters; what is shipped. Early steps average over fewer."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.parameters: list[torch.Tensor] = list(module.parameters())
        self.values = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.parameters, 1 - keep)

    def store(self) -> None:
        """Puts the averages in the parameters' place."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.data.copy_(value)


@dataclass
class Log:
    """Written beside the weights: the plan, where it ran and the curve."""

    plan: Plan
    environment: dict[str, str]
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    """What the stage measured of itself on held-out pictures, once trained."""

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")


def environment(device: str) -> dict[str, str]:
    import diffusers
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def fit(
    plan: Plan,
    module: nn.Module,
    loss: Callable[[int], torch.Tensor],
    *,
    work: Path,
    device: str,
    log_every: int = 100,
    save_every: int = 1000,
) -> Log:
    """Trains ``module`` on ``loss(step)`` and leaves the averaged parameters in it.

    ``work`` holds ``<stage>.pt``, which a second call with the same plan resumes from; a checkpoint of
    another plan raises ValueError.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trainable, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=device == "cuda"
    )
    checkpoint = work / f"{plan.stage}.pt"
    if plan.aim_seconds and not checkpoint.exists():
        plan = replace(plan, steps=int(plan.aim_seconds / _seconds_a_step(module, loss)))
    averages, log = Averages(module, plan.ema_decay), Log(plan, environment(device))
    first = _resume(checkpoint, log, module, optimiser, averages)
    plan = log.plan
    started, earlier = time.perf_counter(), log.seconds
    for step, at in _steps(first, plan):
        for group in optimiser.param_groups:
            group["lr"] = at
        value = loss(step)
        value.backward()
        norm = nn.utils.clip_grad_norm_(trainable, plan.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        averages.update(step)
        log.seconds = earlier + time.perf_counter() - started
        if step % log_every == 0 or step == plan.steps - 1:
            _note(log, step, value, norm, at)
        if (step + 1) % save_every == 0 and step + 1 < plan.steps:
            _save(checkpoint, plan, step + 1, module, optimiser, averages, log)
    averages.store()
    checkpoint.unlink(missing_ok=True)
    return log


def _seconds_a_step(module: nn.Module, loss: Callable[[int], torch.Tensor], count: int = 40) -> float:
    """Of whole steps at a rate of zero, which change nothing; the first ones compile and are not counted."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=0.0)
    started = 0.0
    for step in range(-5, count):
        if step == 0:
            started = time.perf_counter()
        value = loss(abs(step))
        value.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        float(value.detach())
    return (time.perf_counter() - started) / count


def _steps(first: int, plan: Plan) -> Iterator[tuple[int, float]]:
    return ((step, plan.rate_at(step)) for step in range(first, plan.steps))


def _note(log: Log, step: int, value: torch.Tensor, norm: torch.Tensor, rate: float) -> None:
    loss = float(value.detach())
    if not math.isfinite(loss):
        raise FloatingPointError(f"{log.plan.stage}: loss is {loss} at step {step}; lower the learning rate")
    log.curve.append({"step": step, "loss": round(loss, 6), "seconds": round(log.seconds, 2)})
    print(
        f"{log.plan.stage} {step:6d}/{log.plan.steps}  loss {loss:.5f}  gradient {float(norm):.3f}"
        f"  rate {rate:.2e}  {log.seconds:.0f} s",
        flush=True,
    )


def _save(
    path: Path,
    plan: Plan,
    step: int,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    averages: Averages,
    log: Log,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    state = {
        "plan": asdict(plan),
        "step": step,
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "averages": averages.values,
        "curve": log.curve,
        "seconds": log.seconds,
    }
    torch.save(state, temporary)
    temporary.replace(path)


def _resume(
    path: Path, log: Log, module: nn.Module, optimiser: torch.optim.Optimizer, averages: Averages
) -> int:
    """Fills all but the path from the checkpoint and returns the next step; 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    chosen = {"steps": state["plan"]["steps"]} if log.plan.aim_seconds else {}
    if state["plan"] != asdict(replace(log.plan, **chosen)):
        raise ValueError(f"{path} was left by another plan; remove it to start anew: {state['plan']}")
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    averages.values = [v.to(p.device) for v, p in zip(state["averages"], averages.parameters, strict=True)]
    log.plan, log.curve, log.seconds = replace(log.plan, **chosen), state["curve"], state["seconds"]
    print(f"{log.plan.stage}: resuming at step {state['step']}", flush=True)
    return int(state["step"])
