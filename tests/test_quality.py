"""Quality comes from files: named reference, paired prompts, a noise floor, tiers from config."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_attempts import write_attempt
from fakes import fake_result, fake_row

from bench import config, judging, layout, pictures, quality, record
from bench.cli import main
from bench.judging import What
from bench.matrix import Row
from bench.pictures import PictureError


def attempt(results: Path, noise: float, minutes: float = 0, **changes: Any) -> Path:
    row = fake_row(hardware="cpu", **changes)
    result = fake_result(row, shapes=[(1, 1)], n=6, minutes=minutes, seed=int(minutes))
    return write_attempt(results, result, images=True, noise=noise, telemetry=False)


def judged(results: Path, wanted: Path | None = None, again: bool = False) -> dict[str, judging.Outcome]:
    """row id -> outcome"""
    found, unreadable = judging.pictured(results)
    assert not unreadable
    return {each.attempt.row.row: each for each in judging.judge(found, wanted or results, again)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    attempt(tmp_path, 0.0, row="1")
    attempt(tmp_path, 0.01, 10, row="2", compilation="inductor")
    attempt(tmp_path, 0.1, 20, row="3", quantization="quanto-int8")
    attempt(tmp_path, 0.5, 30, row="4", quantization="quanto-int4")
    return tmp_path


def test_every_attempt_is_held_against_the_reference_of_its_use_case(tree: Path) -> None:
    outcomes = judged(tree)
    assert {row: outcome.what for row, outcome in outcomes.items()} == {
        "1": What.REFERENCE,
        "2": What.COMPUTED,
        "3": What.COMPUTED,
        "4": What.COMPUTED,
    }
    found = outcomes["3"].quality
    assert found is not None
    assert found.latent_relative_error == pytest.approx(0.1, rel=0.05)
    assert found.reference.row == "1"
    assert [floor.against.row for floor in found.noise_floor] == ["2"]
    assert [each.quality.tier for each in outcomes.values() if each.quality] == ["lossless", "near", "lossy"]


def test_quality_json_keeps_the_value_of_every_prompt(tree: Path) -> None:
    folder = judged(tree)["3"].attempt.folder
    written = json.loads((folder / "quality.json").read_text())
    assert [prompt["id"] for prompt in written["prompts"]] == ["p0", "p1", "p2"]
    assert sorted(prompt["ssim"] for prompt in written["prompts"])[1] == written["ssim"]
    assert quality.load(folder) == judged(tree)["3"].quality


def test_a_second_run_computes_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(tree)

    def explode(*_: object) -> None:
        raise AssertionError("looked at pictures again")

    monkeypatch.setattr(pictures, "distance", explode)
    assert {judged(tree)[row].what for row in "234"} == {What.CURRENT}


def test_a_new_reference_makes_quality_stale_and_is_named_in_the_new_one(tree: Path) -> None:
    before = judged(tree)["3"].quality
    newer = attempt(tree, 0.02, 60, row="1")
    after = judged(tree)["3"]
    assert after.what is What.COMPUTED
    assert before is not None
    assert after.quality is not None
    assert after.quality.reference.attempt == newer.name != before.reference.attempt
    assert judged(tree)["1"].what in {What.COMPUTED, What.REFERENCE}


def test_moved_thresholds_change_the_tier_without_looking_at_pictures(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(tree)
    stricter = (config.QualityTier("strict", 0.0001, 90.0, 1.0), config.QUALITY_TIERS[-1])
    monkeypatch.setattr(config, "QUALITY_TIERS", stricter)
    monkeypatch.setattr(pictures, "distance", None)
    outcome = judged(tree)["3"]
    assert outcome.what is What.COMPUTED
    assert outcome.quality is not None
    assert outcome.quality.tier == "lossy"


def test_only_what_was_asked_for_is_written(tree: Path) -> None:
    only = next(tree.glob("cpu/row-0004/*/*"))
    assert list(judged(tree, only)) == ["4"]
    assert [path.parent for path in tree.rglob("quality.json")] == [only]


@pytest.mark.parametrize(
    "other",
    [{"task": "img2img"}, {"control": "canny"}, {"size": 256}, {"steps": 20}],
    ids=lambda change: next(iter(change)),
)
def test_another_workload_is_no_reference(tmp_path: Path, other: dict[str, Any]) -> None:
    attempt(tmp_path, 0.0, row="1", **other)
    attempt(tmp_path, 0.1, 10, row="2", quantization="quanto-int8")
    outcome = judged(tmp_path)["2"]
    assert outcome.what is What.NO_REFERENCE


def test_rows_without_a_reference_are_told_once_which_row_it_is_and_the_command_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = [fake_row(row=str(n), hardware="cpu", steps=steps) for n, steps in ((1, 28), (2, 4))]
    matrix += [fake_row(row="3"), fake_row(row="4", hardware="cpu", task="img2img")]
    for minutes, row in enumerate(("11", "11", "12")):
        changes = {"vae": "tiled"} if row == "12" else {}
        attempt(tmp_path / "my", 0.1, minutes, row=row, precision="fp32", steps=4, **changes)
    on_gpu = fake_result(fake_row(row="13", quantization="quanto-int8"), shapes=[(1, 1)], n=6)
    write_attempt(tmp_path / "my", on_gpu, images=True, telemetry=False)
    attempt(tmp_path / "my", 0.1, 60, row="14", precision="fp32", task="inpaint")
    said: list[str] = []
    assert judging.run(tmp_path / "my" / "cpu", False, matrix, said.append) == 0
    assert judging.run(tmp_path / "my" / "single_gpu", False, matrix, said.append) == 0
    command = "make bench ROW={} {}BUDGET=probe CELLS=1x1 RESULTS=my"
    assert said == [
        "no reference for row 11 (fp32 on cpu, txt2img, 4 steps), "
        "row 12 (fp32+tiled on cpu, txt2img, 4 steps), 3 attempts:"
        f" `{command.format(2, '')}` runs it, row 2 (bf16 on cpu, txt2img, 4 steps)",
        "no reference for row 14 (fp32 on cpu, inpaint), 1 attempt: the matrix has none",
        "no reference for row 13 (bf16+quanto-int8 on h100x1, txt2img), 1 attempt:"
        f" `{command.format(3, 'WEIGHTS=synthetic ')}` runs it, row 3 (bf16 on h100x1, txt2img)",
    ]


def test_a_not_applied_attempt_has_no_quality(tree: Path) -> None:
    folder = next(tree.glob("cpu/row-0003/*/*"))
    result = record.load(folder / "result.json")
    status = record.Status(code=record.Code.NOT_APPLIED, reason="no evidence")
    record.save(result.model_copy(update={"status": status}), folder)
    assert "3" not in judged(tree)


def test_quality_of_synthetic_weights_is_labelled_as_numerical_error(tmp_path: Path) -> None:
    for number, (noise, changes) in enumerate([(0.0, {}), (0.1, {"quantization": "torchao-int8wo"})]):
        row = fake_row(row=str(number + 1), **changes)
        result = fake_result(row, shapes=[(1, 1)], n=6, minutes=number)
        write_attempt(tmp_path, result, images=True, noise=noise, telemetry=False)
    found = judged(tmp_path)["2"].quality
    assert found is not None
    assert "numerical error only" in found.meaning


def test_attempts_without_pictures_keep_the_quality_they_have(tree: Path) -> None:
    folder = judged(tree)["3"].attempt.folder
    before = (folder / "quality.json").read_bytes()
    shutil.rmtree(folder / "images")
    assert "3" not in judged(tree)
    assert (folder / "quality.json").read_bytes() == before


def test_a_missing_prompt_or_damaged_picture_is_told_and_nothing_written(tree: Path) -> None:
    three, four = (next(tree.glob(f"cpu/row-000{row}/*/*")) for row in (3, 4))
    (three / "images" / "p1.png").unlink()
    (four / "images" / "p2.png").write_bytes(b"no picture")
    outcomes = judged(tree)
    assert outcomes["3"].what is outcomes["4"].what is What.FAILED
    assert "p1" in outcomes["3"].message
    assert "p2" in outcomes["4"].message
    assert not (three / "quality.json").exists()


def test_a_machine_without_torch_is_told_what_to_install(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "fluxbench[run]" in judged(tree)["3"].message


def test_pictures_of_another_size_are_not_compared(tree: Path) -> None:
    from PIL import Image

    folder = next(tree.glob("cpu/row-0003/*/*"))
    Image.new("RGB", (64, 64)).save(folder / "images" / "p0.png")
    assert "(64, 64, 3)" in judged(tree)["3"].message


def test_the_command_prints_a_line_for_each_attempt_and_fails_on_damage(tree: Path) -> None:
    fine = CliRunner().invoke(main, ["quality", str(tree)])
    assert fine.exit_code == 0, fine.output
    assert "quanto-int4" in fine.output
    assert "lossy" in fine.output
    folder = next(tree.glob("cpu/row-0003/*/*"))
    (folder / "images" / "p1.png").write_bytes(b"no picture")
    damaged = CliRunner().invoke(main, ["quality", str(folder), "--again"])
    assert damaged.exit_code == 1
    assert "p1" in damaged.output
    missing = CliRunner().invoke(main, ["quality", str(tree / "nowhere")])
    assert missing.exit_code == 2
    empty = tree / "empty"
    empty.mkdir()
    nothing = CliRunner().invoke(main, ["quality", str(empty)])
    assert (nothing.exit_code, "holds no attempt" in nothing.output) == (2, True)


# --- Metrics and tiers -------------------------------------------------------------------------------


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_metrics_of_identical_pictures_are_perfect() -> None:
    image = picture(0)
    latents = torch.from_numpy(image).double() + 1
    assert pictures.psnr_db(image, image) is None
    assert pictures.ssim(image, image) == pytest.approx(1.0)
    assert pictures.latent_relative_error(latents, latents) == 0.0


def test_metrics_have_their_known_values() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    assert pictures.psnr_db(image + np.uint8(5), image) == pytest.approx(20 * math.log10(255 / 5))
    latents, reference = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])
    assert pictures.latent_relative_error(latents, reference) == pytest.approx(4 / 3)
    assert pictures.ssim(picture(0), picture(1)) < 0.1


@pytest.mark.parametrize(("latents", "reference"), [(math.nan, 1.0), (1.0, math.inf), (1.0, 0.0), (0.0, 0.0)])
def test_latents_whose_distance_is_no_number_are_refused(latents: float, reference: float) -> None:
    with pytest.raises(PictureError, match="not finite"):
        pictures.latent_relative_error(torch.tensor([latents]), torch.tensor([reference]))


def test_half_the_prompts_identical_give_a_median_psnr_of_none() -> None:
    prompts = [
        quality.Closeness(latent_relative_error=0.0, psnr_db=psnr, ssim=1.0) for psnr in (30.0, None, None)
    ]
    assert quality.medians(prompts).psnr_db is None
    assert quality.medians(prompts[:2]).psnr_db == 30.0


def test_what_is_as_close_as_the_noise_floor_is_lossless() -> None:
    far = quality.Closeness(latent_relative_error=0.3, psnr_db=19.0, ssim=0.7)
    farther = quality.Closeness(latent_relative_error=0.34, psnr_db=19.0, ssim=0.7)
    assert quality.tier(far, []) == "lossy"
    assert quality.tier(far, [far]) == "lossless"
    assert quality.tier(farther, [far]) == "lossy"


def test_a_tier_is_what_more_than_half_of_the_prompts_reach() -> None:
    near, lossless = (
        quality.Closeness(latent_relative_error=error, psnr_db=40.0, ssim=0.99) for error in (0.03, 0.01)
    )
    assert quality.tier_of_most([near, lossless, near, lossless], []) == "near", "half is not enough"
    assert quality.tier_of_most([lossless, near, lossless], []) == "lossless"
    assert quality.tier_of_most([near, near, lossless], [near]) == "lossless", "by the noise floor"


def test_prompts_that_miss_different_bounds_do_not_add_up_to_a_better_tier() -> None:
    """The middle error and the middle PSNR are of different prompts, and both look lossless."""
    blurred = quality.Closeness(latent_relative_error=0.01, psnr_db=30.0, ssim=0.99)
    far = quality.Closeness(latent_relative_error=0.05, psnr_db=40.0, ssim=0.99)
    fine = quality.Closeness(latent_relative_error=0.01, psnr_db=40.0, ssim=0.99)
    assert quality.tier(quality.medians([blurred, far, fine]), []) == "lossless"
    assert quality.tier_of_most([blurred, far, fine], []) == "near"


def test_other_pictures_from_the_same_latents_are_not_lossless() -> None:
    """As tiled decoding gives: seen at 14 dB on the real tiny model."""
    tiled = quality.Closeness(latent_relative_error=0.0, psnr_db=14.2, ssim=0.36)
    compiled = quality.Closeness(latent_relative_error=0.1, psnr_db=30.0, ssim=0.95)
    assert quality.tier(tiled, []) == "lossy"
    assert quality.tier(tiled, [compiled]) == "lossy"


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({"attention": "cudnn"}, True),
        ({"compilation": "inductor"}, True),
        ({}, False),
        ({"attention": "sage2"}, False),
        ({"precision": "fp16"}, False),
        ({"attention": "cudnn", "compilation": "inductor"}, False),
    ],
)
def test_the_noise_floor_is_the_reference_but_for_one_exact_change(
    changes: dict[str, str], exact: bool
) -> None:
    row: Row = fake_row(**changes)
    assert quality.is_exact_variant(row) is exact


def test_an_exact_option_that_went_wrong_is_no_measure_of_itself(tmp_path: Path) -> None:
    attempt(tmp_path, 0.0, row="1")
    attempt(tmp_path, 0.5, 10, row="2", compilation="inductor-fused")
    attempt(tmp_path, 0.01, 20, row="3", compilation="inductor")
    outcomes = judged(tmp_path)
    broken, sound = outcomes["2"].quality, outcomes["3"].quality
    assert broken is not None
    assert broken.tier != "lossless"
    assert [floor.against.row for floor in broken.noise_floor] == ["3"]
    assert sound is not None
    assert sound.tier == "lossless", "by the bounds"


def test_a_damaged_result_is_named_with_its_field(tree: Path) -> None:
    (path, *_) = sorted(tree.rglob(layout.RESULT))
    damaged = json.loads(path.read_text())
    damaged["cells"][0]["n"] = "many"
    path.write_text(json.dumps(damaged))
    found, unreadable = judging.pictured(tree)
    assert len(found) == 3
    (sentence,) = unreadable
    assert sentence.startswith(f"{path}: cells.0.n: Input should be a valid integer")


def test_an_option_on_another_precision_is_also_held_against_its_parent(tmp_path: Path) -> None:
    """There the reference differs in two things, and the option's own error drowns in the precision's."""
    attempt(tmp_path, 0.0, row="1")
    attempt(tmp_path, 0.1, 10, row="2", precision="fp32")
    attempt(tmp_path, 0.1, 20, row="3", precision="fp32", vae="sliced", parent="2")
    attempt(tmp_path, 0.2, 30, row="4", vae="tiled", parent="1")
    outcomes = judged(tmp_path)
    sliced, tiled = outcomes["3"].quality, outcomes["4"].quality
    assert sliced is not None
    assert sliced.latent_relative_error == pytest.approx(0.1, rel=0.05)
    assert sliced.parent is not None
    assert sliced.parent.against.row == "2"
    assert sliced.parent.latent_relative_error == pytest.approx(0.141, rel=0.05), "both of their noises"
    assert tiled is not None
    assert tiled.parent is None, "its parent is the reference itself"
    assert {each.what for each in judged(tmp_path).values()} == {What.REFERENCE, What.CURRENT}
    attempt(tmp_path, 0.15, 40, row="2", precision="fp32")
    assert judged(tmp_path)["3"].what is What.COMPUTED, "another picture of the parent"
