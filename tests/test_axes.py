"""Every option on a real pipeline: applied, it leaves evidence; broken on purpose, it is NotApplied."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from bench import tryout
from bench.axes import AXES, require
from bench.axes.attention import backends
from bench.axes.option import NotApplied, Option, Session, Unavailable
from bench.matrix import AXIS_NAMES, BASELINE, Row

MakeSession = Callable[..., Session]


@pytest.fixture
def make_session(make_row: Callable[..., Row], tiny_weights: Any) -> Iterator[MakeSession]:
    """A loaded row in which nothing is applied yet. Puts back what is global to the process."""
    import torch
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    def make(**changes: Any) -> Session:
        session = tryout.session_of(make_row(**changes))
        session.run = partial(session.run, steps=1)
        return session

    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield make
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switches
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    torch._dynamo.reset()


def option(axis: str, session: Session) -> Option:
    return AXES[axis][getattr(session.row, axis)]


def apply(axis: str, session: Session) -> Option:
    chosen = option(axis, session)
    chosen.apply(session)
    return chosen


def test_axes_stand_in_column_order_and_import_without_torch() -> None:
    assert tuple(AXES) == AXIS_NAMES
    code = "import sys, bench.axes; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [
        ("fp32", "float32", (False, False)),
        ("tf32", "float32", (True, True)),
        ("fp16", "float16", (False, True)),
        ("bf16", "bfloat16", (False, True)),
    ],
)
def test_precision_counts_parameters_by_dtype_and_reads_the_switches(
    make_session: MakeSession, precision: str, dtype: str, tf32: tuple[bool, bool]
) -> None:
    session = make_session(precision=precision)
    evidence = apply("precision", session).verify(session)
    total = sum(parameter.numel() for parameter in session.pipe.transformer.parameters())
    assert evidence["parameters"]["transformer"] == {dtype: total}
    assert evidence["prediction"] == dtype
    assert (evidence["tf32_matmul"], evidence["tf32_cudnn"]) == tf32


def test_precision_fp16_keeps_the_layers_of_t5_that_overflow_in_float32(make_session: MakeSession) -> None:
    session = make_session(precision="fp16")
    evidence = apply("precision", session).verify(session)
    assert set(evidence["parameters"]["text_encoder_2"]) == {"float16", "float32"}
    assert set(evidence["parameters"]["text_encoder"]) == {"float16"}


def test_precision_with_one_component_in_another_dtype_is_not_applied(make_session: MakeSession) -> None:
    import torch

    session = make_session(precision="bf16")
    chosen = apply("precision", session)
    session.pipe.vae.to(torch.float32)
    with pytest.raises(NotApplied, match="precision bf16: vae holds parameters"):
        chosen.verify(session)


def test_precision_fp32_with_tf32_left_on_is_not_applied(make_session: MakeSession) -> None:
    import torch

    session = make_session(precision="fp32")
    chosen = apply("precision", session)
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(NotApplied, match="TF32 switches"):
        chosen.verify(session)


@pytest.mark.parametrize(
    ("quantization", "stored"), [("torchao-int8wo", "int8"), ("scaledmm-fp8-row", "float8_e4m3fn")]
)
def test_precision_counts_what_quantised_weights_hold_and_asks_it_of_the_others(
    make_session: MakeSession, quantization: str, stored: str
) -> None:
    """A TorchAO weight reports the dtype that it replaced, and ours is no parameter."""
    import torch

    session = make_session(precision="bf16", quantization=quantization)
    transformer = session.pipe.transformer
    total = sum(parameter.numel() for parameter in transformer.parameters())
    with torch._inductor.config.patch({}):
        apply("quantization", session)
        counts = apply("precision", session).verify(session)["parameters"]["transformer"]
    assert counts[stored] > 0.5 * total, "the linears of the blocks"
    assert counts[stored] + counts["bfloat16"] >= total
    transformer.proj_out.to(torch.float32)
    with pytest.raises(NotApplied, match="precision bf16: transformer holds parameters"):
        option("precision", session).verify(session)


@pytest.mark.parametrize(
    ("precision", "matmul", "cudnn", "says"),
    [
        ("fp32", 1e-7, 1e-7, None),
        ("fp32", 3e-4, 1e-7, "matmul rounds float32 to TF32"),
        ("fp32", 1e-7, 3e-4, "cudnn rounds float32 to TF32"),
        ("tf32", 3e-4, 3e-4, None),
        ("tf32", 1e-7, 3e-4, "matmul is exact to 1.0e-07, so TF32 did not run"),
        ("bf16", 1e-7, 3e-4, None),
        ("bf16", 3e-4, 3e-4, "matmul rounds float32 to TF32"),
    ],
)
def test_the_rounding_of_products_on_a_gpu_tells_whether_tf32_ran(
    monkeypatch: pytest.MonkeyPatch, precision: str, matmul: float, cudnn: float, says: str | None
) -> None:
    """As a GPU with TF32 would round; the products themselves are computed here."""
    import torch

    from bench.axes import precision as axis

    measured = {torch.matmul: matmul, torch.nn.functional.conv2d: cudnn}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(axis, "_relative_error", lambda product, *_: measured[product])
    if says is None:
        found = axis._float32_rounding(precision, "cpu:0")
        assert found == {"float32_relative_error": {"matmul": matmul, "cudnn": cudnn}}
    else:
        with pytest.raises(NotApplied, match=f"precision {precision}: {says}"):
            axis._float32_rounding(precision, "cpu:0")


@pytest.mark.parametrize(("attention", "backend"), [("sdpa", "native"), ("native-flash", "_native_flash")])
def test_attention_is_on_every_processor_and_in_the_profile(
    make_session: MakeSession, attention: str, backend: str
) -> None:
    session = make_session(attention=attention, control="canny")
    evidence = apply("attention", session).verify(session)
    blocks = session.pipe.transformer.config.num_layers + session.pipe.transformer.config.num_single_layers
    assert evidence["backend"] == backend
    assert evidence["processors"] == {"transformer": blocks, "controlnet": 1}
    assert evidence["operations_in_one_step"] == {
        "aten::_scaled_dot_product_flash_attention_for_cpu": blocks + 1
    }, "one attention a block, the ControlNet's too, and none of the VAE or the text encoders"


@pytest.mark.parametrize("cache", ["none", "teacache-0.25"])
@pytest.mark.parametrize("component", ["transformer", "controlnet"])
def test_one_attention_that_goes_another_way_is_not_applied(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, component: str, cache: str
) -> None:
    """Also where a cache calls the ControlNet inside the transformer's call."""
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    session = make_session(control="canny", cache=cache)
    chosen = apply("attention", session)
    apply("cache", session)
    assert sum(chosen.verify(session)["operations_in_one_step"].values()) == 5
    part = getattr(session.pipe, component)
    processor = part.single_transformer_blocks[0].attn.processor
    plainly = FluxAttnProcessor.__call__

    def another(self: Any, attn: Any, hidden: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        return hidden if self is processor else plainly(self, attn, hidden, text, *args, **kwargs)

    monkeypatch.setattr(FluxAttnProcessor, "__call__", another)
    with pytest.raises(NotApplied, match="attention sdpa: 4 of 5 attention calls of one step"):
        chosen.verify(session)


def test_cudnn_is_set_under_diffusers_name_for_it(make_session: MakeSession) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    session = make_session(attention="cudnn", control="canny")
    session.device = "cuda"
    apply("attention", session)
    for part in (session.pipe.transformer, session.pipe.controlnet):
        backends = {m.processor._attention_backend for m in part.modules() if hasattr(m, "processor")}
        assert backends == {AttentionBackendName._NATIVE_CUDNN}


def test_inductors_norms_before_attention_are_no_attention_kernels(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names a kernel after all that it fused, and after what reads it."""
    cudnn = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_cga1x1x1"
    norm = "triton_red_fused__fused_rms_norm__scaled_dot_product_cudnn_attention__to_copy_add_mul_neg_1"
    seen = {"aten::_scaled_dot_product_cudnn_attention": 4}, {cudnn: 4, norm: 4}
    monkeypatch.setattr(backends, "profile_step", lambda _session: seen)
    session = make_session()
    assert apply("attention", session).verify(session)["kernels_in_one_step"] == {cudnn: 4}


def test_attention_sdpa_replaces_what_an_earlier_row_left_as_the_process_default(
    make_session: MakeSession,
) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    apply("attention", make_session(attention="native-flash"))
    session = make_session(attention="sdpa")
    with pytest.raises(NotApplied, match="attention sdpa: 4 of 4 processors"):
        option("attention", session).verify(session)
    apply("attention", session).verify(session)
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE


def test_attention_missing_on_one_processor_is_not_applied(make_session: MakeSession) -> None:
    session = make_session(attention="native-flash")
    chosen = apply("attention", session)
    session.pipe.transformer.single_transformer_blocks[2].attn.processor._attention_backend = None
    with pytest.raises(NotApplied, match="attention native-flash: 1 of 4 processors of the transformer"):
        chosen.verify(session)


def test_attention_whose_kernel_is_another_is_not_applied(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend is set everywhere and dispatches to plain arithmetic: only the profile can tell."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def plain(query: Any, key: Any, value: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            heads_first = (tensor.permute(0, 2, 1, 3) for tensor in (query, key, value))
            return scaled_dot_product_attention(*heads_first).permute(0, 2, 1, 3)

    session = make_session(attention="native-flash")
    chosen = apply("attention", session)
    flash = AttentionBackendName._NATIVE_FLASH
    monkeypatch.setitem(_AttentionBackendRegistry._backends, flash, plain)
    monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, flash, {"query", "key", "value"})
    with pytest.raises(NotApplied, match="0 of 4 attention calls"):
        chosen.verify(session)


@pytest.mark.parametrize(
    ("axis", "option"), [(axis, id) for axis in AXES for id, option in AXES[axis].items() if option.needs_gpu]
)
def test_an_option_of_gpus_is_unavailable_on_a_cpu_by_name_and_with_what_to_use_there(
    make_row: Callable[..., Row], axis: str, option: str
) -> None:
    needs = f"{axis} {option} needs an NVIDIA GPU and this row runs on the CPU"
    says = rf"row 1 .*: {needs}; .*or use {axis} {BASELINE[axis]} there"
    with pytest.raises(Unavailable, match=says):
        require(make_row(**{axis: option}), "cpu")


def test_vae_full_decodes_the_whole_image_at_once(make_session: MakeSession) -> None:
    session = make_session(vae="full")
    chosen = apply("vae", session)
    assert chosen.verify(session) == {"decoder_calls": 1, "latents": [1, 16, 16, 16]}
    session.pipe.vae.enable_tiling()
    session.pipe.vae.tile_latent_min_size = 8
    with pytest.raises(NotApplied, match="vae full"):
        chosen.verify(session)


def test_vae_tiled_really_tiles_an_image_of_the_models_own_size(make_session: MakeSession) -> None:
    """At ``sample_size`` diffusers' ``enable_tiling`` decodes in one piece; ours is half as wide."""
    session = make_session(vae="tiled")
    assert session.pipe.vae.config.sample_size == session.row.size
    evidence = apply("vae", session).verify(session)
    assert (evidence["tiles_decoded"], evidence["tile_pixels"], evidence["tile_latents"]) == (9, 64, 8)


def test_vae_tiled_decodes_a_tile_as_a_picture_of_its_own(make_session: MakeSession) -> None:
    """Seen in the first tile, up to where the next ones overlap it."""
    import torch

    session = make_session(vae="tiled")
    latents = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = session.pipe.vae.decode(latents[..., :8, :8], return_dict=False)[0]
        apply("vae", session)
        tiled = session.pipe.vae.decode(latents, return_dict=False)[0]
    assert tiled.shape[-2:] == (128, 128)
    own = slice(0, 48)
    assert torch.allclose(tiled[..., own, own], alone[..., own, own], atol=1e-4)


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_vae_tiled_decodes_in_tiles_and_starts_from_the_same_latents(
    make_session: MakeSession, task: str
) -> None:
    from bench.runner import tasks

    def latents(vae: str) -> Any:
        session = make_session(vae=vae, task=task)
        apply("vae", session)
        request = tasks.manifest(session.row).request(0, 1)
        return tasks.generate(session.pipe, session.row, request, steps=2, latents=True).latents

    assert latents("tiled").equal(latents("full"))


def test_vae_tiling_as_diffusers_enables_it_is_not_applied(make_session: MakeSession) -> None:
    session = make_session(vae="tiled")
    session.pipe.vae.enable_tiling()
    with pytest.raises(NotApplied, match=r"vae tiled: the decoder ran 1 time\(s\).*tiling is on"):
        option("vae", session).verify(session)


def test_vae_sliced_decodes_images_one_by_one(make_session: MakeSession) -> None:
    session = make_session(vae="sliced")
    with pytest.raises(NotApplied, match=r"vae sliced: .* batches of \[2\]"):
        option("vae", session).verify(session)
    assert apply("vae", session).verify(session)["slices_of_two_images"] == 2


@pytest.mark.parametrize("axis", ["quantization", "text_encoder"])
def test_unquantised_is_refused_when_a_weight_is_not_a_float(make_session: MakeSession, axis: str) -> None:
    import torch

    session = make_session()
    evidence = apply(axis, session).verify(session)
    assert evidence["linears"] > 0
    assert evidence["quantised"] == 0
    part = session.pipe.transformer if axis == "quantization" else session.pipe.text_encoder_2
    linear = [child for child in part.modules() if isinstance(child, torch.nn.Linear)][-1]
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(NotApplied, match=rf"{axis} none.*Linear\(int8\)"):
        option(axis, session).verify(session)


@pytest.mark.parametrize("task", ["txt2img", "img2img"])
def test_no_cache_computes_every_step(make_session: MakeSession, task: str) -> None:
    session = make_session(task=task)
    assert apply("cache", session).verify(session) == {"cache_enabled": False, "transformer_calls": 2}


def test_a_cache_left_on_is_not_no_cache(make_session: MakeSession) -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    session = make_session()
    session.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(NotApplied, match="cache none"):
        apply("cache", session).verify(session)


def test_one_device_is_refused_in_a_process_group(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    session = make_session()
    assert apply("parallel", session).verify(session) == {"ranks": 1}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(NotApplied, match="one of 2 ranks"):
        option("parallel", session).verify(session)
