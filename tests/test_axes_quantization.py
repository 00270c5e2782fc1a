"""Every quantisation on the trained tiny FLUX: nearly what fp32 draws, in fewer bytes, and it says how."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import tryout
from bench.axes import AXES
from bench.axes.option import NotApplied, Option, Session, Unavailable
from bench.axes.quantization import (
    census,
    layers,
    quantised,
    with_bitsandbytes,
    with_gguf,
    with_quanto,
    with_torchao,
)
from bench.axes.quantization.quantised import Work
from bench.matrix import Row

STEPS = 4
BNB_FOUR = "bitsandbytes.Linear4bit(Params4bit, uint8, {}, a scale for 64 weights)"
GGUF = "diffusers.GGUFLinear(GGUFParameter, uint8, {})"
INT8_WEIGHTS = "Linear(Int8Tensor, int8, a scale a row)"
QUANTO_INT8 = "optimum.QLinear(WeightQBytesTensor, int8, qint8, a scale a row)"
LEFT: dict[tuple[str, str], tuple[float, str]] = {
    ("quantization", "bnb-int8"): (
        8,
        "bitsandbytes.Linear8bitLt(Int8Params, int8, outliers beyond 6 apart)",
    ),
    ("quantization", "bnb-nf4"): (4.5, BNB_FOUR.format("nf4")),
    ("quantization", "bnb-fp4"): (4.5, BNB_FOUR.format("fp4")),
    ("quantization", "torchao-int8wo"): (8, INT8_WEIGHTS),
    ("quantization", "torchao-int8dq"): (
        8,
        "Linear(Int8Tensor, int8, a scale a row, inputs in int8, a scale a row)",
    ),
    ("quantization", "torchao-fp8wo"): (8, "Linear(Float8Tensor, float8_e4m3fn, a scale a row)"),
    ("quantization", "gguf-q8_0"): (8.5, GGUF.format("Q8_0")),
    ("quantization", "gguf-q5_1"): (6, GGUF.format("Q5_1")),
    ("quantization", "gguf-q4_1"): (5, GGUF.format("Q4_1")),
    ("quantization", "gguf-q4_0"): (4.5, GGUF.format("Q4_0")),
    ("quantization", "quanto-int8"): (8, QUANTO_INT8),
    ("quantization", "quanto-fp8"): (
        8,
        "optimum.QLinear(WeightQBytesTensor, float8_e4m3fn, qfloat8_e4m3fn, a scale a row)",
    ),
    ("quantization", "quanto-int4"): (
        4.25,
        "optimum.QLinear(TinyGemmWeightQBitsTensor, uint8, qint4, a scale for 128 weights)",
    ),
    ("quantization", "scaledmm-fp8-row"): (8, "bench.ScaledMmLinear(float8_e4m3fn, a scale a row)"),
    ("text_encoder", "bnb-nf4"): (4.5, BNB_FOUR.format("nf4")),
    ("text_encoder", "torchao-int8wo"): (8, INT8_WEIGHTS),
    ("text_encoder", "quanto-int8"): (8, QUANTO_INT8),
    ("text_encoder", "gguf-q8_0"): (8.5, GGUF.format("Q8_0")),
}
"""Every option that runs on a CPU -> bits a weight, scales of blocks included (a scale a row is little), and
what it leaves in the place of a linear."""

METHODS = {
    "torchao-fp8dq-row": with_torchao.fp8_dynamic_row,
    "torchao-fp8dq-tensor": with_torchao.fp8_dynamic_tensor,
}
GPU_ONLY = {"torchao-fp8dq-row", "torchao-fp8dq-tensor", "torchao-int4wo"}
PACKAGES = (with_bitsandbytes.PACKAGE, with_torchao.PACKAGE, with_quanto.PACKAGE, with_gguf.PACKAGE)


@pytest.fixture
def make_session(
    make_row: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Session]]:
    """A loaded row of the trained weights. GGUF files go to a folder of the test's own, and what torchao
    changes in inductor is put back."""
    import torch._inductor.config

    def make(**changes: Any) -> Session:
        session = tryout.session_of(make_row(**changes))
        session.run = partial(session.run, latents=True)
        return session

    monkeypatch.setenv(with_gguf.CACHE_VARIABLE, str(tmp_path / "gguf"))
    with torch._inductor.config.patch({}):
        yield make


@pytest.fixture(scope="module")
def plain_latents(make_row: Callable[..., Row]) -> Callable[..., Any]:
    """Of the first request in fp32, not quantised; by use case."""
    from bench.runner import models, tasks

    drawn: dict[tuple[str, str], Any] = {}

    def latents(task: str = "txt2img", control: str = "none") -> Any:
        if (task, control) not in drawn:
            row = make_row(task=task, control=control)
            request = tasks.manifest(row).request(0, 1)
            pipe = models.load(row, "tiny", "cpu").pipe
            drawn[task, control] = tasks.generate(pipe, row, request, latents=True, steps=STEPS).latents
        return drawn[task, control]

    return latents


def of(session: Session, axis: str) -> Option:
    return AXES[axis][session.row.stack[axis]]


def relative_error(latents: Any, expected: Any) -> float:
    return float((latents - expected).norm() / expected.norm())


def test_every_option_is_tested_here_or_needs_a_gpu_or_a_users_file() -> None:
    quantising = {(axis, id) for axis in ("quantization", "text_encoder") for id in AXES[axis]}
    elsewhere = {("quantization", id) for id in GPU_ONLY | {"none", "gguf-file"}} | {("text_encoder", "none")}
    assert quantising - elsewhere == set(LEFT)
    assert {id for id, option in AXES["quantization"].items() if option.needs_gpu} == GPU_ONLY


@pytest.mark.parametrize(("axis", "id"), LEFT)
def test_quantised_latents_are_near_those_of_fp32_and_the_weights_shrink(
    make_session: Callable[..., Session], plain_latents: Callable[..., Any], axis: str, id: str
) -> None:
    """quanto's int4 in bf16, as on a GPU: in fp32 it would compile an extension for a minute."""
    session = make_session(**{axis: id}, precision="bf16" if id == "quanto-int4" else "fp32")
    target = quantised.TRANSFORMER if axis == "quantization" else quantised.T5
    module = getattr(session.pipe, target.component)
    chosen = [linear.weight for name, linear in census.linears(module).items() if target.chosen(name)]
    weights, weight_bytes = sum(w.numel() for w in chosen), sum(w.nbytes for w in chosen)
    del chosen

    option = of(session, axis)
    option.apply(session)
    error = relative_error(session.run(steps=STEPS).latents, plain_latents())
    evidence = option.verify(session)

    assert 0 < error < option.latent_tolerance
    expected = (42, 27) if axis == "quantization" else (14, 12)
    assert (evidence["linears"], evidence["quantised"]) == expected
    assert evidence["kept"] == expected[0] - expected[1]
    bits, form = LEFT[axis, id]
    kept = "Linear(bfloat16)" if id == "quanto-int4" else "Linear(float32)"
    assert evidence["forms"] == {kept: evidence["kept"], form: evidence["quantised"]}
    assert evidence["misfits"] == {}
    left = weight_bytes - evidence["bytes_saved"]
    assert left * 8 / weights == pytest.approx(bits, rel=0.08), "real bits a weight"


