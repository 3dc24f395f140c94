"""Means, intervals, tests, fronts. Oracles: definitions gone through by brute force, scipy where it is installed,
coverage on data whose truth is known, results that follow by hand."""

import itertools
import math

import numpy as np
import pytest

from thisness.errors import UserError
from thisness.evaluation.items import Scored
from thisness.evaluation.statistics import (
    EXACT_UP_TO,
    by_recipe,
    estimate,
    front,
    holm,
    interval,
    paired,
    sign_flip,
    unit_means,
)


def row(recipe="a", subject="rex", case="c", seed=0, value=0.5, failure="", metric="m", **more):
    values = {} if failure else {metric: value}
    return Scored(
        f"{recipe}-{subject}-{case}-{seed}", recipe, subject, case, "pose", seed, "a dog", values,
        failure=failure, **more,
    )  # fmt: skip


def rows_of(values, recipe="a"):
    """values: by subject, a list with one value a seed; None for no value, "x" for a picture that failed."""
    return [
        row(recipe, subject, seed=seed, value=None if value == "x" else value, failure="broke" if value == "x" else "")
        for subject, found in values.items()
        for seed, value in enumerate(found)
    ]


def brute_sign_flip(values):
    signs = itertools.product((1, -1), repeat=len(values))
    sums = [abs(math.fsum(s * v for s, v in zip(pattern, values, strict=True))) for pattern in signs]
    return sum(found >= sums[0] - 1e-12 for found in sums) / len(sums)


def brute_front(points):
    return {
        name
        for name, (x, y) in points.items()
        if not any(p >= x and q >= y and (p, q) != (x, y) for p, q in points.values())
    }


def test_a_mean_is_over_subjects_and_says_what_it_left_out():
    found = estimate(rows_of({"rex": [1.0, 1.0, 1.0, 1.0], "mug": [0.0, None, "x"], "cat": ["x"]}), "m")
    assert found.mean == 0.5  # not 0.8: rex has four pictures and counts once
    assert (found.units, found.rows, found.missing, found.failed) == (2, 5, 1, 2)
    assert (found.low, found.high) == (0.0, 1.0)


def test_not_a_number_is_no_value():
    found = estimate(rows_of({"rex": [1.0, math.nan], "mug": [math.inf, 3.0]}), "m")
    assert (found.mean, found.rows, found.missing) == (2.0, 2, 2)


def test_one_subject_has_a_mean_and_no_interval():
    found = estimate(rows_of({"rex": [0.2, 0.4, 0.9]}), "m")
    assert found.mean == pytest.approx(0.5) and (found.low, found.high) == (None, None)


def test_nothing_measured_is_said_so():
    found = estimate(rows_of({"rex": ["x", None]}), "m")
    assert (found.mean, found.low, found.high, found.units, found.failed, found.missing) == (None, None, None, 0, 1, 1)
    nothing = paired([], [], "m")
    assert (nothing.difference, nothing.p, nothing.pairs, nothing.alone) == (None, None, 0, 0)


def test_a_sentence_without_a_subject_is_drawn_by_its_case():
    rows = [row(subject="", case=case, value=value) for case, value in (("one", 0.0), ("two", 1.0))]
    assert unit_means(rows, "m") == {"case one": 0.0, "case two": 1.0}


def test_whole_subjects_are_drawn_again():
    """Pictures of one subject that agree wholly add no certainty: 2 subjects x 50 equal pictures are 2 values."""
    many = {"rex": [0.0] * 50, "mug": [1.0] * 50, "cat": [0.5] * 50}
    few = {name: values[:1] for name, values in many.items()}
    wide, narrow = estimate(rows_of(many), "m", seed=3), estimate(rows_of(few), "m", seed=3)
    assert (wide.low, wide.high) == (narrow.low, narrow.high) and wide.high - wide.low > 0.5


def test_the_interval_is_that_of_the_exact_bootstrap():
    """All 4**4 resamples of four subjects, gone through."""
    values = [0.1, 0.4, 0.45, 0.9]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    low, high = interval(values, resamples=20_000, seed=1)
    assert abs(low - np.quantile(means, 0.025)) < 0.02 and abs(high - np.quantile(means, 0.975)) < 0.02


def test_the_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(5).normal(0.6, 0.1, 25)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(8)
    ).confidence_interval
    found = estimate(rows_of({f"s{n:02d}": [value] for n, value in enumerate(values)}), "m", resamples=20_000)
    assert abs(found.low - theirs.low) < 1.5e-3 and abs(found.high - theirs.high) < 1.5e-3


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(11)
    hits = 0
    for trial in range(400):
        subjects = random.normal(0.5, 0.1, 20)  # the truth is 0.5; pictures scatter about their subject
        means = (subjects[:, None] + random.normal(0, 0.05, (20, 4))).mean(axis=1)
        low, high = interval(list(means), resamples=500, seed=trial)
        hits += low <= 0.5 <= high
    assert 0.90 <= hits / 400 <= 0.97


