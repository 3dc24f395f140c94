"""The density and its peaks. Oracles: an integral, the formula written out, mixtures whose middles are known."""

import numpy as np
import pytest

from thisness.diagnostics.density import Density, find_peaks, fit_density


def mixture(middles, counts, seed=0, width=0.4):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(m, width, (n, 2)) for m, n in zip(middles, counts, strict=True)])


def test_the_integral_is_one():
    density = fit_density(mixture([(0, 0), (3, 1)], [20, 12]))
    low, high = np.array([-8.0, -8.0]), np.array([11.0, 9.0])
    assert density.grid(low, high, 300).sum() * np.prod((high - low) / 300) == pytest.approx(1, abs=1e-3)


def test_values_are_those_of_the_formula():
    points = mixture([(0, 0)], [7])
    density = fit_density(points)
    places = np.array([(0.3, -0.2), (1.0, 1.0)])
    for place, value in zip(places, density.at(places), strict=True):
        terms = [np.exp(-((place - point) @ (place - point)) / (2 * density.width**2)) for point in points]
        assert value == pytest.approx(sum(terms) / len(points) / (2 * np.pi * density.width**2))


def test_the_grid_holds_the_same_values():
    density = fit_density(mixture([(0, 0), (2, 3)], [7, 5]))
    low, high = np.array([-1.0, -2.0]), np.array([3.0, 5.0])
    grid = density.grid(low, high, 5)
    for row, column in [(0, 0), (4, 1), (2, 3)]:
        place = low + (np.array([column, row]) + 0.5) * (high - low) / 5
        assert grid[row, column] == pytest.approx(density.at(place[None])[0])


def test_the_width_is_the_likeliest_one():
    """Left out one by one, computed with a loop; and it follows the clusters, not the distance between them."""
    points = mixture([(0, 0), (8, 0)], [10, 10])
    chosen = fit_density(points).width

    def likelihood(width):
        without = (Density(np.delete(points, number, 0), width).at(points[[number]])[0] for number in range(20))
        return sum(np.log(max(each, 1e-300)) for each in without)

    assert likelihood(chosen) > max(likelihood(chosen * 1.2), likelihood(chosen / 1.2) if chosen > 0.6 else -np.inf)
    assert chosen < 1.0 < points.std(0).mean()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("middles, counts", [([(0, 0), (4, 0)], [20, 12]), ([(0, 0), (5, 0), (0, 5)], [30, 20, 14])])
def test_peaks_of_mixtures_are_found(middles, counts, seed):
    peaks = find_peaks(fit_density(mixture(middles, counts, seed)))
    assert len(peaks) == len(middles)
    for peak, middle, count in zip(peaks, middles, counts, strict=True):
        assert np.linalg.norm(np.array(peak.at) - middle) < 0.45
        assert peak.share == pytest.approx(count / sum(counts))


def test_one_cluster_has_one_peak_as_a_rule():
    counts = [len(find_peaks(fit_density(mixture([(0, 0)], [32], seed)))) for seed in range(6)]
    assert sum(count == 1 for count in counts) >= 5


def test_a_shoulder_is_no_peak():
    """Two kernels whose sum has two tops: with a shallow valley between them they are one, with a strict rule two."""
    density = Density(np.array([(0.0, 0.0), (2.3, 0.0)] * 3), 1.0)
    assert len(find_peaks(density, valley=0.75)) == 1 and len(find_peaks(density, valley=1.0)) == 2


def test_members_are_those_of_their_cluster_and_the_nearest_comes_first():
    points = mixture([(0, 0), (6, 0)], [20, 10])
    first, second = find_peaks(fit_density(points))
    assert set(first.members) == set(range(20)) and set(second.members) == set(range(20, 30))
    apart = np.linalg.norm(points - np.array(first.at), axis=1)
    assert first.members[0] == apart.argmin()


def test_a_small_hill_is_no_peak_but_one_peak_is_always_left():
    points = mixture([(0, 0), (9, 0)], [30, 3])
    assert len(find_peaks(fit_density(points), 0.05)) == 2 and len(find_peaks(fit_density(points), 0.1)) == 1
    assert len(find_peaks(fit_density(points), 1.0)) == 1


def test_points_in_one_place_and_on_a_line():
    (peak,) = find_peaks(fit_density(np.ones((8, 2))))
    assert np.allclose(peak.at, 1, atol=1e-4) and peak.share == 1
    line = np.stack([np.linspace(0, 1, 9), np.linspace(0, 2, 9)], 1)
    assert np.isfinite([peak.at for peak in find_peaks(fit_density(line), 0)]).all()


def test_two_points_that_are_near_each_other_are_no_peak():
    points = mixture([(0, 0), (9, 0)], [10, 2])
    assert [set(peak.members) for peak in find_peaks(fit_density(points))] == [set(range(10))]
