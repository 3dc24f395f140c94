"""The plane. Oracle: eigenvectors of the covariance matrix, computed another way; data that lie in a known plane."""

import numpy as np
import pytest

from thisness.diagnostics.plane import fit_plane, unit
from thisness.errors import UserError


def test_coordinates_are_those_of_the_covariance_matrix():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)) * np.array([5, 3, 1, 1, 0.5, 0.1]) + rng.normal(size=6)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    largest = vectors[:, np.argsort(values)[::-1][:2]]
    largest = largest * np.sign(largest[np.abs(largest).argmax(0), [0, 1]])
    plane = fit_plane(features)
    assert np.allclose(plane.place(features), (features - features.mean(0)) @ largest, atol=1e-10)
    assert np.allclose(plane.explained, np.sort(values)[::-1][:2] / values.sum())


def test_distances_of_points_in_a_plane_are_kept():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(20, 2))
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0][:2]
    plane = fit_plane(flat @ turn + 4)
    placed = plane.place(flat @ turn + 4)
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    assert np.allclose(np.linalg.norm(placed[:, None] - placed[None], axis=-1), apart)
    assert sum(plane.explained) == pytest.approx(1)


def test_order_of_distances_of_unit_rows_is_that_of_cosines():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(30, 5)) * rng.uniform(0.1, 9, (30, 1))
    cosines = rows[1:] @ rows[0] / np.linalg.norm(rows[1:], axis=1) / np.linalg.norm(rows[0])
    assert (np.argsort(np.linalg.norm(unit(rows)[1:] - unit(rows)[0], axis=1)) == np.argsort(-cosines)).all()


@pytest.mark.parametrize("features", [np.zeros((2, 5)), np.zeros((5, 1)), np.zeros(5), np.full((5, 3), np.nan)])
def test_what_has_no_plane_is_refused(features):
    with pytest.raises(UserError):
        fit_plane(features)
