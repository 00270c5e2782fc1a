"""The training loop: it can be killed, and what resumes equals what was never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bench.tiny import CONTROLS, loop, train

PLAN = loop.Plan("line", seed=1, steps=40, batch=16, pool=64, learning_rate=0.1, warmup_steps=4)


class Killed(Exception):
    pass


def _task(plan: loop.Plan, stop_at: int | None = None) -> tuple[nn.Module, Callable[[int], torch.Tensor]]:
    """Learn y = 2x - 1; raises Killed at a step, as a machine that is taken away."""
    torch.manual_seed(0)
    module = nn.Linear(1, 1)

    def loss(step: int) -> torch.Tensor:
        if step == stop_at:
            raise Killed
        x = torch.randn(plan.batch, 1, generator=loop.step_generator(plan, step, "cpu"))
        return (module(x) - (2 * x - 1)).square().mean()

    return module, loss


def test_a_resumed_run_ends_in_the_same_parameters_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole, loss = _task(PLAN)
    log = loop.fit(PLAN, whole, loss, work=tmp_path / "whole", device="cpu", save_every=10)
    assert log.curve[-1]["loss"] < log.curve[0]["loss"] / 10

    stopped, loss = _task(PLAN, stop_at=25)
    with pytest.raises(Killed):
        loop.fit(PLAN, stopped, loss, work=tmp_path / "cut", device="cpu", save_every=10)
    assert (tmp_path / "cut" / "line.pt").exists()
    resumed, loss = _task(PLAN)
    torch.manual_seed(99)  # nothing may hang on the global state
    loop.fit(PLAN, resumed, loss, work=tmp_path / "cut", device="cpu", save_every=10)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)
    assert not (tmp_path / "cut" / "line.pt").exists()


def test_a_checkpoint_of_another_plan_is_refused_by_name(tmp_path: Path) -> None:
    module, loss = _task(PLAN, stop_at=25)
    with pytest.raises(Killed):
        loop.fit(PLAN, module, loss, work=tmp_path, device="cpu", save_every=10)
    other = replace(PLAN, learning_rate=0.2)
    with pytest.raises(ValueError, match="another plan; remove it"):
        loop.fit(other, *_task(other), work=tmp_path, device="cpu", save_every=10)


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        loop.fit(PLAN, module, lambda _: module.weight.sum() * torch.nan, work=tmp_path, device="cpu")


def test_aiming_at_seconds_chooses_the_steps_and_changes_nothing_before_them(tmp_path: Path) -> None:
    module, loss = _task(PLAN)
    before = module.weight.detach().clone()
    assert loop._seconds_a_step(module, loss) > 0
    assert torch.equal(module.weight, before)
    log = loop.fit(replace(PLAN, aim_seconds=0.2), module, loss, work=tmp_path, device="cpu")
    assert log.plan.steps != PLAN.steps
    assert log.curve[-1]["step"] == log.plan.steps - 1


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    plan = replace(PLAN, steps=1000, warmup_steps=100)
    assert plan.rate_at(0) < 0.02 * plan.learning_rate
    assert plan.rate_at(100) > 0.97 * plan.learning_rate
    assert plan.rate_at(999) < 0.001 * plan.learning_rate


@pytest.mark.parametrize("stage", list(train.STAGES))
def test_each_stage_trains_its_own_components_and_no_others(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real steps of each stage through the command, from the shipped weights."""
    import shutil

    from safetensors.torch import load_file

    from bench.tiny import WEIGHTS

    # 256 take over a minute on one core; how many there are says nothing of what was trained.
    monkeypatch.setattr(train, "HELD_OUT", 4)
    weights = tmp_path / "weights"
    shutil.copytree(WEIGHTS, weights)
    arguments = f"{stage} --steps 2 --batch 4 --pool 40 --learning-rate 0.5 --device cpu"
    outcome = CliRunner().invoke(
        train.main, [*arguments.split(), "--weights", str(weights), "--work", str(tmp_path / "work")]
    )
    assert outcome.exit_code == 0, outcome.output
    changed = set()
    for file in WEIGHTS.glob("*/*.safetensors"):
        before, after = load_file(file), load_file(weights / file.relative_to(WEIGHTS))
        if any(not torch.equal(before[name], after[name]) for name in before):
            changed.add(file.parent.name)
    expected = {
        "autoencoder": {"vae"},
        "transformer": {"transformer", "text_encoder", "text_encoder_2"},
        "controlnet": {"controlnet"},
    }
    assert changed == expected[stage]
    log = json.loads((tmp_path / "training" / f"{stage}.json").read_text())
    assert log["plan"]["steps"] == 2
    assert log["environment"]["device"] == "cpu"
    scored = ("picture", *CONTROLS) if stage == "autoencoder" else ()
    assert set(log["scores"]) == {f"psnr_{kind}_db" for kind in scored}