@pytest.mark.parametrize(
    ("id", "task", "control"), [("torchao-int8wo", "txt2img", "canny"), ("gguf-q8_0", "img2img", "none")]
)
def test_quantised_transformers_serve_other_pipelines_and_leave_the_controlnet_plain(
    make_session: Callable[..., Session],
    plain_latents: Callable[..., Any],
    id: str,
    task: str,
    control: str,
) -> None:
    session = make_session(quantization=id, task=task, control=control)
    option = of(session, "quantization")
    option.apply(session)
    error = relative_error(session.run(steps=STEPS).latents, plain_latents(task, control))
    assert 0 < error < option.latent_tolerance
    evidence = option.verify(session)
    assert evidence["quantised"] == 27
    assert evidence["left_plain"] == ["controlnet"] * (control != "none")
    if control != "none":
        assert all(census.form(linear).plain for linear in census.linears(session.pipe.controlnet).values())


def test_a_quantisation_that_skips_every_layer_is_not_applied(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchao skips what its filter does not match, without a word."""
    import torchao.quantization

    session = make_session(quantization="torchao-int8wo")
    monkeypatch.setattr(torchao.quantization, "quantize_", lambda *_, **__: None)
    of(session, "quantization").apply(session)
    with pytest.raises(
        NotApplied, match=r"quantization torchao-int8wo: 27 of the 27 linears .*; \S+ is Linear\(float32\)$"
    ):
        of(session, "quantization").verify(session)


def test_a_quantisation_that_was_never_asked_is_not_applied(make_session: Callable[..., Session]) -> None:
    session = make_session(quantization="bnb-nf4")
    with pytest.raises(NotApplied, match="quantization bnb-nf4: nothing quantised the transformer"):
        of(session, "quantization").verify(session)


def test_one_linear_left_plain_without_a_reason_is_not_applied(make_session: Callable[..., Session]) -> None:
    import torch

    session = make_session(quantization="bnb-nf4")
    of(session, "quantization").apply(session)
    session.pipe.transformer.transformer_blocks[0].attn.to_q = torch.nn.Linear(256, 256)
    with pytest.raises(
        NotApplied, match=r"1 of the 27 linears .*; transformer_blocks\.0\.attn\.to_q is Linear\(float32\)"
    ):
        of(session, "quantization").verify(session)


@pytest.mark.parametrize(
    ("axis", "asked", "got"),
    [
        ("quantization", "bnb-nf4", "bnb-fp4"),
        ("quantization", "torchao-int8wo", "torchao-int8dq"),
        ("quantization", "torchao-int8dq", "torchao-int8wo"),
        ("quantization", "torchao-fp8wo", "torchao-int8wo"),
        ("quantization", "quanto-fp8", "quanto-int8"),
        ("quantization", "gguf-q4_0", "gguf-q4_1"),
        ("quantization", "scaledmm-fp8-row", "torchao-fp8wo"),
        ("text_encoder", "quanto-int8", "torchao-int8wo"),
        ("text_encoder", "bnb-nf4", "gguf-q8_0"),
    ],
)
def test_another_quantisation_than_was_asked_for_is_not_applied(
    make_session: Callable[..., Session], axis: str, asked: str, got: str
) -> None:
    session = make_session(**{axis: got})
    AXES[axis][got].apply(session)
    of(session, axis).verify(session)
    with pytest.raises(NotApplied, match=rf"{axis} {asked}: (27 of the 27|12 of the 12) linears .* are not"):
        AXES[axis][asked].verify(session)


@pytest.mark.parametrize(
    ("id", "constant", "value"), [("bnb-int8", "_OUTLIER_THRESHOLD", 0.0), ("bnb-nf4", "_BLOCK", 128)]
)
def test_another_setting_than_the_options_own_is_not_applied(
    make_session: Callable[..., Session],
    monkeypatch: pytest.MonkeyPatch,
    id: str,
    constant: str,
    value: float,
) -> None:
    """Read from the layers that it left, not from what was asked of them."""
    session = make_session(quantization=id)
    monkeypatch.setattr(with_bitsandbytes, constant, value)
    of(session, "quantization").apply(session)
    with pytest.raises(NotApplied, match=rf"{id}: 27 of the 27 linears .* is .*{value:g}"):
        of(session, "quantization").verify(session)


def test_quanto_that_would_quantise_at_every_product_is_not_applied(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not frozen, its linears hold the weights as they were."""
    import optimum.quanto

    monkeypatch.setattr(optimum.quanto, "quantize_weight", lambda weight, *_, **__: weight)
    session = make_session(quantization="quanto-int8")
    of(session, "quantization").apply(session)
    with pytest.raises(NotApplied, match=r"27 of the 27 .* is optimum\.QLinear\(float32\)"):
        of(session, "quantization").verify(session)


@pytest.mark.parametrize(
    ("id", "form"),
    [
        (
            "torchao-fp8dq-row",
            "Linear(Float8Tensor, float8_e4m3fn, a scale a row, inputs in float8, a scale a row)",
        ),
        (
            "torchao-fp8dq-tensor",
            "Linear(Float8Tensor, float8_e4m3fn, a scale a tensor, inputs in float8, a scale a tensor)",
        ),
    ],
)
def test_dynamic_fp8_is_told_by_what_it_does_with_inputs(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, id: str, form: str
) -> None:
    """TorchAO makes its tensors on any device; only their products want a GPU."""
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _granularity: None)
    monkeypatch.setattr(quantised, "_require", lambda *_: None)
    session = make_session(quantization=id, precision="bf16")
    asked = of(session, "quantization")
    quantised.option(id, "Dynamic", METHODS[id], package=with_torchao.PACKAGE).apply(session)
    assert asked.verify(session)["forms"][form] == 27
    (other,) = METHODS.keys() - {id}
    with pytest.raises(NotApplied, match=f"{other}: 27 of the 27"):
        AXES["quantization"][other].verify(session)


