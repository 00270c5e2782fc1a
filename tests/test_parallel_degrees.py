"""What an option's name says of the ranks that a row needs, and the rows that no ranks can serve."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.axes import AXES
from bench.axes.parallel import ranks_of
from bench.axes.parallel.degrees import Degrees, degrees_of
from bench.flux import MODELS
from bench.images import image_of
from bench.matrix import REFERENCE, Row
from bench.rules import flags, refusal


@pytest.fixture
def on(make_row: Callable[..., Row]) -> Callable[..., Row]:
    def make(hardware: str, **changes: Any) -> Row:
        values = {"model": "flux.1-dev", "size": 1024, **REFERENCE, **changes}
        return make_row(hardware=hardware, **values)

    return make


def refused(row: Row) -> str:
    return str(refusal(row) or "")


def test_a_name_says_how_many_ranks_share_what() -> None:
    assert degrees_of("ulysses4xring2") == Degrees(ulysses=4, ring=2)
    assert degrees_of("xdit-pipefusion2") == Degrees(pipefusion=2, xdit=True)
    assert degrees_of("none") is None
    assert degrees_of("replicas") is None
    assert Degrees(ulysses=4, ring=2).heads == 4
    assert Degrees(ulysses=4, ring=2).tokens == 8


@pytest.mark.parametrize("option", [id for id in AXES["parallel"] if degrees_of(id)])
def test_every_method_runs_on_2_4_or_8_ranks_and_has_an_image(on: Callable[..., Row], option: str) -> None:
    degrees = degrees_of(option)
    assert degrees is not None
    assert degrees.ranks in {2, 4, 8}
    attention = "cudnn" if degrees.ring > 1 else "sdpa"
    row = on(f"h100x{degrees.ranks}", parallel=option, attention=attention)
    assert ranks_of(row) == row.gpu_count
    assert refused(row) == ""
    assert image_of(row) == ("xdit" if degrees.xdit else "torch")


def test_replicas_are_one_a_gpu_and_a_plain_row_is_one_process(on: Callable[..., Row]) -> None:
    assert ranks_of(on("h100x4", parallel="replicas")) == 4
    assert ranks_of(on("h100x4")) == 1
    assert ranks_of(on("cpu", parallel="ulysses4")) == 4


def test_the_shapes_are_those_of_the_models() -> None:
    from bench.runner.published import published
    from bench.tiny import WEIGHTS

    tiny = json.loads(Path(WEIGHTS, "transformer", "config.json").read_text())
    configs = {"flux.1-dev": published("transformer").config, "tiny": tiny}
    for model, config in configs.items():
        assert MODELS[model].heads == config["num_attention_heads"]
    assert MODELS["flux.1-dev"].tokens(1024) == {"image": 4096, "text": 512}


@pytest.mark.parametrize(
    ("hardware", "changes", "reason"),
    [
        ("h100x2", {"parallel": "ulysses4"}, "ranks-of-hardware: ulysses4 works on 4 GPUs, and h100x2 is 2"),
        ("h100x4", {"parallel": "ulysses2"}, "ranks-of-hardware: ulysses2 works on 2 GPUs, and h100x4 is 4"),
        ("h100x1", {"parallel": "tp2"}, "ranks-of-hardware: tp2 works on 2 GPUs, and h100x1 is 1"),
        ("h100x1", {"parallel": "replicas"}, "ranks-of-hardware: replicas works on several GPUs"),
        ("cpu", {"parallel": "tp8", "model": "tiny"}, "8 ranks do not divide the 4 attention heads of tiny"),
        ("h100x8", {"parallel": "ulysses8", "size": 208}, "8 ranks do not divide the 169 image tokens"),
        ("h100x2", {"parallel": "ring2", "attention": "flash3"}, "attention flash3 does not return"),
        ("h100x2", {"parallel": "ring2"}, "log-sum-exp, which attention sdpa does not return"),
        ("h100x2", {"parallel": "tp2", "quantization": "scaledmm-fp8-row"}, "quantization scaledmm-fp8-row"),
        ("h100x2", {"parallel": "fsdp2", "text_encoder": "gguf-q8_0"}, "text_encoder gguf-q8_0 packs them"),
        ("h100x2", {"parallel": "ulysses2", "compilation": "tensorrt"}, "a TensorRT engine holds no coll"),
        ("h100x2", {"parallel": "xdit-fsdp2", "task": "inpaint"}, "txt2img without a ControlNet only"),
        ("h100x2", {"parallel": "xdit-fsdp2", "control": "canny"}, "only: use fsdp2"),
        ("h100x2", {"parallel": "xdit-ulysses2", "cache": "replay-50"}, "the forward that xDiT replaces"),
        ("h100x2", {"parallel": "xdit-ring2"}, "log-sum-exp, which attention sdpa does not return"),
        ("h100x2", {"parallel": "xdit-pipefusion2", "attention": "sage2"}, "sage2 is an operator of ours"),
        ("h100x2", {"parallel": "xdit-pipefusion2", "compilation": "inductor"}, "use compilation none"),
        ("h100x2", {"parallel": "xdit-fsdp2", "precision": "fp16"}, "T5 keeps layers in float32"),
        ("h100x2", {"vae": "parallel"}, "vae parallel needs ranks that share each request"),
        ("h100x2", {"vae": "parallel", "parallel": "replicas"}, "vae parallel needs ranks that share"),
    ],
)
def test_what_ranks_cannot_do_is_refused_by_name(
    on: Callable[..., Row], hardware: str, changes: dict[str, str], reason: str
) -> None:
    assert reason in refused(on(hardware, **changes))


@pytest.mark.parametrize("option", [id for id in AXES["parallel"] if id.startswith("xdit-")])
def test_what_is_advised_instead_of_xdit_is_an_option_of_as_many_ranks(
    on: Callable[..., Row], option: str
) -> None:
    degrees = degrees_of(option)
    assert degrees is not None
    row = on(f"h100x{degrees.ranks}", parallel=option, control="canny", attention="cudnn")
    advised = refused(row).partition("only: use ")[2]
    assert advised in AXES["parallel"]
    assert degrees_of(advised) == replace(degrees, xdit=False) or degrees.pipefusion > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": "ulysses2", "quantization": "scaledmm-fp8-row", "compilation": "inductor"},
        {"parallel": "ulysses2", "vae": "parallel"},
        {"parallel": "ulysses2", "attention": "flash3", "compilation": "inductor"},
        {"parallel": "fsdp2", "quantization": "bnb-nf4"},
        {"parallel": "tp2", "text_encoder": "gguf-q8_0"},
        {"parallel": "tp2", "attention": "flash3"},
        {"parallel": "replicas", "attention": "flash3", "compilation": "inductor"},
    ],
)
def test_what_ranks_can_do_is_allowed(on: Callable[..., Row], changes: dict[str, str]) -> None:
    assert refused(on("h200x2", **changes)) == ""


def test_eager_ranks_and_idle_gpus_are_allowed_and_flagged(on: Callable[..., Row]) -> None:
    assert [flag.name for flag in flags(on("h100x2", parallel="ulysses2"))] == ["eager-ranks"]
    assert flags(on("h100x2", parallel="ulysses2", compilation="inductor")) == []
    assert [flag.name for flag in flags(on("h100x2"))] == ["idle-gpus"]


def test_the_equality_cases_hold_every_method_on_every_core_use_case() -> None:
    from bench.equality import cases

    found = list(cases("h100x4", 4))
    methods = {option for axis, option, _ in found if axis == "parallel"}
    assert methods == {id for id in AXES["parallel"] if (d := degrees_of(id)) and d.ranks == 4}
    for option in methods | {"parallel"}:
        assert len({(row.task, row.control) for _, asked, row in found if asked == option}) == 6
    assert len(found) == len({(axis, row.identity) for axis, _, row in found})
