"""Weights of a row: published shapes, dtypes as from_pretrained gives them, errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.axes.option import Unavailable
from bench.matrix import Row
from bench.runner import generated_tokenizers, models, synthetic, tasks
from bench.runner.outputs import require_valid
from bench.runner.published import TRANSFORMER_PARAMETERS, Published, published

MakeRow = Callable[..., Row]

SMALL_FLUX = {"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": [8, 12, 12]}
SMALL: dict[str, dict[str, Any]] = {
    "transformer": {**SMALL_FLUX, "num_layers": 2, "num_single_layers": 4, "joint_attention_dim": 128},
    "controlnet": {**SMALL_FLUX, "num_layers": 1, "num_single_layers": 2, "joint_attention_dim": 128},
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    "text_encoder": {"num_hidden_layers": 2},
    "text_encoder_2": {"d_model": 128, "d_ff": 256, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3},
}
"""Narrower and shallower than published; everything else, vocabularies and lengths too, is published."""
SMALL_PARAMETERS = 2_456_384


@pytest.fixture
def scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """``synthetic`` builds the published architecture small enough for a CPU test."""

    def small(component: str) -> Published:
        source = published(component)
        return replace(source, config={**source.config, **SMALL.get(component, {})})

    monkeypatch.setattr(synthetic, "published", small)
    monkeypatch.setattr(synthetic, "TRANSFORMER_PARAMETERS", SMALL_PARAMETERS)


def meta_parameters(component: str) -> int:
    config = published(component).config
    module = synthetic.on_meta(lambda: synthetic.constructors()[component](config))
    synthetic.require_config(component, module.config, config)
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_configs_build_the_published_parameter_counts() -> None:
    assert meta_parameters("transformer") == TRANSFORMER_PARAMETERS == 11_901_408_320
    assert meta_parameters("text_encoder_2") == 4_762_310_656
    assert meta_parameters("text_encoder") == 123_060_480
    assert meta_parameters("vae") == 83_819_683
    # The published file of the union ControlNet is 6.6 GB in bf16.
    assert round(meta_parameters("controlnet") * 2 / 1e9, 1) == 6.6


def test_a_library_that_builds_another_shape_is_an_error_that_names_the_value() -> None:
    config = published("transformer").config
    module = synthetic.on_meta(
        lambda: synthetic.constructors()["transformer"]({**config, "num_single_layers": 37})
    )
    with pytest.raises(ValueError, match="synthetic transformer: num_single_layers is 37, published 38"):
        synthetic.require_config("transformer", module.config, config)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_synthetic_weights_give_finite_images_that_are_not_flat(
    make_row: MakeRow, scaled_down: None, precision: str
) -> None:
    """Prompt string in, image out, through 77 CLIP and 512 T5 tokens and the ControlNet."""
    row = make_row(model="flux.1-dev", size=64, precision=precision, task="img2img", control="canny")
    loaded = models.load(row, "synthetic", "cpu")
    request = tasks.manifest(row).request(0, 1)
    output = tasks.generate(loaded.pipe, row, request, steps=2, latents=True)
    require_valid(row, output, 1)
    assert output.latents.isfinite().all()
    assert 0.1 < output.latents.std() < 20, "random weights neither damp the noise away nor blow it up"
    assert loaded.weights.source == "synthetic"
    assert "random weights" in loaded.weights.id
    assert "generated tokenizers" in loaded.weights.id


def test_synthetic_rows_of_different_precision_hold_the_same_weights(scaled_down: None) -> None:
    import torch

    exact = synthetic.build("transformer", torch.float32, "cpu", seed=3)
    rounded = synthetic.build("transformer", torch.bfloat16, "cpu", seed=3)
    other = synthetic.build("transformer", torch.float32, "cpu", seed=4)
    for name, values in exact.state_dict().items():
        assert torch.equal(values.bfloat16(), rounded.state_dict()[name]), name
    assert not torch.equal(exact.x_embedder.weight, other.x_embedder.weight)


def test_synthetic_controlnet_takes_part(make_row: MakeRow, scaled_down: None) -> None:
    """ControlNets start with outputs of zero: drawn like that, they would be measured doing nothing."""
    import torch

    controlnet = synthetic.build("controlnet", torch.float32, "cpu", seed=0)
    for layer in (*controlnet.controlnet_blocks, *controlnet.controlnet_single_blocks):
        assert layer.weight.abs().mean() > 0
    assert controlnet.controlnet_x_embedder.weight.abs().mean() > 0


def test_synthetic_modules_keep_the_buffers_that_their_constructor_computed(scaled_down: None) -> None:
    import torch

    clip = synthetic.build("text_encoder", torch.bfloat16, "cpu", seed=0)
    assert torch.equal(clip.embeddings.position_ids, torch.arange(77)[None])
    t5 = synthetic.build("text_encoder_2", torch.bfloat16, "cpu", seed=0)
    assert t5.shared.weight is t5.encoder.embed_tokens.weight


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_synthetic_dtypes_are_those_of_from_pretrained(
    make_row: MakeRow, tiny_weights: Path, precision: str
) -> None:
    row = make_row(precision=precision, control="canny")
    pipe = models.load(row, "tiny", "cpu").pipe
    for name in ("transformer", "controlnet", "vae", "text_encoder", "text_encoder_2"):
        module = getattr(pipe, name)
        for path, parameter in module.named_parameters():
            assert parameter.dtype == synthetic.parameter_dtype(module, path, pipe.transformer.dtype), path


def test_generated_tokenizers_have_the_published_sizes_and_know_every_letter() -> None:
    clip, t5 = generated_tokenizers.clip_tokenizer(), generated_tokenizers.t5_tokenizer()
    assert len(clip) == published("text_encoder").config["vocab_size"]
    assert len(t5) == 32_100 <= published("text_encoder_2").config["vocab_size"]
    prompt = "A red fox, 35 mm film; carrying a lantern!"
    padded = [
        tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
        for tokenizer, length in ((clip, clip.model_max_length), (t5, t5.model_max_length))
    ]
    assert [len(ids) for ids in padded] == [77, 512]
    assert t5.unk_token_id not in padded[1]
    # The published CLIP config pools at the highest id, which must be the end of the text.
    assert max(padded[0]) == clip.eos_token_id
    assert len(set(padded[0])) > 10


@pytest.mark.parametrize("control", ["none", "canny"])
def test_hub_weights_load_offline_from_the_cache_at_the_pinned_revision(
    make_row: MakeRow, hub_cache: Path, control: str
) -> None:
    loaded = models.load(make_row(model="flux.1-dev", control=control), "hub", "cpu")
    pinned = published("transformer")
    assert loaded.weights.source == "hub"
    assert loaded.weights.id.startswith(f"black-forest-labs/FLUX.1-dev@{pinned.revision}")
    assert (published("controlnet").revision in loaded.weights.id) == (control == "canny")
    assert loaded.weights.transformer_bytes == 4 * loaded.weights.transformer_parameters


def test_hub_weights_that_are_missing_name_the_row_and_what_to_do(
    make_row: MakeRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    row = make_row(row="42", model="flux.1-dev", hardware="h100x1")
    with pytest.raises(Unavailable) as error:
        models.load(row, "hub", "cpu")
    for part in ("row 42", "black-forest-labs/FLUX.1-dev", "set HF_TOKEN", "--weights synthetic"):
        assert part in str(error.value)


def test_hub_weights_that_cannot_be_fetched_do_not_show_the_token(
    make_row: MakeRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(Unavailable, match=r"cannot fetch black-forest-labs/FLUX\.1-dev") as error:
        models.load(make_row(model="flux.1-dev"), "hub", "cpu")
    assert "hf_secret" not in str(error.value)


def test_a_snapshot_with_a_file_missing_is_unavailable_and_names_the_folder(
    make_row: MakeRow, hub_cache: Path, random_tiny_flux: Path, tmp_path: Path
) -> None:
    snapshots = next(hub_cache.glob("models--black-forest-labs--*")) / "snapshots"
    link = next(snapshots.iterdir())
    link.unlink()
    (link / "transformer").mkdir(parents=True)
    (link / "model_index.json").write_text((random_tiny_flux / "model_index.json").read_text())
    with pytest.raises(Unavailable, match=f"weights in .*{link.name} are not complete"):
        models.load(make_row(model="flux.1-dev"), "hub", "cpu")


def test_tiny_weights_that_are_missing_are_unavailable(
    make_row: MakeRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import identity

    monkeypatch.setattr(identity, "TINY_WEIGHTS", tmp_path)
    with pytest.raises(Unavailable, match=f"row 1 .*no tiny weights in {tmp_path}"):
        models.load(make_row(), "tiny", "cpu")


@pytest.mark.parametrize(("model", "weights"), [("tiny", "hub"), ("flux.1-dev", "tiny")])
def test_weights_of_another_model_are_refused(make_row: MakeRow, model: str, weights: str) -> None:
    with pytest.raises(ValueError, match=f"weights '{weights}' do not fit model {model}; use --weights"):
        models.load(make_row(model=model), weights, "cpu")


@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint"])
@pytest.mark.parametrize("control", ["none", "canny"])
def test_every_use_case_has_its_pipeline_and_none_recasts_a_component(
    make_row: MakeRow, tiny_weights: Path, task: str, control: str
) -> None:
    import torch

    pipe = models.load(make_row(task=task, control=control, precision="fp16"), "tiny", "cpu").pipe
    assert type(pipe).__name__ == models.PIPELINES[task, control != "none"]
    assert pipe.text_encoder_2.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    assert pipe.transformer.dtype == torch.float16


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_are_mapped_as_they_are_stored_and_cast_on_the_device_as_diffusers_would(
    make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Cast while they are read, they would be each process's own instead of files that all share."""
    import torch
    from diffusers import FluxPipeline

    from bench import identity
    from bench.axes.precision import torch_dtype

    read: list[str] = []
    place = models.place

    def placed(module: Any, dtype: Any, device: str) -> None:
        dtypes = {parameter.dtype for parameter in module.parameters()}
        assert dtypes == {torch.bfloat16}, "as bench/tiny/weights holds them"
        read.append(type(module).__name__)
        place(module, dtype, device)

    monkeypatch.setattr(models, "place", placed)
    pipe = models.load(make_row(precision=precision, control="canny"), "tiny", "cpu").pipe
    assert len(read) == 5
    theirs = FluxPipeline.from_pretrained(identity.TINY_WEIGHTS, dtype=torch_dtype(precision))
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        expected = getattr(theirs, name).state_dict()
        for key, tensor in getattr(pipe, name).state_dict().items():
            assert tensor.dtype == expected[key].dtype, (name, key)
            assert torch.equal(tensor, expected[key]), (name, key)
    assert {parameter.dtype for parameter in pipe.controlnet.parameters()} == {torch_dtype(precision)}


def test_a_changed_published_config_changes_the_hash_of_the_code(tmp_path: Path) -> None:
    """The configs are what synthetic weights are built from: results of another one are stale."""
    from bench import identity, sources

    hashes = set()
    for layers in (19, 20):
        package = tmp_path / str(layers)
        config = package / "runner" / "published" / "transformer.json"
        config.parent.mkdir(parents=True)
        config.write_text(f'{{"num_layers": {layers}}}')
        hashes.add(identity.files_sha256(tuple(sources.of_runner(package)), package))
    assert len(hashes) == 2
