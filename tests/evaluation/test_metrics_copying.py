"""Copied poses. Oracle: the Playroom's ground truth; outlines made by hand."""

import numpy as np
import pytest
from evaluation.rulers import item, noise
from PIL import Image

from thisness.evaluation.items import Picture
from thisness.evaluation.metrics import make_metrics
from thisness.evaluation.metrics.copying import silhouette


def shown(*scenes):
    from thisness.playroom.render import render

    made = render(list(scenes), 128)
    return [
        Picture(Image.fromarray(p.permute(1, 2, 0).numpy()), m[0].float().numpy() / 255)
        for p, m in zip(made.images, made.masks, strict=True)
    ]


@pytest.fixture(scope="module")
def poses():
    """A held-out toy as its references show it, standing, and sleeping as a sentence asked for."""
    from thisness.playroom.subjects import held_out_identity
    from thisness.playroom.world import Scene, Toy

    who = held_out_identity(0)
    scenes = [Scene((Toy(who, pose, "left"),), "grass", seed=3) for pose in ("standing", "sleeping", "jumping")]
    return dict(zip(("standing", "sleeping", "jumping"), shown(*scenes), strict=True))


def test_a_reference_pose_in_place_of_the_one_asked_for_is_copied(poses):
    (metric,) = make_metrics("copy-pose")
    given = {"references": (poses["standing"],), "truths": ({"pose": "standing"},)}
    asked = {"expected": {"pose": "sleeping"}}
    assert metric.score(
        [
            item(picture=poses["standing"], **given, **asked),
            item(picture=poses["sleeping"], **given, **asked),
            item(picture=poses["jumping"], **given, **asked),
            item(picture=poses["standing"], **given, expected={"pose": "standing"}),
            item(picture=poses["standing"], **given),
            item(picture=poses["standing"], references=given["references"], **asked),
        ]
    ) == [1.0, 0.0, 0.0, 0.0, None, None]


def test_outlines_do_not_know_place_and_size(poses):
    mask = np.zeros((64, 64), np.float32)
    mask[8:24, 8:40] = 1
    mask[8:16, 8:24] = 0  # an L, 16 high
    twice = np.kron(mask, np.ones((2, 2), np.float32))[:64, :96]
    assert np.array_equal(silhouette(mask), silhouette(twice))
    assert np.array_equal(silhouette(mask), silhouette(np.roll(mask, (20, 10), (0, 1))))
    assert silhouette(None) is None and silhouette(np.zeros((8, 8), np.float32)) is None
    (metric,) = make_metrics("copy-pose:by=silhouette")
    same, other, bare = metric.score(
        [
            item(picture=poses["standing"], references=(poses["standing"],)),
            item(picture=poses["sleeping"], references=(poses["standing"],)),
            item(picture=Picture(noise(0)), references=(poses["standing"],)),
        ]
    )
    assert same == 1.0 and other < 0.8 and bare is None
    (nearest,) = metric.score([item(picture=poses["sleeping"], references=(poses["standing"], poses["sleeping"]))])
    assert nearest == 1.0, "the best over references: copying one is copying"
