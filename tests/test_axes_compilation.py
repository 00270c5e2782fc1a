"""torch.compile on a real pipeline: graphs are counted, and a compile that did not happen is NotApplied."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from compiled import make_session, only_captured, session

from bench.axes import AXES
from bench.axes.compilation import tensorrt, whole
from bench.axes.compilation.graphs import blocks, graphs_compiled
from bench.axes.option import NotApplied, Session, Unavailable

INDUCTOR = AXES["compilation"]["inductor"]
INDUCTOR_MAX = AXES["compilation"]["inductor-max"]
TENSORRT = AXES["compilation"]["tensorrt"]

__all__ = ["make_session", "only_captured", "session"]  # fixtures


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