def test_a_linear_that_is_gone_is_not_applied(make_session: Callable[..., Session]) -> None:
    import torch

    session = make_session(quantization="bnb-nf4")
    of(session, "quantization").apply(session)
    session.pipe.transformer.transformer_blocks[0].attn.to_q = torch.nn.Identity()
    with pytest.raises(NotApplied, match="26 linears are quantised, and 27 were converted"):
        of(session, "quantization").verify(session)


def test_a_quantisation_that_saves_no_byte_is_not_applied(make_session: Callable[..., Session]) -> None:
    """What it replaced is held still, beside what it left."""
    session = make_session(quantization="scaledmm-fp8-row")
    transformer = session.pipe.transformer
    before = [linear.weight for linear in census.linears(transformer).values()]
    of(session, "quantization").apply(session)
    for number, weight in enumerate(before):
        transformer.register_buffer(f"before_{number}", weight.detach())
    with pytest.raises(NotApplied, match=r"the transformer occupies \d+ bytes, and did \d+"):
        of(session, "quantization").verify(session)


def test_linears_that_a_backend_cannot_take_stay_plain_and_are_counted_by_reason(
    make_session: Callable[..., Session],
) -> None:
    def misfit(in_features: int, _out_features: int) -> str | None:
        return layers.multiples_of(512, [("inputs", in_features)])

    session = make_session()
    option = quantised.option("picky", "Picky", with_bitsandbytes.nf4, misfit=misfit)
    option.apply(session)
    evidence = option.verify(session)
    assert evidence["misfits"] == {
        "256 inputs not divisible by 512": 22,
        "1280 inputs not divisible by 512": 3,
    }
    assert evidence["quantised"] == 2


