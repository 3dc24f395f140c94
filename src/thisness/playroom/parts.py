"""Soft clay parts: what toys and backgrounds are made of before they become pixels.

A part is an ellipse, a rounded box or a tapered capsule with a colour, lighting and an optional pattern in its own
coordinates. World coordinates: x right and y down, both in [-1, 1] over the picture; lengths in the same unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .world import RGB, Identity

FIELDS = [
    "x",
    "y",
    "angle",
    "half_length",
    "radius_start",
    "radius_end",
    "squash",
    "boxed",
    "shade",
    "red",
    "green",
    "blue",
    "pattern",
    "softness",
    "alpha",
    "layer",
    "gloss",
    "red2",
    "green2",
    "blue2",
    "phase_u",
    "phase_v",
    "frequency",
    "threshold",
]
BACKGROUND, SUBJECT, COMPANION, WORN, PROP = range(5)
"""Layers: who a part belongs to. Masks are the visible pixels of SUBJECT and of COMPANION."""


def darker(colour: RGB, factor: float = 0.7) -> RGB:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def mix(a: RGB, b: RGB, t: float) -> RGB:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


@dataclass(frozen=True)
class Coat:
    """The pattern that an identity wears, shifted per limb so that limbs differ, yet are the same in every picture."""

    kind: int = 0
    second: RGB = (0.0, 0.0, 0.0)
    phase_u: float = 0.0
    phase_v: float = 0.0
    frequency: float = 10.0
    threshold: float = 0.0

    @classmethod
    def of(cls, who: Identity, limb: int) -> Coat:
        from .world import PATTERNS

        u, v = who.phase[0] + limb, who.phase[1] + 1.7 * limb
        return cls(PATTERNS.index(who.pattern), who.second_rgb, u, v, who.frequency, who.threshold)


PLAIN = Coat()


@dataclass
class Clay:
    """A growing list of parts, in painting order, with a current frame (place, rotation, scale, mirror)."""

    rows: list[tuple[float, ...]] = field(default_factory=list)
    layer: int = BACKGROUND
    gloss: float = 0.0

    def __post_init__(self) -> None:
        self.frame()

    def frame(
        self, x: float = 0.0, y: float = 0.0, angle: float = 0.0, scale: float = 1.0, mirror: bool = False
    ) -> None:
        self.x, self.y, self.angle, self.scale, self.flip = x, y, angle, scale, -1.0 if mirror else 1.0
        self.cos, self.sin = math.cos(angle), math.sin(angle)

    def place(self, x: float, y: float) -> tuple[float, float]:
        u, v = self.cos * x - self.sin * y, self.sin * x + self.cos * y
        return self.x + self.flip * self.scale * u, self.y + self.scale * v

    def add(
        self,
        x: float,
        y: float,
        angle: float,
        half_length: float,
        radius_start: float,
        radius_end: float,
        colour: RGB,
        squash: float = 1.0,
        boxed: float = 0.0,
        shade: float = 1.0,
        coat: Coat = PLAIN,
        softness: float = 0.0,
        alpha: float = 1.0,
        gloss: float | None = None,
    ) -> None:
        """One part: `squash` is the ratio of half-thickness to radius, `shade` 0 is flat paint, `softness` blurs the
        edge (length)."""
        px, py = self.place(x, y)
        turned = angle + self.angle
        if self.flip < 0:
            turned, squash = math.pi - turned, -squash  # a negative squash mirrors the pattern with the body
        s = self.scale
        self.rows.append(
            (
                px,
                py,
                turned,
                half_length * s,
                radius_start * s,
                radius_end * s,
                squash,
                boxed,
                shade,
                *colour,
                coat.kind,
                softness,
                alpha,
            )
            + (
                self.layer,
                self.gloss if gloss is None else gloss,
                *coat.second,
                coat.phase_u,
                coat.phase_v,
                coat.frequency / s,
            )
            + (coat.threshold,)
        )

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB, angle: float = 0.0, **look) -> None:
        self.add(x, y, angle, 0.0, rx, rx, colour, squash=ry / rx, **look)

    def box(
        self, x: float, y: float, half_width: float, half_height: float, colour: RGB, angle: float = 0.0, **look
    ) -> None:
        self.add(x, y, angle, 0.0, half_width, half_width, colour, squash=half_height / half_width, boxed=1.0, **look)

    def limb(
        self, x0: float, y0: float, x1: float, y1: float, r0: float, r1: float, colour: RGB, squash: float = 1.0, **look
    ) -> None:
        """A tapered capsule from one point to another."""
        half = max(math.hypot(x1 - x0, y1 - y0) / 2, 1e-3)
        self.add((x0 + x1) / 2, (y0 + y1) / 2, math.atan2(y1 - y0, x1 - x0), half, r0, r1, colour, squash, **look)
