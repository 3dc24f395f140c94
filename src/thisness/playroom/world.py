"""The Playroom's vocabulary and its typed ground truth: identities, toys, scenes, and how they are drawn at random.

A toy's *identity* is what words cannot say: continuous colours, the phase and frequency of a pattern, proportions. A
*scene* is all that a caption can change: pose, facing, background, accessory, object, style, a companion. Everything
is a pure function of integers (seeds).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Literal

WORLD = 2
"""Version of the world: raise it when the same seed no longer gives the same picture."""

ANIMALS = ("dog", "cat", "bear", "rabbit", "fox")
CREATURES = (*ANIMALS, "bird", "robot")
THINGS = ("teapot", "backpack", "car")
CLASSES = (*CREATURES, *THINGS)
CREATURE_POSES = ("standing", "sitting", "sleeping", "jumping", "running", "waving")
THING_POSES = ("upright", "tilted", "upside down")
POSES = (*CREATURE_POSES, *THING_POSES)
FACINGS = ("left", "right")
BACKGROUNDS = ("beach", "forest", "snow", "city", "grass", "night", "kitchen", "desert", "mountains", "living room")
ACCESSORIES = ("hat", "glasses", "scarf", "bow")
OBJECTS = ("ball", "book", "guitar", "balloon")
PATTERNS = ("plain", "spots", "stripes", "patches")
STYLES = ("photo", "pencil sketch", "watercolour", "pixel art")

RGB = tuple[float, float, float]
COLOURS: dict[str, RGB] = {
    "red": (0.82, 0.16, 0.14),
    "orange": (0.95, 0.52, 0.12),
    "yellow": (0.96, 0.85, 0.22),
    "green": (0.24, 0.66, 0.26),
    "blue": (0.18, 0.36, 0.85),
    "purple": (0.52, 0.24, 0.72),
    "pink": (0.97, 0.58, 0.72),
    "brown": (0.50, 0.31, 0.17),
    "black": (0.14, 0.14, 0.16),
    "white": (0.94, 0.94, 0.92),
    "gray": (0.56, 0.57, 0.60),
    "teal": (0.12, 0.65, 0.66),
}
EYE_COLOURS = ("brown", "green", "blue", "black", "orange")
USUAL_LOOKS: dict[str, tuple[str, str, str]] = {
    "dog": ("brown", "white", "patches"),
    "cat": ("gray", "black", "stripes"),
    "bear": ("black", "brown", "plain"),
    "rabbit": ("white", "pink", "plain"),
    "fox": ("orange", "white", "plain"),
    "bird": ("blue", "yellow", "plain"),
    "robot": ("gray", "teal", "stripes"),
    "teapot": ("white", "blue", "spots"),
    "backpack": ("green", "brown", "plain"),
    "car": ("red", "yellow", "stripes"),
}
"""Of each class its colour, second colour and pattern in most pictures of the split "usual"."""
USUALLY = 0.8  # how often each of the three is as usual there
Split = Literal["train", "held-out", "usual"]
HELD_OUT_COMBINATIONS_IN = 12  # one (class, pose, background) in so many is never shown in training


def poses_of(noun: str) -> tuple[str, ...]:
    """The poses a class can take: creatures bend, things tilt."""
    return CREATURE_POSES if noun in CREATURES else THING_POSES


@dataclass(frozen=True)
class Identity:
    """What makes this toy this toy. Colours are RGB in [0, 1]; proportions are factors around 1; phases are radians."""

    noun: str
    colour: str
    second_colour: str
    rgb: RGB
    second_rgb: RGB
    eye_rgb: RGB
    pattern: str
    frequency: float
    phase: tuple[float, float]
    threshold: float
    ear: float
    ear_width: float
    tail: float
    tail_width: float
    snout: float
    girth: float
    leg: float
    head: float
    belly: bool
    tip: bool
    variant: int


@dataclass(frozen=True)
class Toy:
    """An identity with what a sentence can change about it."""

    identity: Identity
    pose: str
    facing: str
    accessory: str | None = None
    accessory_colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """The full ground truth of one picture; `seed` fixes what has no name (jitter of place, size, background)."""

    toys: tuple[Toy, ...]
    background: str
    object: str | None = None
    object_colour: str | None = None
    style: str = "photo"
    seed: int = 0

    @property
    def subject(self) -> Toy:
        return self.toys[0]

    @property
    def companion(self) -> Toy | None:
        return self.toys[1] if len(self.toys) > 1 else None


def rng_of(*key: object) -> random.Random:
    """A random source that depends on the key alone, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def jitter(colour: RGB, rng: random.Random, amount: float) -> RGB:
    r, g, b = (min(1.0, max(0.0, value + rng.uniform(-amount, amount))) for value in colour)
    return r, g, b


