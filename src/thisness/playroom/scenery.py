"""The ten backgrounds. Each paints sky and ground and three to a dozen large soft shapes, jittered by the scene's
own randomness."""

from __future__ import annotations

from random import Random

from .parts import BACKGROUND, Clay, darker
from .world import RGB, jitter

SKY: dict[str, RGB] = {
    "beach": (0.55, 0.80, 0.97),
    "forest": (0.66, 0.84, 0.74),
    "snow": (0.78, 0.86, 0.95),
    "city": (0.92, 0.76, 0.68),
    "grass": (0.58, 0.83, 0.98),
    "night": (0.08, 0.09, 0.24),
    "kitchen": (0.94, 0.87, 0.70),
    "desert": (0.97, 0.80, 0.56),
    "mountains": (0.70, 0.80, 0.95),
    "living room": (0.80, 0.72, 0.86),
}
GROUND: dict[str, RGB] = {
    "beach": (0.93, 0.83, 0.60),
    "forest": (0.33, 0.40, 0.18),
    "snow": (0.95, 0.96, 0.99),
    "city": (0.44, 0.44, 0.47),
    "grass": (0.40, 0.72, 0.26),
    "night": (0.13, 0.20, 0.22),
    "kitchen": (0.70, 0.44, 0.28),
    "desert": (0.90, 0.62, 0.32),
    "mountains": (0.46, 0.62, 0.34),
    "living room": (0.52, 0.38, 0.32),
}


def paint_background(clay: Clay, name: str, rng: Random) -> None:
    """Append the background's parts; horizon between .15 and .3 of the picture below its middle."""
    clay.layer, clay.gloss = BACKGROUND, 0.0
    clay.frame()
    horizon = rng.uniform(0.15, 0.3)
    sky, ground = jitter(SKY[name], rng, 0.03), jitter(GROUND[name], rng, 0.03)
    clay.box(0, -0.5, 1.7, 1.7, sky, shade=0.0)
    BEHIND.get(name, _nothing)(clay, rng, horizon, ground)
    if name == "beach":
        horizon += 0.16
    if name == "mountains":
        horizon += 0.18
    clay.box(0, horizon + 1.2, 1.7, 1.2, ground, shade=0.12)
    FRONT.get(name, _nothing)(clay, rng, horizon, ground)


