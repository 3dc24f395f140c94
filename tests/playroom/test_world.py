"""The world: determinism, splits, ground truth that matches the pixels."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np
import pytest
import torch

from thisness.playroom.captions import ALWAYS, ATTRIBUTES, UNKNOWN, caption, caption_and_mentions, labels
from thisness.playroom.render import render, worn_cells
from thisness.playroom.subjects import held_out_identity, reference_scenes, subject_index, subject_name
from thisness.playroom.world import (
    BACKGROUNDS,
    CLASSES,
    STYLES,
    Scene,
    Toy,
    change,
    identity,
    is_held_out_combination,
    poses_of,
    random_scene,
)


def plain_scene(noun: str = "dog", **changes: object) -> Scene:
    scene = Scene((Toy(identity(3, "held-out", noun), poses_of(noun)[0], "right"),), "grass", seed=11)
    return change(scene, **changes)


def test_same_seed_same_pixels_alone_and_in_a_batch() -> None:
    scenes = [random_scene(i) for i in range(6)]
    together = render(scenes, 48)
    for i in (0, 5):
        alone = render([random_scene(i)], 48)
        assert torch.equal(alone.images[0], together.images[i])
        assert torch.equal(alone.masks[0], together.masks[i])


def test_splits_share_no_identity_and_no_held_out_combination() -> None:
    train = {random_scene(i).subject.identity for i in range(0, 1600, 4)}
    held = {random_scene(i, "held-out").subject.identity for i in range(0, 1600, 4)}
    assert len(train) == len(held) == 400 and not train & held
    shown = [random_scene(i) for i in range(4000)]
    assert not any(is_held_out_combination(s.subject.identity.noun, s.subject.pose, s.background) for s in shown)
    every = [(n, p, b) for n in CLASSES for p in poses_of(n) for b in BACKGROUNDS]
    share = sum(is_held_out_combination(*c) for c in every) / len(every)
    assert 0.04 < share < 0.13
    fresh = [random_scene(i, "held-out") for i in range(2000)]
    assert any(is_held_out_combination(s.subject.identity.noun, s.subject.pose, s.background) for s in fresh)


@pytest.mark.parametrize("noun", CLASSES)
def test_every_pose_of_every_class_stays_in_the_picture(noun: str) -> None:
    scenes = [plain_scene(noun, pose=pose, facing=facing) for pose in poses_of(noun) for facing in ("left", "right")]
    masks = render(scenes, 64).masks[:, 0].float() / 255
    area = masks.mean((1, 2))
    assert (area > 0.06).all() and (area < 0.6).all()
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1).mean(1)
    assert (border < 0.08).all(), border  # an ear may touch the edge, a body may not


def test_mask_is_where_the_identity_shows() -> None:
    """Recolouring the toy changes pixels inside its mask and none outside."""
    scene = plain_scene()
    who = scene.subject.identity
    blue = dataclasses.replace(who, rgb=(0.1, 0.2, 0.9), second_rgb=(0.9, 0.1, 0.2), eye_rgb=(0.9, 0.9, 0.1))
    made = render([scene, change(scene, identity=blue)], 96)
    changed = (made.images[0].int() - made.images[1].int()).abs().amax(0) > 2
    inside = made.masks[0, 0] > 0
    assert not (changed & ~inside).any()
    assert (changed & inside).sum() > 0.5 * (made.masks[0, 0] > 128).sum()


def test_what_stands_before_the_toy_is_not_in_its_mask() -> None:
    bare, dressed = plain_scene(), plain_scene(accessory="hat", accessory_colour="red")
    made = render([bare, dressed], 96)
    assert made.masks[1, 0].float().sum() < made.masks[0, 0].float().sum()


def test_two_toys_have_two_masks_that_do_not_overlap() -> None:
    scene = dataclasses.replace(plain_scene(), toys=(plain_scene().subject, plain_scene("car").subject))
    subject, companion = (render([scene], 96).masks[0].float() / 255).unbind()
    assert subject.mean() > 0.03 and companion.mean() > 0.03
    assert (subject + companion).max() <= 1.01


def test_facing_is_a_mirror_of_the_toy() -> None:
    right, left = (render([plain_scene(facing=f)], 96).masks[0, 0].float() for f in ("right", "left"))
    columns = torch.arange(96.0)
    centre = [(m.sum(0) * columns).sum() / m.sum() for m in (right, left)]
    upper = [(m[:40].sum(0) * columns).sum() / m[:40].sum() for m in (right, left)]  # the head is in front
    assert upper[0] > centre[0] and upper[1] < centre[1]


def test_each_style_changes_the_picture_in_its_own_way() -> None:
    made = render([plain_scene(style=style) for style in STYLES], 64).images.float()
    photo, sketch, _, pixels = made
    saturation = (made.amax(1) - made.amin(1)).mean((1, 2))
    assert saturation[1] < 0.3 * saturation[0]  # a sketch is grey
    assert torch.equal(pixels[:, ::2], pixels[:, 1::2])  # pixel art is blocks
    assert all((a - b).abs().mean() > 4 for i, a in enumerate(made) for b in made[i + 1 :])
    assert sketch.mean() > photo.mean()


def test_compiled_and_plain_rasteriser_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled one is the plain one up to rounding; here through the eager backend, which needs no compiler."""
    from thisness.playroom import render as module

    monkeypatch.setattr(module, "_compiled_paint", lambda: torch.compile(module._paint, dynamic=False, backend="eager"))
    scenes = [random_scene(i) for i in range(3)]
    one, two = render(scenes, 32, batch_size=3, compiled=True), render(scenes, 32, compiled=False)
    assert (one.images.int() - two.images.int()).abs().max() <= 1