def test_no_quantisation_is_refused_on_a_quantised_transformer(make_session: Callable[..., Session]) -> None:
    """torchao's weights report the module, dtype and element size of plain ones."""
    for id in ("torchao-fp8wo", "scaledmm-fp8-row"):
        session = make_session(quantization=id)
        of(session, "quantization").apply(session)
        with pytest.raises(NotApplied, match="should be plain, but transformer_blocks"):
            AXES["quantization"]["none"].verify(session)


def test_four_hundred_and_eighteen_linears_of_flux_are_chosen() -> None:
    from bench.runner import synthetic
    from bench.runner.published import published

    build = synthetic.constructors()["transformer"]
    flux = synthetic.on_meta(lambda: build(published("transformer").config))
    names = [name for name in census.linears(flux) if layers.in_flux_block(name)]
    assert (len(names), len(census.linears(flux))) == (418, 504)
    kept = {name.rpartition(".")[2] for name in census.linears(flux) if name not in names}
    assert not any("norm" in name for name in names)
    assert kept == {"linear", "linear_1", "linear_2", "x_embedder", "context_embedder", "proj_out"}


@pytest.mark.parametrize(
    ("axis", "id"),
    sorted({*LEFT, *(("quantization", id) for id in GPU_ONLY)} - {("quantization", "scaledmm-fp8-row")}),
)
def test_an_option_without_its_package_is_unavailable_and_names_the_command(
    make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, axis: str, id: str
) -> None:
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package.module, None)
    row = make_row(**{axis: id})
    with pytest.raises(Unavailable, match=rf"row 1 .*{axis} {id} needs .*pip install [a-z-]+==[0-9.]+$"):
        AXES[axis][id].require(row, "cpu")


def test_what_an_unavailable_option_tells_to_install_is_what_this_project_installs() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    pinned = project["optional-dependencies"]["quantization"]
    assert sorted(pinned) == sorted(package.requirement for package in PACKAGES)


