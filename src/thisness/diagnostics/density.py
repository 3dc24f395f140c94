"""Density of points in a plane, and its peaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CELLS = 64  # of the grid on which peaks are looked for, along each side
SCOTT = -1 / 6  # exponent of Scott's rule in two dimensions
FACTORS = tuple(np.geomspace(0.3, 1.5, 15).tolist())  # on its width
VALLEY = 0.75  # of a peak's height: where the way to a higher one never falls under it, both are one peak
SMALLEST_SHARE = 0.1
FEWEST = 3  # points of a peak: two are near each other by chance


@dataclass(frozen=True)
class Peak:
    """A place where points lie densest.

    Args:
        at: (x, y).
        share: of the points that lie on its hill, 0 to 1.
        members: their numbers, the nearest to the peak first.
    """

    at: tuple[float, float]
    share: float
    members: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Density:
    """A Gaussian kernel density, the kernel a circle.

    Args:
        points: (n, 2).
        width: standard deviation of the kernel.
    """

    points: np.ndarray
    width: float

    def at(self, places: np.ndarray) -> np.ndarray:
        """Density, whose integral over the plane is 1. places: (m, 2) -> (m,)."""
        apart = ((np.asarray(places)[:, None] - self.points[None]) ** 2).sum(-1)
        return np.exp(-apart / (2 * self.width**2)).mean(1) / (2 * math.pi * self.width**2)

    def grid(self, low: np.ndarray, high: np.ndarray, cells: int = CELLS) -> np.ndarray:
        """Values at the centres of the cells of a rectangle: (cells, cells), rows along y from low to high."""
        along = [
            np.exp(
                -((_centres(low[axis], high[axis], cells)[:, None] - self.points[:, axis]) ** 2) / (2 * self.width**2)
            )
            for axis in (0, 1)
        ]
        return along[1] @ along[0].T / (2 * math.pi * self.width**2 * len(self.points))


def fit_density(points: np.ndarray) -> Density:
    """A kernel of the width under which each point is likeliest given the others (leave-one-out likelihood).

    Scott's rule is made for a single peak and would join several; the widths that are tried lie about it.

    Args:
        points: (n, 2), n at least 2.
    """
    points = np.asarray(points, np.float64)
    scott = math.sqrt(float(points.var(0, ddof=1).mean())) * len(points) ** SCOTT
    if scott < 1e-9:
        return Density(points, 1e-6)
    apart = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)

    def likelihood(width: float) -> float:
        others = np.exp(-apart / (2 * width**2)).sum(1) / width**2
        return float(np.log(np.maximum(others, 1e-300)).sum())

    return Density(points, max((factor * scott for factor in FACTORS), key=likelihood))


def find_peaks(density: Density, smallest_share: float = SMALLEST_SHARE, valley: float = VALLEY) -> tuple[Peak, ...]:
    """The peaks, those with the most points first.

    The plane is flooded from the top down, cell by cell: hills grow, and where two meet, the lower one is a peak of its
    own only if the place of meeting is under `valley` times its height; otherwise it is a shoulder of the higher one.

    Args:
        density: of which.
        smallest_share: peaks with a smaller share of the points, or fewer than 3, are left out, but never the first.
        valley: 0 to 1.
    """
    low, high = density.points.min(0) - 3 * density.width, density.points.max(0) + 3 * density.width
    hill = _hills(density.grid(low, high), valley)
    step = (high - low) / CELLS
    cells = np.clip(((density.points - low) / step).astype(int), 0, CELLS - 1)
    owners = hill[cells[:, 1], cells[:, 0]]
    peaks = []
    for top in np.unique(owners):
        at = low + (np.array([top % CELLS, top // CELLS]) + 0.5) * step
        members = np.flatnonzero(owners == top)
        order = np.argsort(np.linalg.norm(density.points[members] - at, axis=1), kind="stable")
        near = tuple(int(each) for each in members[order])
        peaks.append(Peak((float(at[0]), float(at[1])), len(members) / len(owners), near))
    peaks.sort(key=lambda peak: (-peak.share, peak.at))
    return tuple(
        peak
        for index, peak in enumerate(peaks)
        if index == 0 or (peak.share >= smallest_share and len(peak.members) >= FEWEST)
    )


def _centres(low: float, high: float, cells: int) -> np.ndarray:
    return low + (np.arange(cells) + 0.5) * (high - low) / cells


def _hills(values: np.ndarray, valley: float) -> np.ndarray:
    """For each cell the flat index of the top of its hill. values: (rows, columns) -> the same shape."""
    rows, columns = values.shape
    flat = values.ravel()
    hill = np.full(flat.shape, -1)  # by which a cell was flooded first
    shoulder: dict[int, int] = {}  # a lower top that is no peak -> the higher one

    def top(cell: int) -> int:
        found = int(hill[cell])
        while found in shoulder:
            found = shoulder[found]
        return found

    for cell in np.argsort(-flat, kind="stable").tolist():
        y, x = divmod(cell, columns)
        around = (
            j * columns + i
            for j in range(max(y - 1, 0), min(y + 2, rows))
            for i in range(max(x - 1, 0), min(x + 2, columns))
        )
        tops = sorted({top(each) for each in around if hill[each] >= 0}, key=lambda each: -flat[each])
        hill[cell] = tops[0] if tops else cell
        for lower in tops[1:]:
            if flat[cell] > valley * flat[lower]:
                shoulder[lower] = tops[0]
    return np.array([top(cell) for cell in range(flat.size)]).reshape(rows, columns)
