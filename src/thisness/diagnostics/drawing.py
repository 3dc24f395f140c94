"""Drawing at twice the size, brought down at the end, so that lines and letters are smooth; and colours that people
of all kinds of colour vision tell apart (Okabe and Ito 2008), for points and for maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..images.sheets import FAINT, INK, LINE, wrap

BLUE, ORANGE, VERMILION, GREEN, SKY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9"
SCALE = 2
_MAP = (  # from black over violet and orange to pale yellow; lighter is more, also in grey
    (0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96),
    (207, 68, 70), (237, 105, 37), (251, 155, 6), (247, 209, 61), (252, 255, 164),
)  # fmt: skip
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def heat(values: np.ndarray) -> np.ndarray:
    """Colours of a map. values: (H, W) in [0, 1] -> (H, W, 3) float in [0, 255]."""
    stops = np.linspace(0, 1, len(_MAP))
    table = np.array(_MAP, float)
    return np.stack([np.interp(values, stops, table[:, channel]) for channel in range(3)], -1)


class Canvas:
    """A white page. All positions and sizes are in the pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self._draw = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.reduce(SCALE)

    def text(self, x: float, y: float, text: str, size: float = 14, fill: str = INK, anchor: str = "la") -> None:
        self._draw.text((x * SCALE, y * SCALE), text, font=_font(size * SCALE), fill=fill, anchor=anchor)

    def paragraph(
        self, x: float, y: float, text: str, width: float, size: float = 14, fill: str = INK, limit: int = 4
    ) -> float:
        """Text in lines; gives the y below it."""
        for line in wrap(text, _font(size * SCALE), round(width * SCALE), limit):
            self.text(x, y, line, size, fill)
            y += size * 1.4
        return y

    def line(self, points: Iterable[tuple[float, float]], fill: str = INK, width: float = 1) -> None:
        self._draw.line([(x * SCALE, y * SCALE) for x, y in points], fill=fill, width=round(width * SCALE))

    def box(
        self, box: Box, fill: str | None = None, outline: str | None = None, width: float = 1, radius: float = 0
    ) -> None:
        scaled = tuple(each * SCALE for each in box)
        self._draw.rounded_rectangle(scaled, radius * SCALE, fill, outline, round(width * SCALE))

    def polygon(self, points: Iterable[tuple[float, float]], fill: str | None, outline: str, width: float = 1) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.polygon(scaled, fill, outline, round(width * SCALE))

    def circle(self, x: float, y: float, radius: float, fill: str | None, outline: str, width: float = 1) -> None:
        box = ((x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE)
        self._draw.ellipse(box, fill, outline, round(width * SCALE))

    def star(self, x: float, y: float, radius: float, fill: str) -> None:
        turns = [(math.pi * (k / 5 - 0.5), radius if k % 2 == 0 else radius * 0.45) for k in range(10)]
        self.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a, r in turns], fill, "white", 1)

    def diamond(self, x: float, y: float, radius: float, colour: str) -> None:
        self.polygon([(x - radius, y), (x, y - radius), (x + radius, y), (x, y + radius)], "white", colour, 1.5)

    def pixels(self, x: float, y: float, picture: Image.Image, width: float, height: float) -> None:
        """A picture scaled into a rectangle."""
        size = (round(width * SCALE), round(height * SCALE))
        self.image.paste(
            picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), (round(x * SCALE), round(y * SCALE))
        )

    def thumbnail(self, x: float, y: float, picture: Image.Image, side: float, frame: str = LINE) -> None:
        """A picture of any shape within a square, in a frame."""
        scale = side / max(picture.size)
        width, height = picture.width * scale, picture.height * scale
        left, top = x + (side - width) / 2, y + (side - height) / 2
        self.pixels(left, top, picture, width, height)
        self.box((left - 1.5, top - 1.5, left + width + 1, top + height + 1), outline=frame, width=2)


def text_width(text: str, size: float = 14) -> float:
    return _font(size * SCALE).getlength(text) / SCALE


def place_labels(
    anchors: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], within: Box, gap: float = 9
) -> list[tuple[float, float]]:
    """Where labels go so that none lies over another or over an anchor: beside its anchor, farther where it is crowded.

    Args:
        anchors: (x, y) of what is labelled.
        sizes: (width, height) of each label.
        within: that labels stay in.
        gap: kept free about every anchor.

    Returns:
        The middle of each label; where there is no room at all, the least crowded place.
    """
    taken: list[Box] = [(x - gap, y - gap, x + gap, y + gap) for x, y in anchors]
    places = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        best, least = (x, y), math.inf
        for distance in (1.0, 2.0, 3.2, 4.6, 6.4, 9.0):
            for angle in (0, 180, 315, 225, 45, 135, 270, 90):
                a = math.radians(angle)
                at = (x + math.cos(a) * (width / 2 + gap * distance), y + math.sin(a) * (height / 2 + gap * distance))
                box = (at[0] - width / 2, at[1] - height / 2, at[0] + width / 2, at[1] + height / 2)
                cost = sum(_overlap(box, other) for other in taken)
                cost += width * height - _overlap(box, within)
                if cost < least - 1e-6:
                    best, least = at, cost
            if least <= 1e-6:
                break
        places.append(best)
        taken.append((best[0] - width / 2, best[1] - height / 2, best[0] + width / 2, best[1] + height / 2))
    return places


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(round(size))


__all__ = [
    "BLUE", "FAINT", "GREEN", "INK", "LINE", "ORANGE", "SKY", "VERMILION",
    "Box", "Canvas", "heat", "place_labels", "text_width",
]  # fmt: skip