def identity(seed: int, split: Split = "train", noun: str | None = None) -> Identity:
    """The toy with this number. Training and held-out toys come from disjoint streams.

    Args:
        seed: any integer.
        split: which stream of identities; in "usual" most toys of a class look alike (`USUAL_LOOKS`), which gives a
            model that is trained on them a notion of what a class looks like.
        noun: one of `CLASSES`; drawn when None.
    """
    rng = rng_of("identity", split, seed)
    drawn, u = rng.choice(CLASSES), rng.uniform
    colour = rng.choice(tuple(COLOURS))
    second = rng.choice([name for name in COLOURS if name != colour])
    usual = _usual(noun or drawn, seed) if split == "usual" else (None, None, None)
    if usual[0] or usual[1]:
        colour, second = usual[0] or colour, usual[1] or second
        second = second if second != colour else USUAL_LOOKS[noun or drawn][1 if usual[0] else 0]
    return Identity(
        noun=noun or drawn,
        colour=colour,
        second_colour=second,
        rgb=jitter(COLOURS[colour], rng, 0.06),
        second_rgb=jitter(COLOURS[second], rng, 0.06),
        eye_rgb=jitter(COLOURS[rng.choice(EYE_COLOURS)], rng, 0.06),
        pattern=usual[2] or rng.choice(PATTERNS),
        frequency=u(8.0, 15.0),
        phase=(u(0, 6.28), u(0, 6.28)),
        threshold=u(-0.15, 0.25),
        ear=u(0.75, 1.3),
        ear_width=u(0.8, 1.25),
        tail=u(0.7, 1.35),
        tail_width=u(0.75, 1.4),
        snout=u(0.78, 1.3),
        girth=u(0.86, 1.18),
        leg=u(0.8, 1.2),
        head=u(0.9, 1.12),
        belly=rng.random() < 0.5,
        tip=rng.random() < 0.5,
        variant=rng.randrange(3),
    )


def _usual(noun: str, seed: int) -> tuple[str | None, str | None, str | None]:
    """Colour, second colour and pattern, None for each that is not as usual this time."""
    rng = rng_of("usual", seed)
    one, two, three = (value if rng.random() < USUALLY else None for value in USUAL_LOOKS[noun])
    return one, two, three


def is_held_out_combination(noun: str, pose: str, background: str) -> bool:
    """Whether training never shows this class in this pose before this background."""
    return rng_of("combination", noun, pose, background).randrange(HELD_OUT_COMBINATIONS_IN) == 0


def _toy(who: Identity, rng: random.Random, accessory: float) -> Toy:
    wears = rng.choice(ACCESSORIES) if rng.random() < accessory else None
    return Toy(
        who, rng.choice(poses_of(who.noun)), rng.choice(FACINGS), wears, rng.choice(tuple(COLOURS)) if wears else None
    )


def random_scene(
    seed: int,
    split: Split = "train",
    *,
    subject: Identity | None = None,
    companion: float = 0.07,
    styled: float = 0.09,
    accessory: float = 0.5,
    prop: float = 0.4,
) -> Scene:
    """A scene drawn from its seed. In `train` and `usual` no held-out combination occurs; in `held-out` identities are
    held out too.

    Args:
        seed: any integer; training toys number `seed // 4`, so that each appears in four scenes.
        split: stream of identities; combinations held out from training occur only in `held-out`.
        subject: this toy instead of a drawn one.
        companion, styled, accessory, prop: probabilities in [0, 1] of a second toy, of a style other than photo, of
            an accessory for the subject, of an object beside it.
    """
    rng = rng_of("scene", split, seed)
    who = subject or identity(seed // 4, split)
    while True:
        toy, background = _toy(who, rng, accessory), rng.choice(BACKGROUNDS)
        if split == "held-out" or not is_held_out_combination(who.noun, toy.pose, background):
            break
    toys = [toy]
    if rng.random() < companion:
        other = identity(rng.randrange(1 << 30), split)
        toys.append(_toy(other, rng, 0.0))
    has_prop = len(toys) == 1 and rng.random() < prop
    return Scene(
        toys=tuple(toys),
        background=background,
        object=rng.choice(OBJECTS) if has_prop else None,
        object_colour=rng.choice(tuple(COLOURS)) if has_prop else None,
        style=rng.choice(STYLES[1:]) if rng.random() < styled else "photo",
        seed=rng.randrange(1 << 30),
    )


def change(scene: Scene, **changes: object) -> Scene:
    """The same scene with other words: fields of `Scene`, or of its subject's `Toy`.

    Raises:
        TypeError: for a name that is neither.
    """
    of_toy = {name: value for name, value in changes.items() if name in Toy.__dataclass_fields__}
    of_scene = {name: value for name, value in changes.items() if name not in of_toy}
    toys = (replace(scene.subject, **of_toy), *scene.toys[1:])  # type: ignore[arg-type]
    return replace(scene, **{"toys": toys, **of_scene})  # type: ignore[arg-type]
