"""xDiT's methods run xDiT's own code here, two ranks on gloo, and give the picture of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packages_for_gpus import FOLDER

from bench import equality, tryout
from bench.axes import AXES
from bench.axes.parallel import xdit
from bench.flux import MODELS
from bench.matrix import BASELINE, Row
from bench.runner import traffic

WIDTH, CHANNELS = 256, 64
"""Of Tiny FLUX, and of what it predicts."""
METHODS = ("xdit-ulysses2", "xdit-ring2", "xdit-pipefusion2", "xdit-fsdp2")


@pytest.fixture
def on_gloo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A row of xDiT is refused on a CPU: what xDiT wants of a GPU is the stand-in's work. The file that the
    method's evidence comes to."""
    monkeypatch.setenv("EVIDENCE", str(tmp_path / "evidence.json"))
    monkeypatch.setattr(equality, "RANKS", "xdit_on_gloo")
    monkeypatch.setattr(equality, "refusal", lambda _row: None)
    folders = (Path(__file__).parent, Path(__file__).parents[1], FOLDER)
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, folders)))
    return tmp_path / "evidence.json"


@pytest.mark.parametrize("option", METHODS)
def test_two_ranks_of_xdit_give_the_latents_of_one_process(on_gloo: Path, option: str) -> None:
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
    if option in COUNTED:
        COUNTED[option](row, json.loads(on_gloo.read_text()))


def weights_were_gathered(row: Row, found: dict[str, Any]) -> None:
    """In bfloat16: each rank handed in all that it holds, block by block and the rest, and its part of the
    predicted latents, in five and one call."""
    result_bytes = MODELS["tiny"].tokens(row.size)["image"] * CHANNELS * 2 // 2
    for each in found["by_rank"]:
        gathers = {"calls": 5 + 1, "input_bytes": each["parameter_bytes_here"] + result_bytes}
        assert each["collectives"]["c10d::_allgather_base_"] == gathers


def patches_travelled(row: Row, found: dict[str, Any]) -> None:
    """In float32: the first rank passes on its blocks' tokens of image and text, as wide as the model, with
    the first patch those of the text; the last rank passes on the latents."""
    assert (found["patches"], found["synchronous_steps"]) == (2, 1), "as xDiT sets them where nobody asks"
    sent = [each["collectives"]["c10d::send"] for each in found["by_rank"]]
    tokens = MODELS["tiny"].tokens(row.size)
    assert sent == [
        {"calls": 2 + 1, "input_bytes": (tokens["image"] + tokens["text"]) * WIDTH * 4},
        {"calls": 2, "input_bytes": tokens["image"] * CHANNELS * 4},
    ]
    told = traffic.communication(row, found, [])
    assert told is not None
    assert (told.calls_per_step, told.sent_bytes_per_step) == (3, sent[0]["input_bytes"])


COUNTED = {"xdit-fsdp2": weights_were_gathered, "xdit-pipefusion2": patches_travelled}
