"""The numbers and the verdict. Oracles: synthetic sets whose bias is built in, chances counted by drawing, a published
example."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from thisness.diagnostics.plane import unit
from thisness.diagnostics.pose_bias import compare_poses, measure, measure_answer, measure_nearness
from thisness.errors import UserError

WIDTH, SUBJECT, POSE, OTHER = 24, 5, 6, 7


def world(follows: float, resembles: float = 1.0, noise: float = 0.25, seed: int = 0, count: int = 32):
    """Features with a direction for the subject, one for the asked pose and one for the references' pose.

    follows: how far the subject's pictures go from the references' pose to the asked one; resembles: how much of the
    subject is in them.
    """
    rng = np.random.default_rng(seed)

    def pictures(n, **parts):
        rows = rng.normal(0, noise, (n, WIDTH))
        rows[:, 0] += 6  # what all pictures share
        for name, value in parts.items():
            rows[:, {"subject": SUBJECT, "pose": POSE, "other": OTHER}[name]] += value
        return rows

    return {
        "generated": pictures(count, subject=2 * resembles, pose=2 * follows, other=2 * (1 - follows) * resembles),
        "references": pictures(3, subject=2, other=2),
        "plain": pictures(16, pose=2),
        "neutral": pictures(16, subject=2 * resembles, other=2 * resembles),
        "plain_neutral": pictures(16),
    }


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "follows, resembles, verdict",
    [(0.05, 1, "pose bias"), (1.0, 1, "follows"), (0.9, 0.1, "follows"), (0.0, 0.05, "words lost")],
)
def test_the_verdict_flips_between_biased_and_unbiased_pictures(follows, resembles, verdict, seed):
    assert measure(**world(follows, resembles, seed=seed)).verdict == verdict


def test_the_answer_measures_how_far_the_words_move_the_pictures():
    """The references' pose recedes as the asked one comes; only the direction of the plain base's movement counts."""
    for follows in (0.0, 0.3, 0.6, 1.0):
        worlds = [
            {name: unit(rows) for name, rows in world(follows, noise=0.1, seed=seed).items()} for seed in range(4)
        ]
        answers = [
            measure_answer(w["generated"][:16] - w["neutral"], w["plain"] - w["plain_neutral"]).value for w in worlds
        ]
        assert np.mean(answers) == pytest.approx(follows, abs=0.12)


def test_the_answer_is_not_made_small_by_noise():
    """Without the correction, noise in the base's own movement makes |D|^2 larger and each answer smaller."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(60):
        plain = rng.normal(0, 0.5, (8, 40))
        plain[:, 0] += 2
        moved = rng.normal(0, 0.5, (32, 40))
        moved[:, 0] += 2
        values.append(measure_answer(moved, plain).value)
    assert np.mean(values) == pytest.approx(1, abs=0.05)
    assert 4 / (4 + 40 * 0.25 / 8) < 0.8  # what it would be


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    plain = np.tile(np.eye(1, 5) * 2, (16, 1)) + rng.normal(0, 1e-6, (16, 5))
    hits = 0
    for _ in range(200):
        moved = rng.normal(0, 1, (32, 5))
        moved[:, 0] += 0.8
        answer = measure_answer(moved, plain)
        hits += answer.low <= 0.4 <= answer.high
    assert 0.88 <= hits / 200 <= 0.99


def test_no_answer_where_the_plain_base_does_not_move():
    rng = np.random.default_rng(0)
    assert measure_answer(rng.normal(size=(16, 30)), rng.normal(size=(16, 30))) is None
    found = measure(**world(1.0) | {"plain_neutral": world(1.0, seed=9)["plain"]})
    assert found.answer is None and found.verdict == "unclear"


def test_nearness_is_the_chance_counted_by_drawing():
    rng = np.random.default_rng(0)
    pictures, references, others = rng.normal(size=(6, 3)), rng.normal(size=(3, 3)), rng.normal(size=(7, 3))
    won, draws = 0, 0
    for picture in pictures:
        own = np.linalg.norm(references - picture, axis=1).min()
        for drawn in itertools.combinations(others, 3):
            won += own <= np.linalg.norm(np.array(drawn) - picture, axis=1).min()
            draws += 1
    assert measure_nearness(pictures, references, others) == pytest.approx(won / draws)


def test_nearness_of_like_to_like_is_a_half():
    values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values.append(measure_nearness(*(rng.normal(size=(n, 4)) for n in (20, 4, 30))))
    assert np.mean(values) == pytest.approx(0.5, abs=0.04)


def test_references_in_the_asked_pose_tempt_nobody():
    given = world(1.0)
    given["references"][0] = given["generated"][0]  # one that shows the asked pose
    assert measure(**given, tempting=[False, True, True]).peaks[0].reference != 0
    assert measure(**given).peaks[0].reference == 0
    none = measure(**given, tempting=[False] * 3)
    assert none.nearness is None and none.verdict == "follows"


def test_peaks_are_measured_in_spreads_of_the_plain_base():
    given = world(0.0)
    found = measure(**given)
    places = found.plane.place(given["plain"] / np.linalg.norm(given["plain"], axis=1, keepdims=True))
    assert found.spread == pytest.approx(np.sqrt(((places - places.mean(0)) ** 2).sum(1).mean()))
    peak = found.peaks[0]
    apart = np.linalg.norm(found.references - np.array(peak.peak.at), axis=1)
    assert peak.distance == pytest.approx(apart.min() / found.spread) and peak.reference == apart.argmin()
    assert peak.distance < 1.5 < measure(**world(1.0)).peaks[0].distance


@pytest.fixture(scope="module", params=[0.0, 1.0])
def measured(request):
    return measure(**world(request.param))


def read(**counts):
    return [pose for pose, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    "generated, verdict",
    [
        (read(sleeping=30, sitting=2), "follows"),
        (read(sleeping=6, sitting=26), "pose bias"),
        (read(sleeping=4, running=28), "words lost"),
    ],
)
def test_poses_that_were_read_decide(measured, generated, verdict):
    poses = compare_poses("sleeping", ["sitting", "sleeping"], generated, read(sleeping=15, sitting=1))
    assert replace(measured, poses=poses).verdict == verdict


def test_the_interval_of_a_difference_is_newcombes():
    """Newcombe 1998, table II, example (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339."""
    poses = compare_poses("asked", ["bait"], read(bait=56, asked=14), read(bait=48, asked=32))
    assert (poses.excess, poses.low, poses.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_the_numbers_are_plain_json():
    poses = compare_poses("sleeping", ["sitting"], ["sleeping"] * 4, ["sleeping"] * 4, ["sitting"] * 3, ["running"] * 2)
    data = measure(**world(1.0), poses=poses).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert "in it without the words: 100%, plain base 0%" in data["sentence"]
    assert data["poses"]["generated"] == {"sleeping": 4} and len(data["places"]["generated"]) == 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"generated": np.ones((3, WIDTH))},
        {"plain": np.ones((2, WIDTH))},
        {"references": np.ones((0, WIDTH))},
        {"references": np.ones((2, WIDTH + 1))},
        {"neutral": np.ones((40, WIDTH))},
        {"tempting": [True]},
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(UserError) as refused:
        measure(**world(1.0) | wrong)
    assert "\n" not in str(refused.value)
