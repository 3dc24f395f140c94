"""The embedded encoders' metrics order what must be ordered. Oracle: the renderer.

A *real* picture is the subject rendered anew: same toy, another pose and place. *Near* is a toy half-way between the
subject and another toy of its class: its colours, pattern and proportions are the mean of both. *Other* is that other
toy. All three stand in the same scene, so that only identity tells them apart:

    real against the references  >  near against the references  >  other against the references
"""

from dataclasses import fields, replace

import numpy as np
import pytest
from evaluation.test_metrics_copying import shown

from thisness.evaluation.encoders import known_encoders
from thisness.evaluation.items import Item

SUBJECTS = 20
IDENTITY = ("clip-i", "dino-i", "dino-i-best", "dino-i-fg", "m-dino-i", "patches")


def need(encoder):
    """Skip where an embedded encoder is not in this tree."""
    from importlib import resources

    folder = known_encoders()[encoder]["folder"]
    if not resources.files("thisness").joinpath(*folder.split("/"), "config.json").is_file():
        pytest.skip(f"{folder} is not in this tree")


def between(a, b):
    """Numbers in the middle of two toys; what is not a number, as the first's."""
    middle = {}
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, float):
            middle[field.name] = (x + y) / 2
        elif isinstance(x, tuple):
            middle[field.name] = tuple((p + q) / 2 for p, q in zip(x, y, strict=True))
    return replace(a, **middle)


@pytest.fixture(scope="module")
def scenes():
    """For each subject its references, and real, near and other in one scene of another pose and place."""
    from thisness.playroom.subjects import held_out_identity, reference_scenes
    from thisness.playroom.world import change, identity, poses_of, rng_of

    rows = []
    for index in range(SUBJECTS):
        references = reference_scenes(index)
        who, rng = held_out_identity(index), rng_of("sanity", index)
        other = identity(900_000 + index, "held-out", who.noun)
        used = {scene.background for scene in references}
        place = rng.choice(sorted({"beach", "forest", "snow", "city", "grass", "night", "kitchen"} - used))
        real = change(references[0], pose=rng.choice(poses_of(who.noun)), background=place, seed=rng.randrange(1 << 30))
        toys = [change(real, identity=toy) for toy in (who, between(who, other), other)]
        rows.append((references, toys))
    return rows


@pytest.fixture(scope="module")
def items(scenes):
    """For each kind of picture one item a subject."""
    rows = [shown(*references, *toys) for references, toys in scenes]
    return {
        kind: [Item(f"{n}", "r", f"s{n}", "c", 0, row[4 + at], tuple(row[:4]), "toy", "") for n, row in enumerate(rows)]
        for at, kind in enumerate(("real", "near", "other"))
    }


@pytest.mark.parametrize("name", IDENTITY)
def test_real_is_over_near_is_over_another_toy(items, name):
    from thisness.evaluation.metrics import PRESETS, make_metrics

    (spec,) = [column.spec for column in PRESETS["thisness"] if column.name == name]
    need(spec.values["encoder"])
    (metric,) = make_metrics(str(spec))
    real, near, other = (np.array(metric.score(items[kind]), float) for kind in ("real", "near", "other"))
    said = f"real {real.mean():.3f}, near {near.mean():.3f}, other {other.mean():.3f}"
    assert real.mean() > near.mean() > other.mean(), said
    assert (real > other).mean() >= 0.8, f"also subject by subject: {(real > other).mean():.2f}, {said}"


def test_a_true_sentence_is_over_a_false_one(scenes):
    """CLIP-T: the caption of the picture against that of another pose and place."""
    need("playroom-clip")
    from thisness.evaluation.metrics import make_metrics

    (metric,) = make_metrics("clip-t:encoder=playroom-clip")
    items = []
    for references, _ in scenes:
        true, false = references[0], references[1]
        (picture,) = shown(true)
        for scene in (true, false):
            noun, pose, place = scene.subject.identity.noun, scene.subject.pose, PLACES[scene.background]
            said = f"a photo of a {noun}{'' if pose == 'upright' else ' ' + pose} {place}"
            items.append(Item(said, "r", "s", "c", 0, picture, (), noun, said))
    found = np.array(metric.score(items)).reshape(-1, 2)
    assert (found[:, 0] > found[:, 1]).mean() >= 0.9


PLACES = {
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "city": "in the city",
    "grass": "on the grass",
    "night": "at night",
    "kitchen": "in the kitchen",
    "desert": "in the desert",
    "mountains": "in the mountains",
    "living room": "in the living room",
}


def test_a_copied_background_is_over_another(scenes):
    """The subject in its reference's place, and in one that no reference shows."""
    need("playroom-identity")
    from thisness.evaluation.metrics import make_metrics
    from thisness.playroom.world import change

    (metric,) = make_metrics("copy-background:encoder=playroom-identity")
    items = []
    for references, toys in scenes:
        *pictures, copied, elsewhere = shown(*references, change(toys[0], background=references[0].background), toys[0])
        for picture in (copied, elsewhere):
            items.append(Item("i", "r", "s", "c", 0, picture, tuple(pictures), "toy", "a toy"))
    found = np.array(metric.score(items)).reshape(-1, 2)
    assert found[:, 0].mean() > found[:, 1].mean()
    assert (found[:, 0] > found[:, 1]).mean() >= 0.8
