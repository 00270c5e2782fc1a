"""Tiny FLUX's scenes, pictures, control maps, and the checker that reads them back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.tiny import SIZE, TEXT_TOKENS, checker, draw, models, scenes

ATTRIBUTES = ("background", "colour", "position", "shape", "size")


@pytest.fixture(scope="module")
def drawn() -> tuple[scenes.Scenes, np.ndarray]:
    some = scenes.sample(300, seed=5, held_out=False)
    return some, draw.to_uint8(draw.draw(some))


def test_the_checker_reads_at_least_99_percent_of_drawn_pictures_right(
    drawn: tuple[scenes.Scenes, np.ndarray],
) -> None:
    some, pictures = drawn
    readings = [checker.read(picture) for picture in pictures]
    for attribute in ATTRIBUTES:
        pairs = zip(scenes.words(some), readings, strict=True)
        right = [getattr(asked, attribute) == getattr(read, attribute) for asked, read in pairs]
        assert np.mean(right) >= 0.99, attribute
    overlaps = [checker.overlap(r.mask, m) for r, m in zip(readings, draw.masks(some).numpy(), strict=True)]
    assert np.mean(overlaps) > 0.97
    away = [
        np.abs(r.keypoints() - checker.scene_keypoints(some, i)).max()  # type: ignore[operator]
        for i, r in enumerate(readings)
    ]
    assert np.quantile(away, 0.99) < 1.0


def test_the_checker_reads_no_shape_from_an_empty_picture_or_from_noise() -> None:
    empty = np.full((SIZE, SIZE, 3), 40, np.uint8)
    assert checker.read(empty).shape is None
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    assert checker.read(noise).shape is None


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_the_checker_sees_each_attribute_change(attribute: str) -> None:
    """A reading that ignored an attribute would call these two pictures the same."""
    before = scenes.sample(1, seed=9, held_out=False)
    counts = {
        "background": len(scenes.COLOURS),
        "colour": len(scenes.COLOURS),
        "shape": len(scenes.SHAPES),
        "size": 2,
        "position": len(scenes.POSITIONS),
    }
    after = scenes.Scenes(**vars(before))
    changed = (getattr(before, attribute) + 1) % counts[attribute]
    if attribute in ("background", "colour"):
        taken = before.colour if attribute == "background" else before.background
        changed = torch.where(changed == taken, (changed + 1) % counts[attribute], changed)
    setattr(after, attribute, changed)
    after.radius = torch.tensor(list(scenes.SIZES.values()))[after.size]
    centre = torch.tensor(list(scenes.POSITIONS.values()), dtype=torch.float32)[after.position]
    after.x, after.y = centre[:, 0], centre[:, 1]
    one, other = (checker.read(draw.to_uint8(draw.draw(s))[0]) for s in (before, after))
    assert getattr(one, attribute) != getattr(other, attribute)


def test_held_out_combinations_never_appear_in_training() -> None:
    training = scenes.combination(scenes.sample(20_000, seed=1, held_out=False))
    held_out = scenes.combination(scenes.sample(2_000, seed=1, held_out=True))
    assert not set(training.tolist()) & set(held_out.tolist())
    assert len(set(held_out.tolist())) > 400


def test_every_attribute_value_stands_on_both_sides_of_the_split() -> None:
    for side in (False, True):
        some = scenes.sample(2_000, seed=2, held_out=side)
        for attribute, count in (
            ("shape", 6),
            ("colour", 8),
            ("background", 8),
            ("size", 2),
            ("position", 9),
        ):
            assert len(getattr(some, attribute).unique()) == count


def test_the_same_seed_draws_the_same_pictures() -> None:
    one, other, third = (draw.draw(scenes.sample(8, seed=s, held_out=False)) for s in (3, 3, 4))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_captions_say_what_the_scene_holds_in_words_the_tokenizers_know() -> None:
    some = scenes.sample(200, seed=6, held_out=False)
    known = set(scenes.vocabulary())
    for index, said in enumerate(scenes.words(some)):
        text = scenes.caption(said, index)
        assert set(text.replace(",", "").split()) <= known
        for value in (said.shape, said.colour, said.background, said.size, said.position):
            assert str(value) in text


def test_a_caption_leaves_attributes_unsaid_as_often_as_asked() -> None:
    some = scenes.sample(1_000, seed=7, held_out=False)
    texts = scenes.training_captions(some, seed=7, unsaid=0.3)
    silent = sum("shape" in text for text in texts)
    assert 240 < silent < 360
    assert not any("shape" in text for text in scenes.training_captions(some, seed=7, unsaid=0.0))


def test_a_caption_is_one_token_a_word_and_fits() -> None:
    some = scenes.sample(300, seed=8, held_out=False)
    for index, said in enumerate(scenes.words(some)):
        text = scenes.caption(said, index)
        units = text.replace(",", " ,").split()
        for tokenizer in (models.t5_tokenizer(), models.clip_tokenizer()) if index == 0 else ():
            assert len(tokenizer.tokenize(text)) == len(units)
        assert len(units) + 2 <= TEXT_TOKENS


def test_control_maps_show_the_shape_where_it_stands() -> None:
    some = scenes.sample(24, seed=10, held_out=False)
    inside = draw.masks(some)
    near = draw.depth(some)[:, 0]
    assert torch.equal(near > 0.5, inside)
    for index in range(len(some)):
        edges = draw.canny(draw.draw(some[index : index + 1]))[0, 0] > 0
        distance = draw.distances(some[index : index + 1])[0].abs()
        assert edges.any()
        assert distance[edges].max() < 3  # every edge lies on the outline
        skeleton = draw.pose(some[index : index + 1])[0]
        for x, y in checker.scene_keypoints(some, index):
            if 0 <= x < SIZE and 0 <= y < SIZE:
                assert skeleton[:, int(y), int(x)].max() > 0.5


def test_the_inpaint_mask_is_made_of_whole_tokens_and_covers_the_shape() -> None:
    some = scenes.sample(50, seed=11, held_out=False)
    mask = scenes.inpaint_mask(some)
    tokens = torch.nn.functional.avg_pool2d(mask, 16)
    assert set(tokens.unique().tolist()) == {0.0, 1.0}
    assert torch.all(tokens.sum((1, 2, 3)) == 16)
    assert torch.all(mask[:, 0][draw.masks(some)] == 1)