def test_drawing_pictures_instead_would_cover_too_rarely():
    """Why subjects are drawn: the same data, each picture its own unit, misses the truth far more often."""
    random = np.random.default_rng(12)
    hits = 0
    for trial in range(200):
        subjects = random.normal(0.5, 0.1, 10)
        pictures = (subjects[:, None] + random.normal(0, 0.02, (10, 8))).ravel()
        low, high = interval(list(pictures), resamples=300, seed=trial)
        hits += low <= 0.5 <= high
    assert hits / 200 < 0.7


def test_the_same_rows_in_another_order_give_the_same_numbers():
    values = {f"s{n}": list(np.random.default_rng(n).random(3)) for n in range(7)}
    rows = rows_of(values)
    assert estimate(rows, "m") == estimate(rows[::-1], "m")
    assert estimate(rows, "m", seed=1) != estimate(rows, "m", seed=2)


def test_identical_recipes_differ_by_nothing():
    values = {f"s{n}": list(np.random.default_rng(n).random(3)) for n in range(9)}
    found = paired(rows_of(values, "a"), rows_of(values, "b"), "m")
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert (found.wins, found.ties, found.losses) == (0, 27, 0)


def test_only_shared_rows_are_compared():
    """b fails where a is worst: its mean is flattered, the difference is not."""
    first = rows_of({"rex": [0.9, 0.1], "mug": [0.8, 0.2]}, "a")
    second = rows_of({"rex": [0.8, "x"], "mug": [0.6, None], "cat": [0.9]}, "b")
    found = paired(first, second, "m")
    assert found.difference == pytest.approx(0.15)
    assert (found.wins, found.ties, found.losses, found.pairs, found.units, found.alone) == (2, 0, 0, 2, 2, 3)
    assert estimate(first, "m").mean < estimate(second, "m").mean


def test_the_difference_turns_with_its_sides():
    random = np.random.default_rng(4)
    first, second = ({f"s{n}": list(random.random(2)) for n in range(6)} for _ in range(2))
    one = paired(rows_of(first, "a"), rows_of(second, "b"), "m")
    other = paired(rows_of(second, "b"), rows_of(first, "a"), "m")
    assert one.difference == pytest.approx(-other.difference) and one.p == other.p
    assert (one.wins, one.losses) == (other.losses, other.wins)
    shared = [np.mean(first[s]) - np.mean(second[s]) for s in first]
    assert one.p == pytest.approx(brute_sign_flip(shared))


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_sign_flips_are_all_gone_through(count):
    random = np.random.default_rng(count)
    for values in (random.normal(0.1, 1, count), np.round(random.normal(0.5, 1, count), 1)):  # the second has ties
        assert sign_flip(list(values)) == pytest.approx(brute_sign_flip(list(values)))
    assert sign_flip([0.1] * count) == pytest.approx(2 / 2**count)  # the least that so many subjects can give


def test_random_sign_flips_agree_with_the_exact_ones():
    values = list(np.random.default_rng(2).normal(0.35, 1, EXACT_UP_TO + 1))
    assert abs(sign_flip(values) - brute_sign_flip(values)) < 0.01
    assert sign_flip([1.0] * 40) == pytest.approx(1 / 20_001)  # never zero


def test_p_is_uniform_where_nothing_differs():
    random = np.random.default_rng(6)
    found = [sign_flip(list(random.normal(0, 1, 8))) for _ in range(400)]
    for level in (0.05, 0.2, 0.5):
        assert abs(np.mean([p <= level for p in found]) - level) < 3 * math.sqrt(level * (1 - level) / 400)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([None]) == [None]


def test_the_front_is_what_nothing_beats():
    random = np.random.default_rng(0)
    for trial in range(60):
        points = {str(n): tuple(pair) for n, pair in enumerate(random.integers(0, 6, (trial % 12, 2)).tolist())}
        found = front(points)
        assert set(found) == brute_front(points) and len(found) == len(set(found))
        assert [points[name][0] for name in found] == sorted((points[name][0] for name in found), reverse=True)
    assert front({"a": (1.0, None), "b": (None, 1.0), "c": (0.0, 0.0)}) == ["c"]


def test_two_rows_for_the_same_are_refused():
    with pytest.raises(UserError, match="two rows for subject 'rex', case 'c', seed 0"):
        paired([row(), row()], [row("b")], "m")


def test_recipes_keep_their_order():
    assert list(by_recipe([row("b"), row("a"), row("b", seed=1)])) == ["b", "a"]
