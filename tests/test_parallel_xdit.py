"""xDiT's methods run xDiT's own code here, two ranks on gloo, and give the picture of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from packages_for_gpus import FOLDER

from bench import equality, tryout
from bench.axes import AXES
from bench.axes.parallel import xdit
from bench.matrix import BASELINE

METHODS = ("xdit-ulysses2", "xdit-ring2", "xdit-pipefusion2", "xdit-fsdp2")


@pytest.fixture
def on_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of xDiT is refused on a CPU: what xDiT wants of a GPU is the stand-in's work."""
    monkeypatch.setattr(equality, "RANKS", "xdit_on_gloo")
    monkeypatch.setattr(equality, "refusal", lambda _row: None)
    folders = (Path(__file__).parent, Path(__file__).parents[1], FOLDER)
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, folders)))


@pytest.mark.parametrize("option", METHODS)
def test_two_ranks_of_xdit_give_the_latents_of_one_process(on_gloo: None, option: str) -> None:
    stack = BASELINE | {"parallel": option}
    if option == "xdit-ring2":
        stack["attention"] = "native-flash"
    if option == "xdit-fsdp2":
        stack["precision"] = "bf16"
    row = tryout.tiny_row("cpu", stack)
    (found,) = equality.compare([("parallel", option, row)], 2, seconds_a_case=60)
    assert (found.ended, found.reason) == ("constructed", ""), "it ran, and left its evidence on both ranks"
    assert found.error is not None
    assert found.error <= found.tolerance
    stale = AXES["parallel"][option].latent_tolerance == xdit.STALE
    assert stale == (found.error > 0.01), "PipeFusion attends to older keys, and nothing else does"
