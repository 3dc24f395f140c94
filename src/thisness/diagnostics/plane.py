"""Principal components in two dimensions: the plane in which pictures spread the most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UserError


@dataclass(frozen=True, eq=False)
class Plane:
    """Two orthogonal directions in the space of the features.

    Args:
        mean: (d,) of the features that it was fitted on.
        axes: (2, d), unit length; the entry of largest size in each is positive, so that a sign is no accident.
        explained: share of the variance along each axis, 0 to 1.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: tuple[float, float]

    def place(self, features: np.ndarray) -> np.ndarray:
        """Coordinates. features: (n, d) -> (n, 2)."""
        return (np.asarray(features, np.float64) - self.mean) @ self.axes.T


def fit_plane(features: np.ndarray) -> Plane:
    """Principal component analysis by a singular value decomposition, every row counted once.

    Args:
        features: (n, d), n and d at least 3 and 2, finite.

    Raises:
        UserError: fewer rows, fewer columns, or values that are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or features.shape[0] < 3 or features.shape[1] < 2:
        raise UserError(f"a plane needs 3 pictures of 2 features at least: found {features.shape}")
    if not np.isfinite(features).all():
        raise UserError("some features are not finite: use another encoder, or another --dtype")
    mean = features.mean(0)
    _, sizes, axes = np.linalg.svd(features - mean, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    total = float((sizes**2).sum())
    shares = (sizes[:2] ** 2 / total) if total > 0 else np.zeros(2)
    return Plane(mean, axes, (float(shares[0]), float(shares[1])))


def unit(features: np.ndarray) -> np.ndarray:
    """Rows brought to length 1, so that distances order as cosines do. features: (n, d)."""
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
