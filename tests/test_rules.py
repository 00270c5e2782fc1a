"""What the rules refuse: every stack there is, walked in pure Python, and each rule on rows of its own."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bench.axes import AXES
from bench.hardware import GPUS
from bench.images import image_of
from bench.listing import as_dict
from bench.matrix import PLAIN, Row
from bench.rules import RULES, flags, refusal, stacks
from bench.runner.judge import flagged

HARDWARE = ("a100x1", "h100x1", "cpu")


def on(hardware: str, **changes: Any) -> Row:
    """The reference of this hardware, changed; not validated, because there are hundreds of thousands."""
    values = {"task": "txt2img", "control": "none", "model": "tiny", "size": 128, "steps": 28}
    stack = {"precision": "bf16", **PLAIN}
    return Row.model_construct(row="1", tier="core", hardware=hardware, **{**values, **stack, **changes})


def refused_by(row: Row, weights: str | None = None) -> str:
    """The rule's name; empty when the row may run."""
    refused = refusal(row, weights)
    return refused.name if refused else ""


@pytest.mark.parametrize("hardware", HARDWARE)
def test_each_stack_is_refused_by_one_named_rule_or_can_run_in_an_image(hardware: str) -> None:
    """Axis vae is left at its plain option: of one process it declares nothing that a rule reads, which is
    asserted. What several ranks may have together stands in tests/test_parallel_degrees.py."""
    decoders = [option for id, option in AXES["vae"].items() if id != "parallel"]
    assert {(o.needs_gpu, o.needs_sm, o.images >= AXES["vae"]["full"].images) for o in decoders} == {
        (False, 0, True)
    }
    axes = {axis: list(options) for axis, options in AXES.items() if axis not in {"vae", "parallel"}}
    refused: Counter[str] = Counter()
    allowed: dict[str, set[str]] = {axis: set() for axis in axes}
    for chosen in product(*axes.values()):
        row = on(hardware, **dict(zip(axes, chosen, strict=True)))
        if found := refusal(row):
            assert found.reason
            assert found.source
            refused[found.name] += 1
        else:
            assert image_of(row) is not None
            for axis, option in zip(axes, chosen, strict=True):
                allowed[axis].add(option)
    missing = {axis: set(options) - allowed[axis] for axis, options in axes.items()}
    expected = {
        "cpu": {
            (axis, id)
            for axis in axes
            for id, o in AXES[axis].items()
            if o.needs_gpu or "cpu" not in o.images
        },
        "a100x1": {(axis, id) for axis in axes for id, o in AXES[axis].items() if o.needs_sm > 80},
        "h100x1": set(),
    }[hardware]
    assert {(axis, id) for axis, ids in missing.items() for id in ids} == expected
    assert refused.total() > 0


def test_every_rule_refuses_something() -> None:
    examples = {
        "gpu-option-on-cpu": on("cpu", attention="cudnn"),
        "older-gpu": on("a100x1", attention="flash3"),
        "precision-of-kernel": on("h100x1", attention="flash3", precision="fp16"),
        "cache-inside-one-graph": on("h100x1", cache="fbcache-0.12", compilation="inductor-max"),
        "rearranged-blocks": on("h100x1", quantization="bnb-nf4", compilation="inductor-fused"),
        "compiled-quanto-int4": on("h100x1", quantization="quanto-int4", compilation="inductor"),
        "compiled-fp8-weights": on("a100x1", quantization="torchao-fp8wo", compilation="inductor"),
        "quantised-tensorrt": on("h100x1", quantization="gguf-q8_0", compilation="tensorrt"),
        "attention-inside-tensorrt": on("h100x1", attention="flash2", compilation="tensorrt"),
        "ranks-of-hardware": on("h100x4", parallel="ulysses2"),
        "uneven-shares": on("h100x8", parallel="ulysses8", size=208),
        "attention-of-shared-tokens": on("h100x2", parallel="ring2"),
        "xdit": on("h100x2", parallel="xdit-ulysses2", task="img2img"),
        "shards-of-quantised-weights": on("h100x2", parallel="tp2", quantization="gguf-q8_0"),
        "fsdp-of-two-dtypes": on("h100x2", parallel="fsdp2", precision="fp16"),
        "fsdp-in-one-graph": on("h100x2", parallel="fsdp2", compilation="inductor-max"),
        "tensorrt-of-ranks": on("h100x2", parallel="ulysses2", compilation="tensorrt"),
        "parallel-vae-alone": on("h100x1", vae="parallel"),
        "threshold-cache-on-random-weights": on("h100x1", cache="teacache-0.4"),
        "replayed-cache-on-real-weights": on("h100x1", cache="replay-50"),
    }
    weights = {"threshold-cache-on-random-weights": "synthetic", "replayed-cache-on-real-weights": "tiny"}
    assert set(examples) == {rule.name for rule in RULES} - {"no-image"}
    assert {name: refused_by(row, weights.get(name)) for name, row in examples.items()} == {
        name: name for name in examples
    }


