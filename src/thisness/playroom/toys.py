"""The ten toys, what they wear and what stands beside them, built of clay parts.

A toy is built facing right in its own frame: x forward, y down, the ground at 0. Heads are large and eyes are
larger, so that faces survive a small autoencoder. Every builder returns the place of the head and neck, where
accessories sit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from .parts import BACKGROUND, COMPANION, PROP, SUBJECT, WORN, Clay, Coat, darker, mix
from .world import ANIMALS, COLOURS, RGB, Identity, Scene, Toy, jitter

Point = tuple[float, float]
WHITE, INK, METAL = (0.97, 0.97, 0.97), (0.05, 0.05, 0.06), (0.56, 0.57, 0.60)


@dataclass(frozen=True)
class Anchor:
    """Where accessories go: centre and radius of the head, and the neck."""

    head: Point
    radius: float
    neck: Point


def paint_toys(clay: Clay, scene: Scene, rng: Random) -> None:
    """Append the parts of every toy of the scene, with shadow, accessory and the object beside the subject."""
    pair = len(scene.toys) > 1
    ground = rng.uniform(0.74, 0.84)
    side = rng.choice((-1, 1))
    if pair:
        places = [(-side * rng.uniform(0.42, 0.48), 0.74), (side * rng.uniform(0.42, 0.48), 0.74)]
    else:
        places = [(rng.uniform(-0.1, 0.1) - (0.24 * side if scene.object else 0.0), 1.0 if not scene.object else 0.9)]
    painted = list(zip(scene.toys, places, (SUBJECT, COMPANION), strict=False))
    for toy, (x, factor), layer in reversed(painted):
        size = rng.uniform(1.02, 1.16) * factor * SMALLER.get((toy.identity.noun, toy.pose), SMALLER.get(toy.pose, 1.0))
        lift = 0.2 * size if toy.pose == "jumping" else 0.0
        clay.frame()
        clay.layer, clay.gloss = BACKGROUND, 0.0
        clay.ellipse(
            x, ground, 0.52 * size, 0.09 * size, (0, 0, 0), shade=0, softness=0.12, alpha=0.26 if lift else 0.4
        )
        clay.layer, clay.gloss = layer, 0.2
        back = BACK.get(toy.pose, 0.0) * size * (0.6 if toy.identity.noun in ("bird", "robot") else 1.0)
        clay.frame(x + (back if toy.facing == "left" else -back), ground - lift, 0.0, size, mirror=toy.facing == "left")
        anchor = BUILDERS[toy.identity.noun](clay, toy.identity, toy.pose)
        if toy.accessory:
            clay.layer = WORN
            _accessory(clay, toy, anchor, rng)
    if scene.object:
        clay.layer, clay.gloss = PROP, 0.3
        _object(clay, scene, side * rng.uniform(0.66, 0.72), ground + rng.uniform(0.02, 0.08), rng)


SMALLER: dict[object, float] = {
    "jumping": 0.9,
    "waving": 0.86,
    ("rabbit", "waving"): 0.72,
    ("rabbit", "standing"): 0.86,
    ("rabbit", "sitting"): 0.84,
    ("rabbit", "running"): 0.86,
    ("rabbit", "jumping"): 0.78,
    "sleeping": 0.86,
    ("car", "tilted"): 0.9,
}
BACK = {
    "standing": 0.1,
    "sitting": 0.06,
    "sleeping": 0.16,
    "jumping": 0.1,
    "running": 0.08,
}  # heads are in front: centre the whole


def _eyes(clay: Clay, who: Identity, x: float, y: float, size: float, closed: bool, at: tuple[float, ...]) -> None:
    for offset in at:
        ex, ey = x + offset * size, y - 0.06 * size
        if closed:
            clay.limb(ex - 0.17 * size, ey, ex + 0.17 * size, ey + 0.02 * size, 0.026, 0.026, INK, shade=0.0)
            continue
        clay.ellipse(ex, ey, 0.25 * size, 0.30 * size, WHITE, shade=0.3)
        clay.ellipse(ex + 0.05 * size, ey + 0.01 * size, 0.185 * size, 0.225 * size, who.eye_rgb, shade=0.2)
        clay.ellipse(ex + 0.07 * size, ey + 0.01 * size, 0.11 * size, 0.14 * size, INK, shade=0.0)
        clay.ellipse(ex + 0.02 * size, ey - 0.09 * size, 0.06 * size, 0.06 * size, WHITE, shade=0.0)


@dataclass(frozen=True)
class _Skeleton:
    hip: Point
    shoulder: Point
    feet: tuple[Point, Point, Point, Point]  # far hind, far front, near hind, near front
    head: Point
    tail_angle: float


def _skeleton(pose: str, length: float, leg: float, body: float, head: float) -> _Skeleton:
    """Joints of the four-legged toys; `length` is half the back, `leg`, `body` and `head` are radii or lengths of
    those."""
    if pose == "standing":
        y = -leg - body * 0.7
        feet = ((-length + 0.1, -0.04), (length + 0.1, -0.04), (-length - 0.05, 0.0), (length - 0.04, 0.0))
        return _Skeleton((-length, y), (length, y), feet, (length + 0.14, y - body * 0.5 - head * 0.85), -2.2)
    if pose == "sitting":
        feet = ((0.14, -0.04), (0.27, -0.04), (0.1, 0.0), (0.2, 0.0))
        return _Skeleton(
            (-0.18, -body), (0.06, -0.36 - body * 0.4), feet, (0.17, -0.5 - body * 0.4 - head * 0.72), -2.85
        )
    if pose == "sleeping":
        feet = (
            (-length + 0.2, -0.03),
            (length + 0.28, -0.03),
            (-length + 0.16, 0.0),
            (length + 0.22, 0.0),
        )
        return _Skeleton(
            (-length - 0.1, -body * 0.92), (length * 0.7, -body * 0.85), feet, (length + 0.2, -head * 0.86), 2.9
        )
    if pose == "jumping":
        feet = (
            (-length - 0.36, 0.02),
            (length + 0.42, -leg - 0.44),
            (-length - 0.24, 0.09),
            (length + 0.46, -leg - 0.26),
        )
        return _Skeleton(
            (-length, -leg - 0.04), (length * 0.9, -leg - 0.34), feet, (length + 0.14, -leg - 0.42 - head * 0.8), 3.0
        )
    if pose == "running":
        y = -leg - body * 0.5
        feet = ((-length - 0.34, -0.16), (length + 0.36, -0.2), (-length + 0.24, 0.0), (length - 0.24, 0.0))
        return _Skeleton((-length, y), (length, y - 0.03), feet, (length + 0.22, y - body * 0.3 - head * 0.7), -2.95)
    y = -leg * 0.75 - body  # waving: upright, one arm high
    feet = ((-0.15, 0.0), (-0.38, y - 0.1), (0.15, 0.0), (0.46, y - 0.62))
    return _Skeleton((-0.02, y), (0.02, y - 0.3), feet, (0.03, y - 0.36 - head * 0.85), -2.6)


TAIL_LENGTH = {"dog": 0.34, "cat": 0.52, "bear": 0.08, "rabbit": 0.07, "fox": 0.46}
TAIL_RADIUS = {"dog": 0.055, "cat": 0.045, "bear": 0.08, "rabbit": 0.11, "fox": 0.13}


def _animal(clay: Clay, who: Identity, pose: str) -> Anchor:
    """Dog, cat, bear, rabbit and fox share a skeleton; ears, muzzle, tail and bulk tell them apart."""
    noun, stout = who.noun, who.noun in ("bear", "rabbit")
    one, two = who.rgb, who.second_rgb
    body = 0.19 * who.girth * (1.2 if noun == "bear" else 1.05 if noun == "rabbit" else 1.0)
    leg = 0.27 * who.leg * (0.8 if stout else 1.0)
    thick = 0.075 * (1.3 if noun == "bear" else 1.0)
    length = 0.24 * (0.82 if stout else 1.0)
    head = 0.315 * who.head * (1.05 if noun in ("bear", "cat") else 1.0)
    bones = _skeleton(pose, length, leg, body, head)
    upright, closed = pose == "waving", pose == "sleeping"

    tail, width, angle = TAIL_LENGTH[noun] * who.tail, TAIL_RADIUS[noun] * who.tail_width, bones.tail_angle
    x0, y0 = bones.hip[0] - body * 0.8, bones.hip[1] - body * 0.25
    x1, y1 = x0 + math.cos(angle) * tail * 0.55, y0 + math.sin(angle) * tail * 0.55
    x2, y2 = x1 + math.cos(angle + 0.6) * tail * 0.5, y1 + math.sin(angle + 0.6) * tail * 0.5
    clay.limb(x0, y0, x1, y1, width * 0.8, width, one, coat=Coat.of(who, 1))
    clay.limb(x1, y1, x2, y2, width, width * (0.55 if noun == "fox" else 0.8), two if who.tip or noun == "fox" else one)

    def limb(index: int, colour: RGB, coat: int) -> None:
        x, y = bones.hip if index % 2 == 0 else bones.shoulder
        fx, fy = bones.feet[index]
        arm = upright and index % 2 == 1
        if upright:
            x += (0.15 if index == 3 else -0.15) if arm else fx * 0.6
        else:
            x += 0.07 if index % 2 == 0 else -0.05
        clay.limb(x, y, fx, fy - thick * 0.8, thick * 1.25, thick, colour, coat=Coat.of(who, coat))
        paw = two if who.variant == 1 else colour
        clay.ellipse(fx + (0.0 if arm else 0.03), fy - thick * 0.7, thick * 1.3, thick * 0.95, paw)

    far, near = darker(one, 0.74), darker(one, 0.97)
    limb(0, far, 2)
    limb(1, far, 3)
    haunch = 1.12 if pose == "sitting" else 1.0
    clay.limb(
        *bones.hip,
        *bones.shoulder,
        body * haunch,
        body * (0.9 if pose == "sitting" else 1.0),
        one,
        coat=Coat.of(who, 0),
    )
    if who.belly:
        angle = math.atan2(bones.shoulder[1] - bones.hip[1], bones.shoulder[0] - bones.hip[0])
        cx, cy = (bones.hip[0] + bones.shoulder[0]) / 2, (bones.hip[1] + bones.shoulder[1]) / 2
        if upright:
            clay.ellipse(cx, cy + 0.05, body * 0.62, body * 1.05, two)
        else:
            clay.ellipse(
                cx - math.sin(angle) * body * 0.45, cy + math.cos(angle) * body * 0.5, length, body * 0.42, two, angle
            )
    if pose == "sitting":
        clay.ellipse(
            bones.hip[0] + 0.08, bones.hip[1] + 0.02, 0.17 * who.girth, 0.15 * who.girth, near, coat=Coat.of(who, 4)
        )
    limb(2, near, 5)
    limb(3, near, 6)
    _animal_head(clay, who, bones.head, head, closed)
    hx, hy = bones.head
    sx, sy = bones.shoulder
    neck = (hx - 0.02, hy + head * 0.98) if upright else (sx * 0.45 + hx * 0.55, sy * 0.4 + (hy + head * 0.6) * 0.6)
    return Anchor((hx, hy), head, neck)


def _animal_head(clay: Clay, who: Identity, at: Point, r: float, closed: bool) -> None:
    noun, (x, y), one, two = who.noun, at, who.rgb, who.second_rgb
    behind = darker(one, 0.86)
    if noun == "rabbit":
        for i, offset in enumerate((-0.34, 0.2)):
            tip_x, tip_y = x + offset * r - 0.1 + i * 0.05, y - r * (1.1 + 0.95 * who.ear)
            if closed:
                tip_x, tip_y = tip_x - r * 0.9 * who.ear, y - r * 0.95
            width = 0.085 * who.ear_width
            clay.limb(
                x + offset * r,
                y - r * 0.7,
                tip_x,
                tip_y,
                width,
                width * 0.8,
                one if i else behind,
                coat=Coat.of(who, 7),
            )
            clay.limb(
                x + offset * r,
                y - r * 0.8,
                tip_x,
                tip_y,
                width * 0.48,
                width * 0.4,
                mix(two, (1, 0.7, 0.75), 0.5),
                shade=0.5,
            )
    if noun in ("cat", "fox"):
        tall = 0.95 if noun == "fox" else 0.78
        for i, offset in enumerate((-0.58, 0.44)):
            tip = (x + offset * r * 1.22, y - r * (tall + 0.5 * who.ear))
            clay.limb(x + offset * r, y - r * 0.58, *tip, 0.125 * who.ear_width, 0.015, one if i else behind)
            clay.limb(
                x + offset * r, y - r * 0.56, tip[0], tip[1] + 0.06 * r, 0.065 * who.ear_width, 0.01, two, shade=0.5
            )
    if noun == "bear":
        for i, offset in enumerate((-0.7, 0.56)):
            clay.ellipse(x + offset * r, y - r * 0.76, 0.12 * who.ear, 0.12 * who.ear, one if i else behind)
            clay.ellipse(x + offset * r, y - r * 0.76, 0.065 * who.ear, 0.065 * who.ear, two, shade=0.5)
    clay.ellipse(x, y, r * 1.04, r * 0.96, one, coat=Coat.of(who, 8))
    if noun == "fox":
        clay.limb(
            x + r * 0.42, y + r * 0.42, x + r * (0.85 + 0.42 * who.snout), y + r * 0.46, r * 0.38, r * 0.13, WHITE
        )
        nose = x + r * (0.98 + 0.42 * who.snout), y + r * 0.42
    elif noun == "dog":
        muzzle = two if who.variant else mix(one, (1, 1, 1), 0.35)
        clay.limb(
            x + r * 0.42, y + r * 0.45, x + r * (0.55 + 0.4 * who.snout), y + r * 0.48, r * 0.36, r * 0.30, muzzle
        )
        nose = x + r * (0.78 + 0.4 * who.snout), y + r * 0.32
    else:
        muzzle = two if who.variant or noun == "bear" else mix(one, (1, 1, 1), 0.45)
        wide = 0.46 if noun == "bear" else 0.36
        clay.ellipse(x + r * 0.36, y + r * 0.46, r * wide * who.snout, r * 0.30 * who.snout, muzzle)
        nose = x + r * 0.42, y + r * 0.33
    pink = noun in ("rabbit", "cat")
    size = 0.068 if noun in ("dog", "bear") else 0.05
    clay.ellipse(*nose, size, size * 0.8, (0.90, 0.42, 0.50) if pink else (0.08, 0.05, 0.06), gloss=0.6)
    if noun == "cat":
        for tilt in (-0.06, 0.05):
            for side in (-1, 1):
                start = x + r * (0.36 + side * 0.25), y + r * 0.48
                clay.limb(*start, x + r * (0.36 + side * 0.72), y + r * (0.48 + 3 * tilt), 0.012, 0.008, INK, shade=0.0)
    _eyes(clay, who, x, y, r * 1.02, closed, (-0.18, 0.46))
    if noun == "dog":
        ear = two if who.tip else darker(one, 0.78)
        clay.limb(
            x - r * 0.66,
            y - r * 0.6,
            x - r * 0.98,
            y + r * (0.1 + 0.3 * who.ear),
            0.085 * who.ear_width,
            0.12 * who.ear_width,
            ear,
        )
        clay.limb(
            x + r * 0.62, y - r * 0.74, x + r * 0.86, y - r * 0.42, 0.07 * who.ear_width, 0.075 * who.ear_width, ear
        )


def _bird(clay: Clay, who: Identity, pose: str) -> Anchor:
    one, two, leg_colour = who.rgb, who.second_rgb, (0.95, 0.6, 0.15)
    closed = pose == "sleeping"
    head, body = 0.27 * who.head, 0.29 * who.girth
    leg = 0.2 * who.leg
    y = -body * 0.85 if pose in ("sitting", "sleeping") else -leg - body * 0.8
    hx, hy = (0.26, y - body * 0.35) if closed else (0.2, y - body * 0.72 - head * 0.55)
    feet: tuple[Point, ...] = {
        "standing": ((-0.02, 0.0), (0.14, 0.0)),
        "waving": ((-0.02, 0.0), (0.14, 0.0)),
        "running": ((-0.3, -0.06), (0.34, -0.04)),
        "jumping": ((-0.22, 0.06), (-0.06, 0.1)),
    }.get(pose, ())
    for fx, fy in feet:
        clay.limb(0.02 if fx > 0 else -0.05, y + body * 0.5, fx, fy - 0.02, 0.032, 0.03, leg_colour)
        clay.limb(fx - 0.03, fy - 0.01, fx + 0.1, fy - 0.01, 0.03, 0.025, leg_colour)
    tail = two if who.tip else darker(one, 0.8)
    clay.limb(
        -body * 0.7, y, -body * 0.8 - 0.28 * who.tail, y - 0.12, 0.1 * who.tail_width, 0.07 * who.tail_width, tail
    )
    lean = 0.15 if pose == "running" else -0.2
    clay.ellipse(0, y, body * 1.15, body * 0.92, one, lean, coat=Coat.of(who, 0))
    if who.belly:
        clay.ellipse(0.09, y + body * 0.3, body * 0.7, body * 0.5, two, lean)
    if who.variant == 2:
        for i in range(3):
            clay.limb(
                hx - 0.03, hy - head * 0.8, hx - 0.16 + 0.09 * i, hy - head * (1.05 + 0.35 * who.ear), 0.035, 0.025, two
            )
    clay.ellipse(hx, hy, head, head, one, coat=Coat.of(who, 8))
    clay.limb(
        hx + head * 0.72, hy + 0.05, hx + head * (1.0 + 0.5 * who.snout), hy + 0.08, 0.09, 0.02, (0.98, 0.66, 0.12)
    )
    _eyes(clay, who, hx, hy, head * 1.25, closed, (0.22,))
    wing = two if who.tip else darker(one, 0.82)
    if pose == "jumping":
        clay.limb(-0.1, y, -0.56, y - 0.18, 0.12, 0.06, darker(wing, 0.9))
        clay.limb(-0.06, y - 0.05, -0.42, y - 0.5, 0.13, 0.06, wing)
    elif pose == "waving":
        clay.limb(0.06, y + 0.04, 0.56, y - 0.16, 0.12, 0.07, wing)
    elif pose == "running":
        clay.limb(0.0, y - 0.05, -0.46, y - 0.2, 0.13, 0.05, wing)
    else:
        clay.limb(0.06, y - 0.02, -0.24, y + 0.08, 0.15, 0.06, wing)
    return Anchor((hx, hy), head, (hx - 0.04, hy + head * 0.9))


def _robot(clay: Clay, who: Identity, pose: str) -> Anchor:
    one, two = who.rgb, who.second_rgb
    steel = mix(two, METAL, 0.4)
    closed = pose == "sleeping"
    width, height, head, leg = 0.23 * who.girth, 0.23, 0.25 * who.head, 0.25 * who.leg
    if closed:  # on its back
        flip = clay.flip
        clay.frame(
            clay.x - flip * 0.5 * clay.scale, clay.y - 0.24 * clay.scale, math.pi / 2, clay.scale, mirror=flip < 0
        )
    hip = -0.08 if pose == "sitting" else -leg
    y = hip - height * 0.9
    sx, sy = width * 1.1, y - height * 0.5
    feet = {
        "sitting": ((0.34, -0.08), (0.44, -0.02)),
        "jumping": ((-0.28, 0.03), (0.3, 0.0)),
        "running": ((-0.42, -0.14), (0.36, 0.0)),
    }.get(pose, ((-0.13, 0.0), (0.13, 0.0)))
    hands = {
        "standing": ((-sx - 0.12, y + 0.25), (sx + 0.12, y + 0.25)),
        "waving": ((-sx - 0.12, y + 0.25), (sx + 0.22, sy - 0.42)),
        "sitting": ((-sx - 0.08, y + 0.22), (sx + 0.16, y + 0.18)),
        "sleeping": ((-sx - 0.06, y + 0.28), (sx + 0.06, y + 0.28)),
        "jumping": ((-sx - 0.26, sy - 0.34), (sx + 0.26, sy - 0.34)),
        "running": ((-sx - 0.27, y), (sx + 0.32, y - 0.05)),
    }[pose]
    for x0, (fx, fy) in zip((-0.11, 0.11), feet, strict=True):
        clay.limb(x0, hip - 0.05, fx, fy - 0.06, 0.06, 0.055, steel)
        clay.box(fx + 0.04, fy - 0.05, 0.12, 0.06, darker(one, 0.85))
    clay.limb(-sx * 0.9, sy, *hands[0], 0.055, 0.05, steel)
    clay.ellipse(*hands[0], 0.085, 0.085, one)
    clay.box(0, y, width, height, one, coat=Coat.of(who, 0))
    if who.belly:
        clay.box(0, y + 0.03, width * 0.55, height * 0.42, two, shade=0.6)
    clay.limb(sx * 0.9, sy, *hands[1], 0.055, 0.05, steel)
    clay.ellipse(*hands[1], 0.085, 0.085, one)
    x, hy = 0.03, y - height - head * 0.8
    antenna = 0.12 * who.ear
    clay.limb(x, hy - head * 0.8, x, hy - head - antenna, 0.025, 0.025, steel)
    clay.ellipse(x, hy - head - antenna, 0.06 * who.ear_width, 0.06 * who.ear_width, two, gloss=0.6)
    clay.box(x, hy, head * 1.15, head * 0.92, one, coat=Coat.of(who, 8))
    clay.box(x + 0.07, hy + 0.01, head * 0.88, head * 0.56, (0.12, 0.13, 0.17), shade=0.3)
    light = mix(who.eye_rgb, (1, 1, 1), 0.55)
    for offset in (-0.2, 0.62):
        if closed:
            clay.limb(x + head * (offset - 0.16), hy, x + head * (offset + 0.16), hy, 0.026, 0.026, light, shade=0.0)
        else:
            clay.ellipse(x + offset * head, hy, 0.26 * head, 0.30 * head, light, shade=0.2)
    return Anchor((x, hy), head * 1.05, (x, hy + head * 0.95))


THING_HEIGHT = {"teapot": 0.78, "backpack": 1.06, "car": 0.84}
TILT_LIFT = {"teapot": 0.16, "backpack": 0.14, "car": 0.22}


def _turn(clay: Clay, noun: str, pose: str) -> None:
    """Put the frame of a thing upright, tilted on its back edge, or on its head. The mirror acts after the rotation."""
    mirror = clay.flip < 0
    if pose == "tilted":
        clay.frame(clay.x, clay.y - TILT_LIFT[noun] * clay.scale, -0.5, clay.scale, mirror)
    elif pose == "upside down":
        clay.frame(clay.x, clay.y - THING_HEIGHT[noun] * clay.scale, math.pi, clay.scale, not mirror)


def _teapot(clay: Clay, who: Identity, pose: str) -> Anchor:
    _turn(clay, "teapot", pose)
    one, two = who.rgb, who.second_rgb
    width, y = 0.40 * who.girth, -0.34
    clay.limb(width * 0.7, y + 0.1, width + 0.26 * who.snout, y - 0.2 - 0.08 * who.ear, 0.12 * who.ear_width, 0.06, one)
    handle, radius = two if who.tip else one, 0.16 * who.tail
    points = [
        (-width * 0.88 + radius * 1.3 * math.cos(1.3 + i * 0.9), y - 0.02 + radius * 1.2 * math.sin(1.3 + i * 0.9))
        for i in range(5)
    ]
    for start, end in zip(points, points[1:], strict=False):
        clay.limb(*start, *end, 0.045 * who.tail_width, 0.045 * who.tail_width, handle)
    clay.ellipse(0, y, width, 0.33, one, coat=Coat.of(who, 0))
    clay.box(0, -0.03, width * 0.5, 0.04, darker(one, 0.8))
    clay.ellipse(0, y - 0.3, width * 0.52, 0.075, two if who.belly else darker(one, 0.85))
    clay.ellipse(0, y - 0.39, 0.075, 0.07, two, gloss=0.5)
    return Anchor((0, y - 0.14), 0.26, (0, y + 0.02))


def _backpack(clay: Clay, who: Identity, pose: str) -> Anchor:
    _turn(clay, "backpack", pose)
    one, two = who.rgb, who.second_rgb
    width, y = 0.34 * who.girth, -0.5
    clay.limb(-0.12, y - 0.47, 0.12, y - 0.47, 0.06, 0.06, darker(two, 0.9))
    clay.ellipse(0, y - 0.5, 0.075, 0.04, (0.2, 0.2, 0.22), shade=0.3)
    clay.limb(-width * 0.95, y - 0.2, -width * 1.15, y + 0.28, 0.06, 0.06, two)
    clay.limb(
        width * 1.1, y + 0.3, width * 1.1, y - 0.02, 0.1, 0.085, mix(two, (0.75, 0.9, 1.0), 0.5), gloss=0.5
    )  # a bottle in front
    clay.limb(width * 1.1, y - 0.12, width * 1.1, y - 0.16, 0.05, 0.045, darker(two, 0.6))
    clay.box(0, y, width, 0.49, one, coat=Coat.of(who, 0))
    clay.box(0, y + 0.22, width * 0.74, 0.2 * (0.4 + 0.6 * who.ear), two if who.belly else darker(one, 0.78), shade=0.9)
    clay.limb(-width * 0.55, y + 0.1, width * 0.55, y + 0.1, 0.022, 0.022, (0.92, 0.92, 0.87))
    clay.limb(-width * 0.75, y - 0.17, width * 0.75, y - 0.17, 0.022, 0.022, darker(one, 0.5))
    clay.ellipse(width * 0.5, y - 0.1, 0.045, 0.065, who.eye_rgb)
    return Anchor((0, y - 0.22), 0.29, (0, y))


def _car(clay: Clay, who: Identity, pose: str) -> Anchor:
    _turn(clay, "car", pose)
    one, two = who.rgb, who.second_rgb
    width, y, roof = 0.54 * (0.9 + 0.12 * who.girth), -0.27, 0.19 * who.ear
    top = y - 0.24 - roof * 0.4
    clay.limb(-0.22 * who.tail, top, 0.12, top, roof + 0.07, roof + 0.04, one if who.variant else two)
    clay.limb(-0.16, top + 0.01, 0.1, top + 0.01, roof * 0.82, roof * 0.78, (0.65, 0.83, 0.95), gloss=0.6)
    clay.box(-0.03, top, 0.028, roof, one, shade=0.5)
    clay.box(0, y, width, 0.18 * who.girth, one, coat=Coat.of(who, 0))
    clay.ellipse(width * 0.92, y - 0.02, 0.07, 0.08, (1, 0.95, 0.6), gloss=0.5)
    clay.ellipse(-width * 0.95, y - 0.02, 0.045, 0.065, (0.9, 0.15, 0.1))
    clay.box(0, y + 0.14, width * 1.02, 0.04, (0.6, 0.6, 0.62))
    wheel = 0.155 * who.tail_width**0.35
    for side in (-0.56, 0.56):
        clay.ellipse(side * width, -0.13, wheel, wheel, (0.12, 0.12, 0.13))
        clay.ellipse(side * width, -0.13, wheel * 0.5, wheel * 0.5, two if who.tip else (0.8, 0.8, 0.82), gloss=0.5)
    return Anchor((-0.03, top + 0.02), 0.26, (0, y - 0.02))


def _accessory(clay: Clay, toy: Toy, anchor: Anchor, rng: Random) -> None:
    colour = jitter(COLOURS[toy.accessory_colour or "red"], rng, 0.04)
    shadow, (x, y), r = darker(colour, 0.65), anchor.head, anchor.radius
    if toy.accessory == "hat":
        clay.box(x - 0.02, y - r * 1.22, r * 0.56, r * 0.44, colour)
        clay.box(x - 0.02, y - r * 0.95, r * 0.58, r * 0.13, shadow)
        clay.ellipse(x - 0.02, y - r * 0.8, r * 1.02, r * 0.17, colour)
    elif toy.accessory == "glasses":
        for offset in (-0.24, 0.52):
            clay.ellipse(x + offset * r, y - 0.05 * r, r * 0.37, r * 0.37, colour)
            lens = mix(colour, (0.75, 0.88, 0.95), 0.85)
            clay.ellipse(x + offset * r, y - 0.05 * r, r * 0.25, r * 0.25, lens, gloss=0.6)
        clay.limb(x - r * 0.55, y - 0.08 * r, x - r, y - 0.12 * r, 0.03, 0.03, colour)
    elif toy.accessory == "scarf":
        x, y = anchor.neck
        clay.limb(x - 0.17, y + 0.0, x + 0.17, y + 0.02, 0.085, 0.085, colour)
        clay.limb(x + 0.1, y + 0.05, x + 0.13, y + 0.28, 0.07, 0.085, shadow)
    else:
        x, y = x - r * 0.2, y - r * 0.98
        for side in (-1, 1):
            clay.limb(x + side * 0.04, y, x + side * 0.2, y - 0.03, 0.045, 0.12, colour)
        clay.ellipse(x, y - 0.01, 0.065, 0.07, shadow)


def _object(clay: Clay, scene: Scene, x: float, y: float, rng: Random) -> None:
    colour = jitter(COLOURS[scene.object_colour or "red"], rng, 0.04)
    clay.frame(x, y)
    layer, clay.layer = clay.layer, BACKGROUND
    clay.ellipse(0, 0, 0.22, 0.05, (0, 0, 0), shade=0.0, softness=0.08, alpha=0.35, gloss=0.0)
    clay.layer = layer
    if scene.object == "ball":
        clay.ellipse(0, -0.2, 0.2, 0.2, colour, gloss=0.5)
        clay.limb(-0.16, -0.2, 0.16, -0.2, 0.045, 0.045, (0.96, 0.96, 0.93))
    elif scene.object == "book":
        clay.box(0.02, -0.2, 0.19, 0.25, (0.96, 0.95, 0.9), 0.15)
        clay.box(-0.03, -0.21, 0.18, 0.26, colour, 0.15)
        clay.box(-0.03, -0.27, 0.11, 0.045, (0.96, 0.9, 0.7), 0.15)
    elif scene.object == "guitar":
        clay.limb(0, -0.3, 0.05, -0.9, 0.04, 0.035, (0.4, 0.25, 0.14))
        clay.box(0.055, -0.94, 0.06, 0.08, (0.3, 0.2, 0.12))
        clay.ellipse(0, -0.2, 0.2, 0.19, colour)
        clay.ellipse(0.01, -0.42, 0.145, 0.13, colour)
        clay.ellipse(0.01, -0.28, 0.07, 0.07, (0.15, 0.1, 0.08), shade=0.2)
    else:
        clay.limb(0, -0.02, 0.02, -0.8, 0.012, 0.012, (0.9, 0.9, 0.9))
        clay.ellipse(0.02, -1.02, 0.21, 0.25, colour, gloss=0.7)


BUILDERS = {noun: _animal for noun in ANIMALS} | {
    "bird": _bird,
    "robot": _robot,
    "teapot": _teapot,
    "backpack": _backpack,
    "car": _car,
}