def test_labels_say_what_the_scene_is() -> None:
    scene = plain_scene("cat", pose="sleeping", accessory="bow", accessory_colour="teal")
    truth = labels(scene)
    read = {name: ATTRIBUTES[name][i] for name, i in truth.items() if i != UNKNOWN}
    assert read["class"] == "cat" and read["pose"] == "sleeping" and read["facing"] == "right"
    assert read["accessory"] == "bow" and read["accessory colour"] == "teal" and read["object"] == "none"
    assert "object colour" not in read


def test_complete_captions_say_everything_and_short_ones_are_marked() -> None:
    for i in range(300):
        scene = random_scene(i)
        sentence, said = caption_and_mentions(scene, Random(i), ALWAYS)
        truth = labels(scene)
        must = {"class", "colour", "pose", "facing", "background", "style"}
        assert all(said[name] == truth[name] for name in must)
        for name in ("class", "colour"):
            assert ATTRIBUTES[name][truth[name]] in sentence
        short, marks = caption_and_mentions(scene, Random(i))
        for name in ("colour", "second colour", "accessory colour", "object colour", "pattern"):
            if marks[name] != UNKNOWN and not (name == "pattern" and truth[name] == 0):
                assert ATTRIBUTES[name][marks[name]] in short


def test_captions_leave_colour_and_pattern_out_sometimes() -> None:
    scenes = [random_scene(i, companion=0) for i in range(400)]
    said = [caption_and_mentions(s, Random(i))[1] for i, s in enumerate(scenes)]
    coloured = sum(m["colour"] != UNKNOWN for m in said) / len(said)
    assert 0.5 < coloured < 0.8


def test_references_show_one_toy_in_different_poses_and_places() -> None:
    for index in (0, 7, 14):
        scenes = reference_scenes(index)
        assert len({s.subject.identity for s in scenes}) == 1 and len({s.background for s in scenes}) == 4
        assert len({s.subject.pose for s in scenes}) == min(4, len(poses_of(scenes[0].subject.identity.noun)))
        assert subject_index(subject_name(index)) == index
        assert held_out_identity(index).noun == CLASSES[index % 10]


def test_unknown_toy_is_one_clear_line() -> None:
    from thisness.errors import UserError

    with pytest.raises(UserError, match="rufus"):
        subject_index("rufs")


def test_captions_are_not_all_alike() -> None:
    scene = random_scene(5)
    assert len({caption(scene, Random(i)) for i in range(30)}) > 8


def test_what_is_worn_lies_in_its_cells() -> None:
    bare = [random_scene(i, accessory=1.0, prop=0, companion=0, styled=0) for i in range(16)]
    without = [change(scene, accessory=None, accessory_colour=None) for scene in bare]
    one, other = (render(scenes).images.int() for scenes in (bare, without))
    painted = torch.nn.functional.avg_pool2d(((one - other).abs().amax(1, keepdim=True) > 20).float(), 8)[:, 0].numpy()
    cells = np.stack([worn_cells(scene, 16) for scene in bare])
    assert painted.max() > 0.3 and cells[painted > 0.3].all()
    assert (painted[cells > 0] > 0).mean() > 0.8, "and hardly any beside them"
    assert not worn_cells(without[0], 16).any()