@pytest.mark.parametrize("id", ["torchao-fp8dq-row", "torchao-fp8dq-tensor", "scaledmm-fp8-row"])
def test_fp8_arithmetic_is_unavailable_on_an_a100(
    make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, id: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(Unavailable, match=r"needs a GPU of compute capability 8\.9 and this one has 8\.0"):
        AXES["quantization"][id].require(make_row(quantization=id), "cuda")


def test_quantos_int4_without_a_compiler_is_unavailable_in_fp32(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless its extension was compiled before, as it is in the cpu image."""
    from optimum.quanto.library.extensions.extension import get_extension

    session = make_session(quantization="quanto-int4")
    monkeypatch.setattr(get_extension("quanto_cpp"), "build_directory", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match=r"quanto-int4 in fp32 .*needs ninja and g\+\+; .*precision bf16"):
        of(session, "quantization").apply(session)


def test_quantos_int4_in_fp16_on_a_gpu_wants_the_extension_that_was_compiled_before(
    make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For this torch; nothing is compiled then and there, even with a compiler at hand."""
    import torch
    from optimum.quanto.library.extensions import extension

    of_gpus = SimpleNamespace(build_directory=str(tmp_path), _lib=None)
    monkeypatch.setitem(extension._extensions, "quanto_cuda", of_gpus)
    monkeypatch.setattr(with_quanto, "_convert", lambda qtype, _work: {"converted to": qtype})
    row = make_row(quantization="quanto-int4", precision="fp16", hardware="h100x1")
    session = SimpleNamespace(row=row, device="cuda", dtype=torch.float16)
    work = Work(cast(Session, session), "row 1: quantization quanto-int4", "transformer", None, [])
    advice = r"quanto-int4 in fp16 needs Quanto's CUDA extension, .*docker/build_quanto.py .*precision bf16"
    (tmp_path / "quanto_cuda.so").write_bytes(b"")
    (tmp_path / "pytorch_version.txt").write_text("1.0\n")
    with pytest.raises(Unavailable, match=advice):
        with_quanto.int4.convert(work)
    (tmp_path / "pytorch_version.txt").write_text(torch.__version__)
    of_gpus._lib = object()  # as if it had been loaded
    assert with_quanto.int4.convert(work) == {"converted to": "qint4"}
    session.dtype, of_gpus.build_directory = torch.bfloat16, "/nowhere"
    assert with_quanto.int4.convert(work) == {"converted to": "qint4"}, (
        "torch has a kernel of its own for bf16"
    )


def test_torchao_tells_what_it_changed_in_inductor_and_that_dynamic_needs_compile(
    make_session: Callable[..., Session],
) -> None:
    import torch._inductor.config

    session = make_session(quantization="torchao-int8dq")
    with torch._inductor.config.patch(coordinate_descent_tuning=False):
        of(session, "quantization").apply(session)
        evidence = of(session, "quantization").verify(session)
    assert evidence["inductor_settings_changed"]["coordinate_descent_tuning"] == ["False", "True"]
    assert "torch.compile" in evidence["anomaly"]


def test_our_fp8_linear_computes_the_product_of_what_it_stores() -> None:
    import torch

    from bench.axes.quantization.fp8_linear import ScaledMmLinear, to_fp8_rows

    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 128)
    hidden = torch.randn(2, 24, 256)
    hidden[0, 0] = 0
    fp8 = ScaledMmLinear(linear)
    rows, scale = to_fp8_rows(hidden)
    with torch.no_grad():
        product, float_product = fp8(hidden), linear(hidden)
        stored = (rows.float() * scale) @ (fp8.weight.float() * fp8.weight_scale.t()).t() + linear.bias
    assert product.shape == (2, 24, 128)
    assert product.isfinite().all()
    assert relative_error(product, stored) < 2**-8, "bf16's rounding"
    assert relative_error(product, float_product) < 0.04, "two factors with three bits of mantissa"


def test_our_fp8_linear_is_one_graph_without_a_break() -> None:
    import torch

    from bench.axes.quantization.fp8_linear import ScaledMmLinear

    torch._dynamo.reset()
    fp8 = ScaledMmLinear(torch.nn.Linear(64, 32))
    hidden = torch.randn(3, 64)
    explained = torch._dynamo.explain(fp8)(hidden)
    torch._dynamo.reset()
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
