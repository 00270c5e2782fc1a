"""FLUX rearranged before it is compiled: the same latents, and each part counted among what ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from compiled import make_session, only_captured, session

from bench.axes import AXES
from bench.axes.compilation.graphs import graphs_compiled
from bench.axes.option import NotApplied, Session
from bench.matrix import Row
from bench.rules import refusal

FUSED = AXES["compilation"]["inductor-fused"]

__all__ = ["make_session", "only_captured", "session"]  # fixtures


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
