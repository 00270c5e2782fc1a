"""The shipped Tiny FLUX: what it may weigh, that it loads everywhere, and that its pictures are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from bench.runner.models import PIPELINES, pipeline_class
from bench.tiny import SIZE, STEPS, TEXT_TOKENS, WEIGHTS, checker, hub_cache, measure, models, score
from bench.tiny.draw import control_map, masks
from bench.tiny.generate import generate, pipeline
from bench.tiny.scenes import sample

COUNT = 40


@pytest.fixture(scope="module")
def tiny() -> models.TinyFlux:
    return models.load(WEIGHTS)


def test_the_weights_travel_with_the_tree() -> None:
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(sizes) <= 16_000_000
    assert max(sizes) <= 14_000_000


def test_dimensions_are_legal_for_every_backend(tiny: models.TinyFlux) -> None:
    config = tiny.pipe.transformer.config
    assert config.attention_head_dim in (64, 128)
    assert config.num_attention_heads % 4 == 0
    assert (SIZE // 16) ** 2 % 8 == 0
    assert TEXT_TOKENS % 8 == 0
    modules = (tiny.controlnet, *(m for m in tiny.pipe.components.values() if isinstance(m, torch.nn.Module)))
    linears = [m for module in modules for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) > 50
    for linear in linears:
        assert linear.in_features % 64 == 0
        assert linear.out_features % 64 == 0


def test_held_out_prompts_give_right_pictures_within_what_forty_allow(tiny: models.TinyFlux) -> None:
    """A model that just meets its targets fails one of these about once in twenty-five runs; this one is
    seeded, so it passes always or never."""
    scenes = sample(COUNT, score.SEED, held_out=True)
    result, _ = score.txt2img(tiny, scenes)
    for attribute in ("background", "colour", "position", "shape"):
        target = score.TARGETS[f"txt2img.{attribute}"].bound
        fewest = stats.binom.ppf(0.01, COUNT, target)
        assert result[attribute]["value"] * COUNT >= fewest, (attribute, result[attribute])


def test_pictures_follow_the_prompt_and_not_the_seed(tiny: models.TinyFlux) -> None:
    prompts = ["a large red star at the top left on a blue background"] * 2
    prompts += ["small yellow ring at the bottom right, green background"] * 2
    readings = [checker.read(p) for p in generate(tiny, prompts, [1, 2, 1, 2])]
    assert [(r.shape, r.colour, r.background) for r in readings[:2]] == [("star", "red", "blue")] * 2
    assert [(r.shape, r.colour, r.background) for r in readings[2:]] == [("ring", "yellow", "green")] * 2


@pytest.mark.parametrize("kind", ["canny", "depth", "pose"])
def test_controlnet_puts_the_shape_where_the_map_says(tiny: models.TinyFlux, kind: str) -> None:
    """Against the same prompt without the map: the prompt alone does not know where exactly, nor which."""
    scenes = sample(6, 31, held_out=True)
    vague = [f"a {w.colour} shape on a {w.background} background" for w in score.words(scenes)]
    wanted = masks(scenes).numpy()

    def overlap(**options: object) -> float:
        pictures = generate(tiny, vague, list(range(6)), **options)  # type: ignore[arg-type]
        found = [checker.read(p).mask for p in pictures]
        return float(
            np.mean([0 if a is None else checker.overlap(a, b) for a, b in zip(found, wanted, strict=True)])
        )

    controlled = overlap(control=kind, inputs={"control_image": control_map(kind, scenes)})
    assert controlled > 0.75
    assert overlap() < 0.5


def test_inpainting_leaves_what_is_not_masked(tiny: models.TinyFlux) -> None:
    result, _ = score.inpaint(tiny, sample(8, 32, held_out=True))
    assert result["unmasked_latents_equal"]["value"] == 1.0
    assert result["difference_far_from_mask"]["value"] <= 2.0
    assert result["object"]["value"] >= 0.6


def test_img2img_keeps_the_place(tiny: models.TinyFlux) -> None:
    result, _ = score.img2img(tiny, sample(8, 33, held_out=True))
    assert result["position"]["value"] >= 0.7


@pytest.mark.parametrize(("task", "control"), list(PIPELINES))
def test_all_six_pipelines_take_the_shipped_components(
    tiny: models.TinyFlux, task: str, control: bool
) -> None:
    assert type(pipeline(tiny, task, control=control)) is pipeline_class(task, control=control)


def test_a_half_precision_model_stays_so_in_every_pipeline() -> None:
    half = models.load(WEIGHTS, torch.bfloat16)
    for task, control in PIPELINES:
        pipe = pipeline(half, task, control=control)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                assert next(part.parameters()).dtype == torch.bfloat16, (task, control, name)


def test_a_cache_decides_by_its_threshold_and_quality_falls_as_it_skips(tiny: models.TinyFlux) -> None:
    from diffusers import FirstBlockCacheConfig

    prompts, seeds = ["a large red star at the top left on a blue background"], [1]
    reference = generate(tiny, prompts, seeds)
    computed, quality = [], []
    for threshold in (0.0, 0.1, 0.4):
        tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        with measure.counting_computed_steps(tiny.pipe.transformer) as calls:
            pictures = generate(tiny, prompts, seeds)
        tiny.pipe.transformer.disable_cache()
        computed.append(len(calls))
        quality.append(float(measure.psnr_db(pictures, reference)[0]))
    assert computed[0] == STEPS
    assert computed[0] > computed[1] > computed[2]
    assert quality[0] > quality[1] > quality[2]


def test_the_hub_cache_layout_loads_offline_as_from_the_hub(tmp_path: Path) -> None:
    revision = hub_cache.lay_out(tmp_path)
    script = (
        "from diffusers import FluxPipeline\n"
        f"p = FluxPipeline.from_pretrained('{hub_cache.REPOSITORY}', revision='{revision}')\n"
        "print(sum(x.numel() for x in p.transformer.parameters()))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    expected = sum(p.numel() for p in models.transformer().parameters())
    assert int(outcome.stdout.split()[-1]) == expected


def test_the_card_says_what_the_files_say() -> None:
    from bench.tiny.card import CARD, render

    assert CARD.read_text() == render(), "run: python -m bench.tiny.card"


def test_the_cards_example_draws_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.tiny.card import CARD

    (example,) = re.findall(r"```python\n(.*?)```", CARD.read_text(), re.S)
    monkeypatch.chdir(Path(__file__).parent.parent)
    names: dict[str, Any] = {}
    exec(example, names)
    read = checker.read(np.asarray(names["image"]))
    assert (read.shape, read.colour, read.background, read.position) == ("star", "red", "blue", "top left")
