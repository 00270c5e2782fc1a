"""Whole requests through replayed modules. A stand-in for CUDA's graph records the operators of a call and,
as CUDA's does, runs them again on the tensors at the addresses that were recorded: what is not put there
before a replay is stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from bench import tryout  # noqa: E402
from bench.axes.compilation import fused, regional  # noqa: E402
from bench.axes.compilation.replayed import Captured, Replayed  # noqa: E402
from bench.axes.option import Session  # noqa: E402
from bench.matrix import BASELINE  # noqa: E402
from bench.runner import tasks  # noqa: E402

REQUESTS = ((0, 1), (1, 1), (2, 4), (3, 4), (4, 1), (5, 4), (6, 1))
"""(prompt, images): each batch is called twice as it is, then captured; then one after the other."""


@dataclass
class Recorded:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    replay: Callable[[], None]


def record(self: Replayed, leaves: list[Any], structure: Any) -> Captured:
    inputs = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    places = [index for index, leaf in enumerate(inputs) if isinstance(leaf, torch.Tensor)]
    shape: dict[str, Any] = {}

    def forward(*tensors: Any) -> Any:
        flat = list(inputs)
        for index, tensor in zip(places, tensors, strict=True):
            flat[index] = tensor
        args, kwargs = pytree.tree_unflatten(flat, structure)
        found, shape["of output"] = pytree.tree_flatten(self._forward(*args, **kwargs))
        return found

    handed_in = [inputs[index] for index in places]
    operators = make_fx(forward)(*handed_in)
    output = [tensor.clone() for tensor in operators(*handed_in)]

    def replay() -> None:
        for place, tensor in zip(output, operators(*handed_in), strict=True):
            place.copy_(tensor)

    graph: Any = Recorded(replay)
    return Captured(graph, inputs, pytree.tree_unflatten(output, shape["of output"]))


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regional, "compile_each", lambda _blocks: None)
    monkeypatch.setattr(Replayed, "_capture", record)


def latents_of(session: Session) -> Iterator[Any]:
    manifest = tasks.manifest(session.row)
    for prompt, images in REQUESTS:
        with torch.no_grad():
            request = manifest.request(prompt, images)
            yield tasks.generate(session.pipe, session.row, request, steps=3, latents=True).latents


@pytest.mark.usefixtures("_recorded")
@pytest.mark.parametrize(("task", "control"), [("txt2img", "none"), ("inpaint", "canny")])
def test_every_replay_sees_its_own_prompt_step_batch_and_control(task: str, control: str) -> None:
    session = tryout.session_of(tryout.tiny_row("cpu", BASELINE, task, control))
    plain = list(latents_of(session))
    fused._rearrange_and_capture("inductor-graphs", session)
    for expected, found in zip(plain, latents_of(session), strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    replayed = session.notes["inductor-graphs"]
    assert all(each.replays > len(REQUESTS) // 2 for each in replayed.values())