def test_a_stack_that_no_image_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today every stack that no other rule refuses has one; the next image may lack a package."""
    monkeypatch.setattr(stacks, "image_of", lambda _row: None)
    assert refused_by(on("h100x1")) == "no-image"


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("attention", ["cudnn", "native-flash", "flash2", "flash3", "sage1", "sage2"])
def test_half_precision_attention_is_refused_on_gpus_at_full_precision(
    attention: str, precision: str
) -> None:
    row = on("h100x1", attention=attention, precision=precision)
    assert refused_by(row) == "precision-of-kernel"
    assert f"attention {attention}" in str(refusal(row))


def test_torchs_flash_attention_takes_every_precision_on_the_cpu() -> None:
    assert refused_by(on("cpu", attention="native-flash", precision="fp32")) == ""


def test_quantos_int4_on_a_gpu_is_eager_and_in_half_precision() -> None:
    for precision in ("bf16", "fp16"):
        int4 = {"quantization": "quanto-int4", "precision": precision}
        assert refused_by(on("h100x1", **int4)) == ""
        assert refused_by(on("h100x1", **int4, compilation="inductor")) == "compiled-quanto-int4"
    assert refused_by(on("h100x1", quantization="quanto-int4", precision="fp32")) == "precision-of-kernel"


def test_fp8_weights_on_an_a100_are_refused_where_triton_would_have_to_read_them() -> None:
    for compilation in ("inductor", "inductor-max"):
        fp8 = {"quantization": "torchao-fp8wo", "compilation": compilation}
        assert refused_by(on("a100x1", **fp8)) == "compiled-fp8-weights"
        assert refused_by(on("h100x1", **fp8)) == ""
    assert refused_by(on("a100x1", quantization="torchao-fp8wo")) == ""


def test_triton_reads_float8_e4m3fn_from_the_compute_capability_that_the_rule_names(tmp_path: Path) -> None:
    """Compiled for GPUs that are not here, as inductor would."""
    pytest.importorskip("triton")
    program = tmp_path / "upcast.py"  # Triton reads a kernel's source
    program.write_text("""
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError

@triton.jit
def upcast(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at).to(tl.bfloat16))

def compiles(sm):
    types = {"source": "*fp8e4nv", "target": "*bf16", "BLOCK": "constexpr"}
    try:
        triton.compile(ASTSource(upcast, types, {"BLOCK": 128}), target=GPUTarget("cuda", sm, 32))
    except CompilationError as error:
        assert "fp8e4nv not supported" in str(error), error
        return False
    return True

print([sm for sm in (80, 86, 89, 90) if compiles(sm)])
""")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    able = [sm for sm in (80, 86, 89, 90) if sm >= stacks.TRITON_FP8_SM]
    assert done.stdout.strip() == str(able), done.stderr


def test_what_needs_hopper_is_refused_on_an_a100_and_nothing_on_a_gpu_that_no_rule_knows() -> None:
    for changes in ({"attention": "flash3"}, {"quantization": "torchao-fp8dq-row"}):
        assert refused_by(on("a100x8", **changes)) == "older-gpu"
        assert refused_by(on("h200x1", **changes)) == ""
        assert refused_by(on("b200x1", **changes)) == ""
    assert "b200" not in GPUS


def test_a_refusal_names_option_and_limit() -> None:
    assert str(refusal(on("a100x1", attention="flash3"))) == (
        "older-gpu: attention flash3 needs a GPU of compute capability 9.0, and an A100 has 8.0"
    )


def test_eager_torchao_dynamic_is_allowed_and_flagged_in_lists_and_results(
    make_row: Callable[..., Row],
) -> None:
    eager = make_row(hardware="h100x1", precision="bf16", quantization="torchao-int8dq")
    assert refused_by(eager) == ""
    assert [flag.name for flag in flags(eager)] == ["eager-torchao-dynamic"]
    assert as_dict(eager)["flags"] == ["eager-torchao-dynamic"]
    assert [anomaly.kind for anomaly in flagged(eager)] == ["eager-torchao-dynamic"]
    assert flags(eager.model_copy(update={"compilation": "inductor"})) == []
