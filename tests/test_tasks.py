"""Twelve use cases through six pipelines: the same inputs every time, and an image that a user would get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import flux
from bench.matrix import CONTROLS, TASKS, Row
from bench.runner import models, pictures, prompts, tasks
from bench.runner.outputs import InvalidOutput, Output, require_valid

MakeRow = Callable[..., Row]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("control", CONTROLS)
def test_every_use_case_delivers_valid_images_and_passes_every_stage(
    make_row: MakeRow, tiny_weights: Path, task: str, control: str
) -> None:
    row = make_row(task=task, control=control, steps=4)
    pipe = models.load(row, "tiny", "cpu").pipe
    request = tasks.manifest(row).request(0, 2)
    seen: list[str] = []
    output = tasks.generate(
        pipe, row, request, on_stage=seen.append, on_step=lambda: seen.append("step"), latents=True
    )
    require_valid(row, output, 2)
    executed = 4 if task == "txt2img" else 3
    assert output.steps == executed
    assert seen == ["text", "denoise", *["step"] * executed, "decode", "end"]
    assert output.latents.shape == (2, 16, 16, 16)
    assert not np.array_equal(output.images[0], output.images[1]), "each image has a seed of its own"


@pytest.mark.parametrize("task", TASKS)
def test_the_image_is_the_one_that_the_pipeline_itself_returns(
    make_row: MakeRow, tiny_weights: Path, task: str
) -> None:
    """Encoding and decoding outside the pipeline call changes no pixel."""
    row = make_row(task=task, control="depth", steps=4)
    pipe = models.load(row, "tiny", "cpu").pipe
    request = tasks.manifest(row).request(1, 2)
    ours = tasks.generate(pipe, row, request).images
    theirs = pipe(
        prompt=request.prompt,
        num_images_per_prompt=2,
        output_type="np",
        **tasks._arguments(row, request, None),
    ).images
    assert np.array_equal(ours, (theirs * 255).round().astype(np.uint8))


def test_a_request_paints_the_same_image_again_alone_and_in_a_batch(
    make_row: MakeRow, tiny_weights: Path
) -> None:
    row = make_row(steps=4)
    pipe = models.load(row, "tiny", "cpu").pipe
    manifest = tasks.manifest(row)
    single = tasks.generate(pipe, row, manifest.request(5, 1)).images
    assert np.array_equal(single, tasks.generate(pipe, row, manifest.request(5, 1)).images)
    batch = tasks.generate(pipe, row, manifest.request(5, 4)).images
    assert np.abs(batch[0].astype(int) - single[0].astype(int)).max() <= 1


def test_the_global_random_state_is_neither_used_nor_moved(make_row: MakeRow, tiny_weights: Path) -> None:
    import torch

    row = make_row(task="inpaint", control="pose")
    pipe = models.load(row, "tiny", "cpu").pipe
    request = tasks.manifest(row).request(0, 1)
    torch.manual_seed(1)
    first, state = tasks.generate(pipe, row, request, steps=1).images, torch.get_rng_state()
    torch.manual_seed(2)
    assert np.array_equal(first, tasks.generate(pipe, row, request, steps=1).images)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_the_control_map_and_its_mode_reach_the_image(make_row: MakeRow, tiny_weights: Path) -> None:
    row = make_row(control="canny", steps=2)
    pipe = models.load(row, "tiny", "cpu").pipe
    manifest = tasks.manifest(row)
    request = manifest.request(0, 1)
    canny = tasks.generate(pipe, row, request).images
    other_map = replace(request, inputs=manifest.request(1, 1).inputs)
    assert not np.array_equal(canny, tasks.generate(pipe, row, other_map).images)
    other_mode = row.model_copy(update={"control": "depth"})
    assert not np.array_equal(canny, tasks.generate(pipe, other_mode, request).images)


@settings(max_examples=300)
@given(steps=st.integers(1, 100), strength=st.floats(0.05, 1.0))
def test_executed_steps_are_the_timesteps_that_diffusers_keeps(steps: int, strength: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

    class Holder:
        scheduler = FlowMatchEulerDiscreteScheduler()

    Holder.scheduler.set_timesteps(steps)
    kept, count = FluxImg2ImgPipeline.get_timesteps(Holder, steps, strength, "cpu")
    assert flux.executed_steps("img2img", steps, strength) == len(kept) == count
    assert flux.executed_steps("txt2img", steps, strength) == steps


@given(executed=st.integers(1, 50), strength=st.floats(0.05, 1.0))
def test_as_many_steps_run_as_were_asked_for(executed: int, strength: float) -> None:
    asked = flux.scheduled_steps("inpaint", executed, strength)
    assert flux.executed_steps("inpaint", asked, strength) == executed
    assert flux.scheduled_steps("txt2img", executed, strength) == executed


def full_size(make_row: MakeRow, **changes: Any) -> tasks.Manifest:
    return tasks.manifest(make_row(model="flux.1-dev", size=256, **changes))


def test_prompts_are_distinct_and_neighbours_share_neither_subject_nor_place() -> None:
    texts = [prompts.prompt(index) for index in range(prompts.COUNT)]
    assert len(set(texts)) == prompts.COUNT == 480
    for one, two in pairwise(texts):
        assert one.split()[:4] != two.split()[:4]
        assert one.split()[-3:] != two.split()[-3:]


def test_tiny_prompts_suffice_for_a_true_p99_and_agree_between_use_cases(make_row: MakeRow) -> None:
    plain = tasks.manifest(make_row()).prompts
    pictured = tasks.manifest(make_row(control="pose")).prompts
    assert len(set(plain)) == len(plain) >= 368
    assert len(pictured) == 64
    assert plain[:64] == pictured


def test_requests_of_a_cell_share_no_seed_and_no_prompt(make_row: MakeRow) -> None:
    manifest = full_size(make_row)
    requests = [manifest.request(index, 4) for index in range(100)]
    seeds = [seed for request in (*requests, *manifest.quality_requests()) for seed in request.seeds]
    assert len(set(seeds)) == len(seeds)
    assert len({request.prompt for request in requests}) == 100
    assert len({request.id for request in (*requests, *manifest.quality_requests())}) == 104


def test_the_manifest_hash_is_stable_and_tells_inputs_apart(make_row: MakeRow) -> None:
    hashes = [
        full_size(make_row, task=task, control=control).sha256 for task in TASKS for control in CONTROLS
    ]
    assert len(set(hashes)) == 12
    assert full_size(make_row, task="inpaint", control="pose").sha256 == hashes[-1]
    manifest = full_size(make_row)
    changed = replace(manifest, settings=replace(manifest.settings, guidance=7.0))
    assert changed.sha256 != manifest.sha256
    reworded = make_row(model="flux.1-dev", size=256, precision="bf16", row="7", why="another")
    assert tasks.manifest(reworded).sha256 == manifest.sha256, "the stack does not choose the inputs"


def test_drawn_pictures_hold_what_each_control_needs() -> None:
    scene = pictures.draw(seed=0, size=512)
    canny, depth, pose = (
        np.asarray(pictures.control_map(kind, scene)) for kind in ("canny", "depth", "pose")
    )
    assert canny.shape == depth.shape == pose.shape == (512, 512, 3)
    assert set(np.unique(canny)) == {0, 255}
    assert 0.005 < (canny > 0).mean() < 0.2
    x, y = (round(value) for value in scene.joints["neck"])
    assert depth[y, x, 0] > depth[5, 5, 0], "the figure is nearer than the sky"
    assert pose[y, x].any()
    assert not pose[5, 5].any()
    assert 0.05 < (np.asarray(scene.mask) > 0).mean() < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_masks_end_on_token_borders(seed: int) -> None:
    white = np.asarray(pictures.draw(seed, 256).mask) > 0
    tokens = white.reshape(16, 16, 16, 16).mean(axis=(1, 3))
    assert set(np.unique(tokens)) == {0.0, 1.0}


def test_nan_weights_end_as_invalid_output(make_row: MakeRow, tiny_weights: Path) -> None:
    row = make_row()
    pipe = models.load(row, "tiny", "cpu").pipe
    pipe.transformer.proj_out.weight.data[0, 0] = float("nan")
    output = tasks.generate(pipe, row, tasks.manifest(row).request(0, 1), steps=1)
    with pytest.raises(InvalidOutput, match=r"row 1 .*NaN or infinity"):
        require_valid(row, output, 1)


def test_flat_images_and_wrong_sizes_are_invalid_output(make_row: MakeRow) -> None:
    row = make_row()
    noise = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    require_valid(row, Output(noise, finite=True, steps=28), 2)
    flat = noise.copy()
    flat[1] = 127
    with pytest.raises(InvalidOutput, match=r"row 1 .*flat"):
        require_valid(row, Output(flat, finite=True, steps=28), 2)
    with pytest.raises(InvalidOutput, match=r"expected uint8 \(4, 128, 128, 3\)"):
        require_valid(row, Output(noise, finite=True, steps=28), 4)
