"""torch.compile on a real pipeline: graphs are counted, and a compile that did not happen is NotApplied."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from bench import tryout
from bench.axes import AXES
from bench.axes.compilation import tensorrt, whole
from bench.axes.compilation.graphs import blocks, graphs_compiled
from bench.axes.option import NotApplied, Session, Unavailable
from bench.matrix import Row
from bench.rules import refusal

INDUCTOR = AXES["compilation"]["inductor"]
INDUCTOR_MAX = AXES["compilation"]["inductor-max"]
TENSORRT = AXES["compilation"]["tensorrt"]
FUSED = AXES["compilation"]["inductor-fused"]


@pytest.fixture
def make_session(make_row: Callable[..., Row], tiny_weights: Any) -> Iterator[Callable[..., Session]]:
    """A loaded row in which nothing is compiled yet; its ``run`` takes ``images`` too."""
    import torch

    def make(**changes: Any) -> Session:
        session = tryout.session_of(make_row(compilation="inductor", **changes))
        session.run = partial(session.run, steps=1)
        return session

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield make
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    """With a ControlNet, whose blocks diffusers alone would leave uncompiled."""
    return make_session(control="canny")


@pytest.fixture
def only_captured() -> Iterator[None]:
    """Inductor's C++ compiler is put to work in one test only."""
    with tryout.captured_only():
        yield


def test_inductor_compiles_the_blocks_and_paints_the_same_image(make_session: Callable[..., Session]) -> None:
    import numpy as np

    session = make_session()
    eager = session.run().images
    INDUCTOR.apply(session)
    compiled = session.run().images
    evidence = INDUCTOR.verify(session)
    assert evidence["blocks"] == {"transformer": 4}
    assert 2 <= evidence["graphs"] <= 3, "one graph a kind of block and layout, shared by all of them"
    assert evidence["graph_breaks"] == 0
    assert evidence["recompiles_after_warm_up"] == 0
    assert np.abs(eager.astype(int) - compiled.astype(int)).max() <= 1


def test_inductor_compiles_the_controlnet_and_each_batch_on_its_own(
    session: Session, only_captured: None
) -> None:
    INDUCTOR.apply(session)
    session.run()
    evidence = INDUCTOR.verify(session)
    assert evidence["blocks"] == {"transformer": 4, "controlnet": 1}
    before = graphs_compiled()
    for images in (2, 3):
        session.run(images=images)
        assert graphs_compiled() == images * before, "another batch is another static shape for each graph"
    assert INDUCTOR.verify(session)["recompiles_after_warm_up"] == 0, "the first shape is still compiled"


def test_inductor_counts_what_compiles_after_the_warm_up(
    make_session: Callable[..., Session], only_captured: None
) -> None:
    import torch

    session = make_session()
    INDUCTOR.apply(session)
    session.run()
    torch._dynamo.reset()
    assert INDUCTOR.verify(session)["recompiles_after_warm_up"] > 0


@pytest.fixture
def breaking_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' attention with a call that no graph can hold."""
    import torch
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    whole = FluxAttnProcessor.__call__

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        torch._dynamo.graph_break()
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(FluxAttnProcessor, "__call__", broken)


def test_a_block_that_is_no_whole_graph_is_an_error(
    make_session: Callable[..., Session], only_captured: None, breaking_processor: None
) -> None:
    import torch

    session = make_session()
    INDUCTOR.apply(session)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        session.run()


def test_blocks_in_pieces_are_not_applied(
    make_session: Callable[..., Session], only_captured: None, breaking_processor: None
) -> None:
    session = make_session()
    for block in blocks(session.pipe)["transformer"]:
        block.compile()
    with pytest.raises(NotApplied, match=r"compilation inductor: \d+ graph breaks, the first because of"):
        INDUCTOR.verify(session)


def test_inductor_not_applied_is_not_applied(session: Session) -> None:
    with pytest.raises(NotApplied, match="0 of 4 blocks of the transformer compiled"):
        INDUCTOR.verify(session)


def test_inductor_on_all_but_one_block_is_not_applied(session: Session) -> None:
    INDUCTOR.apply(session)
    session.pipe.transformer.single_transformer_blocks[1]._compiled_call_impl = None
    with pytest.raises(NotApplied, match="3 of 4 blocks of the transformer compiled"):
        INDUCTOR.verify(session)


def test_blocks_that_are_marked_but_run_eagerly_are_not_applied(session: Session) -> None:
    """As under TORCH_COMPILE_DISABLE: everything is set, nothing is compiled."""
    import torch

    INDUCTOR.apply(session)
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(NotApplied, match="dynamo compiled no graph"),
    ):
        INDUCTOR.verify(session)


