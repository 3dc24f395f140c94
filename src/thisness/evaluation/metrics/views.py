"""What of a picture an encoder sees: all of it, or the subject alone, or everything but the subject."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image

from ...errors import ImageError
from ..items import Picture

Part = Literal["whole", "subject", "background"]
Fill = Literal["grey", "black", "white"]
FILLS: dict[str, int] = {"black": 0, "grey": 128, "white": 255}
LEAST = 0.5
"""Share of a patch, or value of a mask, from which on it belongs to the subject."""


@dataclass(frozen=True, eq=False)
class View:
    """A picture with what is not looked at painted over in one colour; made only when somebody needs its pixels.

    Args:
        picture: with a mask, unless all of it is looked at.
        part: what stays: inside the mask ("subject"), outside of it ("background").
        fill: what the rest becomes; soft edges are mixed.
    """

    picture: Picture
    part: Part = "whole"
    fill: Fill = "grey"

    @cached_property
    def hash(self) -> str:
        """Of the pixels, and of the mask where it counts."""
        if self.part == "whole":
            return self.picture.hash
        said = f"{self.picture.hash}/{self.picture.mask_hash}/{self.part}/{self.fill}"
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def image(self) -> Image.Image:
        if self.part == "whole":
            return self.picture.image
        mask, image = self.picture.mask, self.picture.image.convert("RGB")
        assert mask is not None, "has_part was asked first"
        inside = np.round(mask * 255) / 255  # as fine as its hash
        kept = inside if self.part == "subject" else 1 - inside
        pixels = np.asarray(image, np.float32)  # of its own kind: 8-bit numbers wrap around
        mixed = pixels * kept[..., None] + FILLS[self.fill] * (1 - kept[..., None])
        return Image.fromarray(np.clip(np.round(mixed), 0, 255).astype(np.uint8))


def has_part(picture: Picture, part: Part) -> bool:
    """Whether there is anything to look at: a part needs a mask that is neither empty nor, for the background, full.

    Raises:
        ImageError: the mask is of another size than the picture.
    """
    if part == "whole":
        return True
    if picture.mask is None:
        return False
    if picture.mask.shape != (picture.image.height, picture.image.width):
        raise ImageError(
            f"the mask is {picture.mask.shape[1]}x{picture.mask.shape[0]} but the picture is "
            f"{picture.image.width}x{picture.image.height}: pass a mask of the picture's size"
        )
    return bool((picture.mask >= LEAST).any() if part == "subject" else (picture.mask < LEAST).any())


def seen(picture: Picture, part: Part, fill: Fill) -> View | None:
    """The view, or None where there is nothing to look at."""
    return View(picture, part, fill) if has_part(picture, part) else None
