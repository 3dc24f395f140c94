"""Numbers of a map. Oracles: maps whose share is known, arithmetic written out, thresholds tried one by one."""

import math

import numpy as np
import pytest

from thisness.diagnostics.concentration import concentration, otsu, shrink
from thisness.errors import ImageError

MASK = np.zeros((8, 8))
MASK[2:5, 1:7] = 1


def test_a_uniform_map_has_the_masks_share_of_the_area():
    found = concentration(np.full((8, 8), 0.3), MASK)
    assert found.inside == pytest.approx(18 / 64) and found.ratio == pytest.approx(1)
    assert found.entropy == pytest.approx(1) and found.inside_stretched is None


def test_a_map_inside_the_mask_has_it_all():
    found = concentration(MASK * np.arange(1, 9), MASK)
    assert found.inside == pytest.approx(1) and found.ratio == pytest.approx(64 / 18)
    assert found.inside_stretched == pytest.approx(1)


def test_a_map_outside_has_none_and_a_point_has_no_entropy():
    point = np.zeros((8, 8))
    point[0, 0] = 2
    found = concentration(point, MASK)
    assert found.inside == 0 and found.ratio == 0 and found.entropy == 0


def test_scale_does_not_count_and_the_mean_ratio_of_random_maps_is_one():
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 1, (500, 8, 8))
    assert np.mean([concentration(each, MASK).ratio for each in maps]) == pytest.approx(1, abs=0.02)
    one, other = concentration(maps[0], MASK), concentration(7 * maps[0], MASK)
    assert (one.inside, one.entropy) == pytest.approx((other.inside, other.entropy))


def test_stretching_takes_the_floor_away():
    """Half of a map's sum is a floor that all places share: without it the rest lies where it lies."""
    found = concentration(MASK + 5, MASK)
    assert found.inside == pytest.approx(18 * 6 / (18 * 6 + 46 * 5)) and found.inside_stretched == pytest.approx(1)


def test_entropy_of_two_equal_places():
    two = np.zeros((4, 4))
    two[0, 0] = two[3, 3] = 5
    assert concentration(two, None).entropy == pytest.approx(math.log(2) / math.log(16))


def test_a_soft_mask_counts_by_its_share():
    soft = shrink(MASK, 4)
    assert soft.mean() == pytest.approx(MASK.mean()) and soft[1, 0] == pytest.approx(0.5)
    assert concentration(np.ones((4, 4)), soft).ratio == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_otsu_finds_the_best_of_all_thresholds(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 40), rng.normal(4, 1, 15)])

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(threshold) for threshold in np.sort(values)[:-1])
    assert between(otsu(values)) == pytest.approx(best)


def test_otsu_does_not_part_equal_values():
    assert otsu(np.array([0.0, 0, 0, 1, 1])) == 0.5
    with pytest.raises(ValueError):
        otsu(np.ones(4))


@pytest.mark.parametrize("mask, words", [(np.ones((4, 8)), "8x4"), (np.zeros((8, 8)), "empty")])
def test_masks_that_do_not_fit_are_refused(mask, words):
    with pytest.raises(ImageError, match=words):
        concentration(np.ones((8, 8)), mask)


@pytest.mark.parametrize("values", [np.zeros((8, 8)), np.full((8, 8), -1.0), np.full((8, 8), np.nan)])
def test_what_is_no_map_is_refused(values):
    with pytest.raises(ValueError):
        concentration(values, MASK)