def test_a_compiled_block_is_not_eager(session: Session) -> None:
    assert AXES["compilation"]["none"].verify(session) == {"compiled_blocks": 0}
    INDUCTOR.apply(session)
    with pytest.raises(NotApplied, match="compilation none: 5 blocks are compiled"):
        AXES["compilation"]["none"].verify(session)


def test_inductor_without_a_compiler_is_unavailable_before_the_first_request(session: Session) -> None:
    import torch._inductor.config

    # Inductor's own way: what monkeypatch puts back there is hidden from everybody after it.
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(Unavailable, match=r"row 1 .*needs a C\+\+ compiler.*g\+\+"):
        INDUCTOR.require(session.row, "cpu")


@pytest.mark.parametrize("option", ["inductor", "inductor-max", "inductor-fused", "inductor-graphs"])
def test_the_processes_that_compile_kernels_start_before_the_weights_load(
    option: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import async_compile

    started: list[str] = []
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(async_compile, "maybe_warm_pool", lambda: started.append(option))
    AXES["compilation"][option].require(session.row, "cuda")
    assert started == [option]


def test_inductor_max_makes_one_graph_of_the_transformer_and_one_of_the_controlnet(
    session: Session, only_captured: None
) -> None:
    INDUCTOR_MAX.apply(session)
    session.run()
    evidence = INDUCTOR_MAX.verify(session)
    assert evidence["components"] == ["controlnet", "transformer"]
    assert evidence["settings"] == {
        "max_autotune": True,
        "coordinate_descent_tuning": True,
        "triton.cudagraphs": False,
    }
    assert (evidence["graphs"], evidence["graph_breaks"], evidence["recompiles_after_warm_up"]) == (2, 0, 0)


def test_what_other_axes_prove_is_still_seen_around_a_whole_graph(
    session: Session, only_captured: None
) -> None:
    """Hooks on layers inside a compiled forward are not called."""
    others = [AXES[axis][session.row.stack[axis]] for axis in ("precision", "attention", "cache")]
    for option in (*others, INDUCTOR_MAX):
        option.apply(session)
    session.run()
    assert all(option.verify(session) for option in others)


@pytest.mark.parametrize("mode", ["default", "max-autotune", "reduce-overhead"])
def test_inductor_max_in_another_mode_is_not_applied(
    make_session: Callable[..., Session], only_captured: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Read from what was compiled. With CUDA graphs an output would lie where the next call writes."""
    session = make_session()
    plainly = whole.compile_forward
    monkeypatch.setattr(whole, "compile_forward", lambda session, **_: plainly(session, mode=mode))
    INDUCTOR_MAX.apply(session)
    with pytest.raises(NotApplied, match=r"inductor-max: the transformer is compiled with .*max_autotune"):
        INDUCTOR_MAX.verify(session)


def test_inductor_max_without_a_choice_by_timing_is_not_applied_on_a_gpu(
    make_session: Callable[..., Session], only_captured: None
) -> None:
    """Nothing is tuned where graphs are only captured, as on a GPU with too few multiprocessors."""
    session = make_session()
    INDUCTOR_MAX.apply(session)
    assert INDUCTOR_MAX.verify(session)["choices_by_timing"] == 0, "no matter on a CPU"
    session.device = "cuda"
    with pytest.raises(NotApplied, match="no kernel was chosen by its timing; the cache was cold"):
        INDUCTOR_MAX.verify(session)
    whole.require_choices(0, "warm")
    whole.require_choices(7, "cold")


def test_inductor_max_counts_what_its_compiler_chose_by_timing(session: Session, only_captured: None) -> None:
    from torch._inductor.select_algorithm import get_algorithm_selector_cache

    INDUCTOR_MAX.apply(session)
    session.run()
    for tell in get_algorithm_selector_cache().feedback_saver_fns[-1:]:
        tell({}, "mm", [], [], None, {})
        tell({}, "addmm", [], [], None)
    assert INDUCTOR_MAX.verify(session)["choices_by_timing"] == 2


def test_inductor_max_without_the_controlnet_is_not_applied(session: Session) -> None:
    INDUCTOR_MAX.apply(session)
    del session.pipe.controlnet.forward
    with pytest.raises(NotApplied, match="compilation inductor-max: the controlnet is not compiled"):
        INDUCTOR_MAX.verify(session)


def test_a_whole_model_that_is_marked_but_runs_eagerly_is_not_applied(session: Session) -> None:
    import torch

    INDUCTOR_MAX.apply(session)
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(NotApplied, match="2 components are marked for it, but dynamo compiled 0 graphs"),
    ):
        INDUCTOR_MAX.verify(session)


def test_a_compiled_transformer_is_not_eager(session: Session) -> None:
    INDUCTOR_MAX.apply(session)
    with pytest.raises(NotApplied, match="compilation none: the transformer is compiled as a whole"):
        AXES["compilation"]["none"].verify(session)


def test_tensorrt_without_its_package_is_unavailable(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "find_spec", lambda _name: None)
    with pytest.raises(Unavailable, match=r"not installed; pip install torch-tensorrt==2\.11\.0"):
        TENSORRT.require(session.row, "cuda")


def test_tensorrt_never_asked_is_not_applied(session: Session) -> None:
    with pytest.raises(NotApplied, match="the transformer and the controlnet are not compiled"):
        TENSORRT.verify(session)


@pytest.mark.parametrize(
    ("operations", "says"),
    [
        ({"aten::mul": 10}, "one step of 2 components ran 0 engines"),
        ({tensorrt.ENGINE: 1}, "one step of 2 components ran 1 engines"),
        (
            {tensorrt.ENGINE: 2, "aten::addmm": 418},
            r"2 engines one step ran \{'aten::addmm': 418\} in torch",
        ),
        ({tensorrt.ENGINE: 2, "aten::_scaled_dot_product_cudnn_attention": 57}, "cudnn_attention': 57"),
    ],
)
def test_tensorrt_beside_products_that_torch_computes_is_not_applied(
    operations: dict[str, int], says: str
) -> None:
    """Torch-TensorRT runs in torch what it could not convert: everything, if need be."""
    with pytest.raises(NotApplied, match=says):
        tensorrt.require_engines(operations, components=2)
    assert tensorrt.require_engines({tensorrt.ENGINE: 3, "aten::mul": 10}, components=2) == 3


def test_attention_that_tensorrt_left_to_torch_is_not_applied(make_session: Callable[..., Session]) -> None:
    session = make_session()
    session.row = session.row.model_copy(update={"compilation": "tensorrt"})
    sdpa = AXES["attention"]["sdpa"]
    sdpa.apply(session)
    with pytest.raises(NotApplied, match=r"sdpa: TensorRT left attention to torch; one step ran .*: 4"):
        sdpa.verify(session)


@pytest.fixture
def torch_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Torch-TensorRT: a backend that takes its settings and, as TensorRT, no float64."""
    import torch
    from torch._dynamo.backends import registry

    def compiled(graph: Any, _inputs: Any, options: dict[str, Any]) -> Any:
        def in_double(node: Any) -> bool:
            return getattr(node.meta.get("example_value"), "dtype", None) is torch.float64

        if not options.get("truncate_double") and any(map(in_double, graph.graph.nodes)):
            raise RuntimeError("TensorRT has no float64")
        return graph.forward

    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    monkeypatch.setattr(tensorrt, "find_spec", lambda _name: True)
    monkeypatch.setitem(registry._BACKENDS, "tensorrt", None)
    monkeypatch.setitem(registry._COMPILER_FNS, "tensorrt", compiled)


def test_tensorrt_takes_flux_whose_frequencies_are_in_float64(
    make_session: Callable[..., Session], torch_tensorrt: None
) -> None:
    """And a graph that ran in torch, whoever compiled it, is not applied."""
    session = make_session()
    session.device = "cuda"
    TENSORRT.apply(session)
    session.device = "cpu"
    assert session.run().finite
    with pytest.raises(NotApplied, match="one step of 1 components ran 0 engines"):
        TENSORRT.verify(session)


@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint"])
@pytest.mark.parametrize("control", ["none", "canny"])
def test_what_is_rearranged_paints_the_same_latents(
    make_session: Callable[..., Session], only_captured: None, task: str, control: str
) -> None:
    session = make_session(task=task, control=control)
    plain = session.run(steps=3, latents=True).latents
    FUSED.apply(session)
    for _ in range(2):
        rearranged = session.run(steps=3, latents=True).latents
        assert (rearranged - plain).norm() <= 1e-5 * plain.norm()


def test_a_batch_of_another_size_has_modulation_of_its_own_and_the_first_finds_its_place_again(
    make_session: Callable[..., Session], only_captured: None
) -> None:
    session = make_session()
    one, two = (session.run(steps=2, images=images, latents=True).latents for images in (1, 2))
    FUSED.apply(session)
    session.run(steps=2, images=1)
    last = session.pipe.transformer.norm_out.linear
    place = last.row.data_ptr()
    assert (session.run(steps=2, images=2, latents=True).latents - two).norm() <= 1e-5 * two.norm()
    assert (session.run(steps=2, images=1, latents=True).latents - one).norm() <= 1e-5 * one.norm()
    assert last.row.data_ptr() == place, "a captured graph reads it there"


def test_evidence_of_rearranged_blocks_counts_each_part(
    make_session: Callable[..., Session], only_captured: None
) -> None:
    session = make_session(control="canny")
    with pytest.raises(NotApplied, match="0 of 4 blocks of the transformer compiled"):
        FUSED.verify(session)
    FUSED.apply(session)
    session.run()
    evidence = FUSED.verify(session)
    transformer, controlnet = session.pipe.transformer, session.pipe.controlnet
    doubles, singles = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    assert (len(controlnet.transformer_blocks), len(controlnet.single_transformer_blocks)) == (0, 1)
    assert evidence["split_single_blocks"] == {"transformer": singles, "controlnet": 1}
    gelus = {"transformer": 2 * doubles + singles, "controlnet": 1}
    assert evidence["gelus_in_products"] == gelus, "image and text stream"
    assert set(evidence["gelus_in_quantisation"].values()) == {0}, "nothing is quantised"
    assert evidence["rotary_processors"] == {"transformer": doubles + singles, "controlnet": 1}
    assert evidence["operators_in_one_step"] == {
        "fluxbench_fused::rms_norm_rotary": 2 * (doubles + singles + 1),
        "fluxbench_fused::linear_gelu": sum(gelus.values()),
        "fluxbench_fused::gelu_to_fp8_rows": 0,
    }
    norms = 2 * doubles + singles + 1  # and the last norm
    assert evidence["modulation"]["transformer"] == {"norms": norms, "products_in_two_steps": norms}
    assert evidence["vae_blocks"] > 0
    assert evidence["recompiles_after_warm_up"] == 0
    compiled = graphs_compiled()
    FUSED.verify(session)
    assert graphs_compiled() == compiled, "to look compiles nothing"


def test_rearranged_blocks_in_fp8_move_every_gelu_and_are_still_seen_as_quantised(
    make_session: Callable[..., Session], only_captured: None
) -> None:
    session = make_session(quantization="scaledmm-fp8-row", control="canny")
    plain = session.run(steps=2, latents=True).latents
    quantised = AXES["quantization"]["scaledmm-fp8-row"]
    quantised.apply(session)
    FUSED.apply(session)
    assert (session.run(steps=2, latents=True).latents - plain).norm() <= 0.04 * plain.norm()
    evidence = FUSED.verify(session)
    transformer = session.pipe.transformer
    doubles, singles = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    assert evidence["gelus_in_quantisation"] == {"transformer": 2 * doubles + singles, "controlnet": 0}
    assert evidence["gelus_in_products"]["transformer"] == 0
    assert evidence["gelus_in_products"]["controlnet"] > 0, "whose linears stay plain"
    in_quantisation = evidence["operators_in_one_step"]["fluxbench_fused::gelu_to_fp8_rows"]
    assert in_quantisation == 2 * doubles + singles
    linears = quantised.verify(session)
    assert linears["quantised"] == len(session.notes["quantization"].chosen) + singles, "proj_out is two now"


def test_rearranged_blocks_that_ran_eagerly_are_not_applied(
    make_session: Callable[..., Session], only_captured: None
) -> None:
    session = make_session()
    FUSED.apply(session)
    session.pipe.vae.decoder.mid_block.resnets[0]._compiled_call_impl = None
    session.run()
    with pytest.raises(NotApplied, match=r"1 of \d+ blocks of the VAE are not compiled"):
        FUSED.verify(session)


def with_diffusers_processors(transformer: Any) -> None:
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    for module in transformer.modules():
        if hasattr(module, "processor"):
            module.processor.__class__ = FluxAttnProcessor


def with_a_gelu_of_its_own(transformer: Any) -> None:
    import torch

    block = transformer.single_transformer_blocks[0]
    block.proj_mlp, block.act_mlp = block.proj_mlp.linear, torch.nn.GELU(approximate="tanh")


def with_a_whole_block(transformer: Any) -> None:
    import torch
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    block = transformer.single_transformer_blocks[0]
    inputs = block.proj_attended.in_features + block.proj_activated.in_features
    block.proj_out = torch.nn.Linear(inputs, block.proj_attended.out_features)
    block.__class__ = FluxSingleTransformerBlock


@pytest.mark.parametrize(
    ("put_back", "says"),
    [
        (with_diffusers_processors, "0 of 4 rotary_processors"),
        (with_a_gelu_of_its_own, "4 of 5 gelus_in_products"),
        (with_a_whole_block, "2 of 3 split_single_blocks"),
    ],
)
def test_a_part_that_is_diffusers_own_when_it_runs_is_not_applied(
    make_session: Callable[..., Session],
    only_captured: None,
    put_back: Callable[[Any], None],
    says: str,
) -> None:
    """Whatever was done to it before."""
    session = make_session()
    FUSED.apply(session)
    put_back(session.pipe.transformer)
    with pytest.raises(NotApplied, match=f"the transformer has .*{says}"):
        FUSED.verify(session)


def test_a_gelu_before_fp8_that_no_quantisation_took_is_not_applied(
    make_session: Callable[..., Session], only_captured: None
) -> None:
    from bench.axes.quantization.fp8_linear import ScaledMmLinear

    session = make_session(quantization="scaledmm-fp8-row")
    AXES["quantization"]["scaledmm-fp8-row"].apply(session)
    FUSED.apply(session)
    session.pipe.transformer.single_transformer_blocks[1].proj_activated.__class__ = ScaledMmLinear
    with pytest.raises(NotApplied, match="4 of 5 gelus_in_quantisation"):
        FUSED.verify(session)


def test_a_part_whose_operator_no_step_calls_is_not_applied(
    make_session: Callable[..., Session], only_captured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its class and does what diffusers' does."""
    from torch.nn.functional import gelu

    from bench.axes.compilation.products import LinearGelu

    def plainly(self: Any, hidden: Any) -> Any:
        return gelu(self.linear(hidden), approximate="tanh")

    monkeypatch.setattr(LinearGelu, "forward", plainly)
    session = make_session()
    FUSED.apply(session)
    with pytest.raises(NotApplied, match=r"one step called .*linear_gelu': 0"):
        FUSED.verify(session)


@pytest.mark.parametrize("component", ["transformer", "controlnet"])
def test_modulation_that_is_computed_step_by_step_is_not_applied(
    session: Session, only_captured: None, monkeypatch: pytest.MonkeyPatch, component: str
) -> None:
    from bench.axes.compilation.modulation import Modulation

    once = Modulation._enter_step

    def every_step(self: Any, entered: Any, args: Any, inputs: Any) -> None:
        if entered is getattr(session.pipe, component):
            self._computed(session.pipe.scheduler.timesteps, inputs)
        once(self, entered, args, inputs)

    monkeypatch.setattr(Modulation, "_enter_step", every_step)
    FUSED.apply(session)
    with pytest.raises(NotApplied, match=rf"in 2 steps the {component}'s modulation was computed once for 0"):
        FUSED.verify(session)


def test_modulation_of_which_no_table_was_made_is_not_applied(
    make_session: Callable[..., Session], only_captured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.axes.compilation import modulation

    monkeypatch.setattr(modulation, "Modulation", lambda *_: None)
    session = make_session()
    FUSED.apply(session)
    with pytest.raises(NotApplied, match=r"the transformer's modulation was computed once for 0 of 6 norms"):
        FUSED.verify(session)


def test_a_split_fp8_linear_is_the_sum_of_its_parts() -> None:
    import torch

    from bench.axes.compilation.products import _columns
    from bench.axes.quantization.fp8_linear import ScaledMmLinear

    whole = ScaledMmLinear(torch.nn.Linear(96, 32))
    first, second = (
        _columns(whole, slice(None, 32), bias=True),
        _columns(whole, slice(32, None), bias=False),
    )
    assert torch.equal(torch.cat([first.weight, second.weight], dim=1).float(), whole.weight.float())
    assert torch.equal(first.weight_scale, whole.weight_scale)
    assert torch.equal(second.weight_scale, whole.weight_scale)
    assert first.bias is not None
    assert second.bias is None
    assert (first.in_features, second.in_features) == (32, 64)


def test_a_cuda_graph_a_step_wants_a_gpu_and_no_cache(make_row: Callable[..., Row]) -> None:
    def why(**changes: str) -> str:
        refused = refusal(make_row(compilation="inductor-graphs", **changes))
        return refused.name if refused else ""

    assert why() == "gpu-option-on-cpu"
    assert why(hardware="h100x1", precision="bf16", cache="fbcache-0.12") == "cache-inside-one-graph"


def test_linears_that_cannot_be_taken_apart_are_refused(make_row: Callable[..., Row]) -> None:
    refused = refusal(make_row(compilation="inductor-fused", quantization="torchao-int8wo"))
    assert refused is not None
    assert refused.name == "rearranged-blocks"
