"""Pictures of any shape to the square that a model takes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import ImageError
from .reading import INSIDE


def fit_square(image: Image.Image, size: int, mask: np.ndarray | None = None) -> tuple[Image.Image, np.ndarray | None]:
    """Crop to the largest square, as near to the subject's middle as it goes, and scale to `size`.

    A subject that is longer than the shorter side of the picture is not cut: the picture is extended to hold it, by
    its edge pixels, which the mask marks as background.

    Args:
        image: any size.
        size: side of the result, in pixels.
        mask: (H, W) float in [0, 1] of the picture's size, 1 the subject; None takes the picture's middle.

    Returns:
        The square picture, and the mask (size, size) float32 in [0, 1], None where none was given.

    Raises:
        ImageError: the mask is of another size.
    """
    if mask is not None and mask.shape != (image.height, image.width):
        raise ImageError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} but the picture is {image.width}x{image.height}: "
            "pass a mask of the picture's size"
        )
    left, top, right, bottom = _bounds(mask) if mask is not None else (0, 0, 0, 0)
    side = max(min(image.size), right - left, bottom - top)
    middle = ((left + right) / 2, (top + bottom) / 2) if mask is not None else (image.width / 2, image.height / 2)
    x, y = (_start(centre, side, length) for centre, length in zip(middle, image.size, strict=True))
    if side > min(image.size):
        image, mask = _extended(image, mask, side)
        x, y = max(x, 0), max(y, 0)
    box = (x, y, x + side, y + side)
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if mask is None:
        return square, None
    scaled = Image.fromarray(np.asarray(mask, np.float32)).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return square, np.clip(np.asarray(scaled, np.float32), 0, 1)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what belongs to the subject; the whole picture where nothing does."""
    rows, columns = (np.flatnonzero((mask >= INSIDE).any(axis)) for axis in (1, 0))
    if not rows.size:
        return 0, 0, mask.shape[1], mask.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _start(centre: float, side: int, length: int) -> int:
    """Where a stretch of `side` begins that is centred as asked, but lies within 0 ... `length` if it can."""
    return min(max(round(centre - side / 2), 0), max(length - side, 0))


def _extended(image: Image.Image, mask: np.ndarray | None, side: int) -> tuple[Image.Image, np.ndarray | None]:
    """Both at least `side` high and wide, in the middle."""
    height, width = (max(side - length, 0) for length in (image.height, image.width))
    before_after = ((height // 2, height - height // 2), (width // 2, width - width // 2))
    pixels = np.pad(np.asarray(image.convert("RGB")), (*before_after, (0, 0)), mode="edge")
    return Image.fromarray(pixels), None if mask is None else np.pad(mask, before_after)
