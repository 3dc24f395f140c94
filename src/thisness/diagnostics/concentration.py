"""How much of a map lies inside a mask, and how sharp it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import ImageError


@dataclass(frozen=True)
class Concentration:
    """Numbers of one map over a picture.

    Args:
        inside: share of the map's sum inside the mask, 0 to 1 (Harmonizing, section on attention maps).
        ratio: `inside` over the mask's share of the area: 1 for a map that knows nothing of the mask.
        inside_stretched: the same share after the map was stretched to 0 ... 1; None for a flat map. The paper does not
            say how it normalises.
        entropy: of the map as a distribution, 0 (one point) to 1 (uniform).
    """

    inside: float | None
    ratio: float | None
    inside_stretched: float | None
    entropy: float


def concentration(values: np.ndarray, mask: np.ndarray | None) -> Concentration:
    """Measure a map.

    Args:
        values: (h, w), not negative, not all zero.
        mask: (h, w) in [0, 1], the share of each cell that is inside, not all zero; None: only the entropy.

    Raises:
        ImageError: the mask is of another size, or holds nothing.
        ValueError: the map has negative values, or holds nothing.
    """
    values = np.asarray(values, np.float64)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.sum() > 0):
        raise ValueError("a map has finite values that are not negative, and not all of them zero")
    share = values / values.sum()
    some = share[share > 0]
    entropy = float(-(some * np.log(some)).sum() / math.log(share.size)) if share.size > 1 else 0.0
    if mask is None:
        return Concentration(None, None, None, entropy)
    if mask.shape != values.shape:
        raise ImageError(f"the mask is {_size(mask)} but the map is {_size(values)}: bring it to the map's size")
    if not mask.sum() > 0:
        raise ImageError("the mask is empty: nothing can lie inside it")
    inside = float((share * mask).sum())
    stretched = values - values.min()
    flat = stretched.sum() <= 1e-9 * values.sum()
    return Concentration(
        inside=inside,
        ratio=inside / float(mask.mean()),
        inside_stretched=None if flat else float((stretched * mask).sum() / stretched.sum()),
        entropy=entropy,
    )


def shrink(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask on the grid of a map: the share of each cell that is inside. (H, W) -> (side, side)."""
    picture = Image.fromarray(np.asarray(mask, np.float32))
    return np.clip(np.asarray(picture.resize((side, side), Image.Resampling.BOX), np.float64), 0, 1)


def otsu(values: np.ndarray) -> float:
    """The threshold that parts values into two groups as far apart as can be (Otsu 1979): the larger variance between.

    Args:
        values: any shape, two different values at least.

    Returns:
        The middle between the largest value of the lower group and the smallest of the upper one.

    Raises:
        ValueError: all values are equal.
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    if ordered[0] == ordered[-1]:
        raise ValueError("values that are all equal have no threshold")
    count = np.arange(1, ordered.size)
    below = np.cumsum(ordered)[:-1]
    gap = below / count - (ordered.sum() - below) / (ordered.size - count)
    between = count * (ordered.size - count) * gap**2
    between[ordered[1:] == ordered[:-1]] = -1  # equal values stay together
    at = int(between.argmax())
    return float((ordered[at] + ordered[at + 1]) / 2)


def _size(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape[::-1]))