def _nothing(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    pass


def _beach(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    clay.ellipse(rng.uniform(-0.85, 0.85), rng.uniform(-0.82, -0.6), 0.17, 0.17, (1, 0.93, 0.5), shade=0.25)
    clay.box(0, horizon + 0.45, 1.7, 0.7, (0.13, 0.50, 0.80), shade=0.0)


def _forest(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    for i in range(5):
        x, top = -1 + i * 0.5 + rng.uniform(-0.12, 0.12), rng.uniform(0.0, 0.25)
        clay.box(x, horizon - 0.1, 0.06, 0.35, (0.36, 0.24, 0.14), shade=0.25)
        leaf = jitter((0.12, 0.42, 0.20), rng, 0.04)
        clay.limb(x, horizon - 0.25, x, -0.75 - top, rng.uniform(0.24, 0.32), 0.03, leaf, shade=0.6)


def _snow(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    for i in range(3):
        hill = jitter((0.86, 0.91, 0.98), rng, 0.02)
        clay.ellipse(-1 + i + rng.uniform(-0.3, 0.3), horizon + 0.1, 0.7, rng.uniform(0.3, 0.5), hill, shade=0.25)
    for side in (-1, 1):
        x = side * rng.uniform(0.6, 0.9)
        clay.limb(x, horizon, x, horizon - 0.6, 0.17, 0.02, (0.30, 0.50, 0.47), shade=0.5)


def _city(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    for i in range(5):
        x, tall = -1 + i * 0.5 + rng.uniform(-0.06, 0.06), rng.uniform(0.35, 0.7)
        clay.box(x, horizon - tall + 0.1, 0.22, tall, jitter((0.46, 0.43, 0.56), rng, 0.07), shade=0.2)
        for side in (-1, 1):
            clay.box(
                x + side * 0.09, horizon - tall * 1.2 + 0.2, 0.045, tall * 0.5, (0.98, 0.88, 0.50), shade=0.0, alpha=0.9
            )


def _grass(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    clay.ellipse(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, -0.65), 0.3, 0.1, (1, 1, 1), shade=0.25, softness=0.05)
    clay.ellipse(rng.uniform(-1, 1), horizon + 0.3, 0.9, 0.5, darker(ground, 0.87), shade=0.25)


def _night(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    clay.ellipse(rng.uniform(-0.8, 0.8), rng.uniform(-0.82, -0.65), 0.15, 0.15, (0.97, 0.95, 0.80), shade=0.25)
    for _ in range(6):
        clay.ellipse(rng.uniform(-1, 1), rng.uniform(-1, horizon - 0.1), 0.03, 0.03, (1, 1, 0.85), shade=0.0)


def _kitchen(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    door = jitter((0.45, 0.62, 0.62), rng, 0.03)
    for i in range(3):
        clay.box(-0.66 + i * 0.66, -0.74, 0.29, 0.25, door, shade=0.5)
    clay.box(0, horizon - 0.1, 1.7, 0.12, (0.88, 0.88, 0.86), shade=0.25)
    clay.box(0, horizon + 0.1, 1.7, 0.12, door, shade=0.25)


def _desert(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    clay.ellipse(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, -0.6), 0.16, 0.16, (1, 0.55, 0.28), shade=0.25)
    clay.ellipse(rng.uniform(-1, 1), horizon + 0.25, 0.9, rng.uniform(0.3, 0.45), darker(ground, 0.9), shade=0.25)
    x, green = rng.choice((-1, 1)) * rng.uniform(0.72, 0.85), (0.22, 0.50, 0.24)
    clay.limb(x, horizon + 0.2, x, horizon - 0.45, 0.09, 0.09, green, shade=0.7)
    for side, y in ((1, -0.03), (-1, -0.16)):
        clay.limb(x, horizon + y, x + side * 0.2, horizon + y, 0.05, 0.05, green, shade=0.7)
        clay.limb(x + side * 0.2, horizon + y, x + side * 0.2, horizon + y - 0.2, 0.05, 0.05, green, shade=0.7)


def _mountains(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    for i in range(3):
        x, peak = -0.9 + 0.9 * i + rng.uniform(-0.2, 0.2), horizon - rng.uniform(0.65, 0.95)
        clay.limb(x, horizon + 0.3, x, peak, 0.62, 0.03, jitter((0.50, 0.52, 0.64), rng, 0.04), shade=0.4)
        clay.limb(x, peak + 0.16, x, peak, 0.13, 0.035, (0.96, 0.97, 1.0), shade=0.3)
    clay.box(0, horizon + 0.18, 1.7, 0.26, (0.30, 0.58, 0.82), shade=0.0)


def _living_room(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    x, frame = rng.choice((-0.6, 0.6)) + rng.uniform(-0.08, 0.08), (0.98, 0.97, 0.94)
    clay.box(x, -0.55, 0.3, 0.3, frame, shade=0.25)
    clay.box(x, -0.55, 0.24, 0.24, (0.50, 0.74, 0.96), shade=0.25)
    clay.box(x, -0.55, 0.025, 0.26, frame, shade=0.25)
    sofa = jitter((0.75, 0.35, 0.42), rng, 0.05)
    clay.box(-x, horizon - 0.2, 0.5, 0.28, sofa, shade=0.6)
    clay.box(-x, horizon - 0.02, 0.56, 0.14, darker(sofa, 0.9), shade=0.6)


def _flowers(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    for _ in range(4):
        petal = rng.choice(((1, 0.9, 0.3), (0.98, 0.5, 0.6), (1, 1, 1)))
        clay.ellipse(rng.uniform(-1, 1), rng.uniform(horizon + 0.15, 0.95), 0.04, 0.04, petal, shade=0.25)


def _kerb(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    clay.box(0, horizon + 0.42, 0.3, 0.03, (0.95, 0.9, 0.6), shade=0.25)


def _rug(clay: Clay, rng: Random, horizon: float, ground: RGB) -> None:
    clay.ellipse(0, 0.78, 0.95, 0.2, jitter((0.35, 0.45, 0.75), rng, 0.04), shade=0.25)


BEHIND = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "city": _city,
    "grass": _grass,
    "night": _night,
    "kitchen": _kitchen,
    "desert": _desert,
    "mountains": _mountains,
    "living room": _living_room,
}
FRONT = {"grass": _flowers, "city": _kerb, "living room": _rug}
