"""Pictures inside of a page: small, as data, within a budget."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from ...errors import ImageError
from ...images import load_image

BUDGET = 14 * 2**20  # bytes of base64: the page stays below 20 MB with room for its tables
QUALITY = 86


class Thumbnails:
    """Data URIs of pictures, each made once.

    Args:
        budget: bytes that all URIs together may have; what would go over it is left out.

    Attributes:
        left_out: pictures that found no place in the budget.
        unreadable: files that are missing or cannot be read.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._room = budget
        self._made: dict[tuple[Path, int], str] = {}
        self.left_out = 0
        self.unreadable: list[Path] = []

    def uri(self, path: Path, side: int) -> str:
        """A JPEG whose longer side is at most `side`, as "data:image/jpeg;base64,..."; "" where it cannot be shown."""
        if (path, side) not in self._made:
            self._made[path, side] = self._make(path, side)
        text = self._made[path, side]
        if len(text) > self._room:
            self.left_out += 1
            return ""
        self._room -= len(text)
        return text

    def _make(self, path: Path, side: int) -> str:
        image = self.image(path, side)
        if image is None:
            return ""
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    def image(self, path: Path, side: int) -> Image.Image | None:
        """The picture, scaled down to `side` where it is longer; None where it cannot be read (noted)."""
        try:
            image = load_image(path)
        except (ImageError, OSError):
            if path not in self.unreadable:
                self.unreadable.append(path)
            return None
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image


def missing(side: int) -> Image.Image:
    """What stands where a picture cannot be shown."""
    return Image.new("RGB", (side, side), "#e4e4e0")
