"""Sentences for scenes, and what each sentence really says.

A caption mentions each attribute with its own probability (colour and pattern words are sometimes left out, since
identity is more than them); `Mentions` records what it says, so that a text encoder can be taught, and a judge can
be asked, exactly that.
"""

from __future__ import annotations

import re
from random import Random

from .world import (
    ACCESSORIES,
    ANIMALS,
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    FACINGS,
    OBJECTS,
    PATTERNS,
    POSES,
    STYLES,
    Scene,
    Toy,
)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    "pose": POSES,
    "facing": FACINGS,
    "background": BACKGROUNDS,
    "accessory": (*ACCESSORIES, "none"),
    "accessory colour": tuple(COLOURS),
    "object": (*OBJECTS, "none"),
    "object colour": tuple(COLOURS),
    "colour": tuple(COLOURS),
    "second colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "style": STYLES,
    "companion": (*CLASSES, "none"),
    "companion colour": tuple(COLOURS),
}
UNKNOWN = -1
"""Label of an attribute that a scene does not have, or that a caption does not mention."""

PLACES = {
    "beach": ("on the beach", "at the beach"),
    "forest": ("in the forest", "in a forest"),
    "snow": ("in the snow",),
    "city": ("in the city", "in a city street"),
    "grass": ("on the grass", "in a meadow"),
    "night": ("at night", "under the night sky"),
    "kitchen": ("in the kitchen", "in a kitchen"),
    "desert": ("in the desert", "in a desert"),
    "mountains": ("in the mountains", "in front of mountains"),
    "living room": ("in the living room", "in a living room"),
}
OPENINGS = {
    "photo": ("a photo of", "a picture of", "an image of", ""),
    "pencil sketch": ("a pencil sketch of", "a pencil drawing of"),
    "watercolour": ("a watercolour of", "a watercolour painting of"),
    "pixel art": ("pixel art of", "a pixel art picture of"),
}
PARENTS = {noun: "animal" for noun in (*ANIMALS, "bird")} | {"robot": "machine", "car": "machine"}
PARENTS |= {"teapot": "thing", "backpack": "thing"}
BROADEST = "toy"
"""What a class is one of, and what all are: wider names, which say less about the look."""
ALWAYS = {name: 1.0 for name in ("colour", "pattern", "pose", "facing", "background", "accessory", "object", "detail")}
OFTEN = {
    "colour": 0.65,
    "pattern": 0.5,
    "pose": 0.88,
    "facing": 0.4,
    "background": 0.9,
    "accessory": 0.93,
    "object": 0.93,
    "detail": 0.75,
}


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def names_of(noun: str) -> tuple[str, str, str]:
    """Leaf, parent and broadest name of a class: "dog", "animal", "toy"."""
    return noun, PARENTS[noun], BROADEST


def renamed(sentence: str, noun: str, name: str) -> str:
    """A sentence with another name for its subject, and the article that it needs."""
    found = re.search(rf"\b(?:an? )?{noun}\b", sentence)
    if found is None or name == noun:
        return sentence
    said = with_article(name) if found.group().startswith(("a ", "an ")) else name
    return sentence[: found.start()] + said + sentence[found.end() :]


def labels(scene: Scene) -> dict[str, int]:
    """Ground truth as indices into `ATTRIBUTES`; `UNKNOWN` for what the scene does not have."""
    toy, other, who = scene.subject, scene.companion, scene.subject.identity
    said: dict[str, str | None] = {
        "class": who.noun,
        "pose": toy.pose,
        "facing": toy.facing,
        "background": scene.background,
        "accessory": toy.accessory or "none",
        "accessory colour": toy.accessory_colour,
        "object": scene.object or "none",
        "object colour": scene.object_colour,
        "colour": who.colour,
        "second colour": who.second_colour if who.pattern != "plain" else None,
        "pattern": who.pattern,
        "style": scene.style,
        "companion": other.identity.noun if other else "none",
        "companion colour": other.identity.colour if other else None,
    }
    return {name: ATTRIBUTES[name].index(value) if value is not None else UNKNOWN for name, value in said.items()}


def caption(scene: Scene, rng: Random, mention: dict[str, float] = OFTEN) -> str:
    """A sentence for the scene. `mention`: probability per kind of word; `ALWAYS` says everything."""
    return caption_and_mentions(scene, rng, mention)[0]


def caption_and_mentions(scene: Scene, rng: Random, mention: dict[str, float] = OFTEN) -> tuple[str, dict[str, int]]:
    """A sentence and the labels of what it says: as `labels`, with `UNKNOWN` for what is left unsaid."""
    truth = labels(scene)
    said = {"class", "style", "companion"}

    def says(name: str, of: str | None = None) -> bool:
        if rng.random() < mention[name]:
            said.add(of or name)
            return True
        return False

    def describe(toy: Toy, own: bool) -> str:
        who = toy.identity
        colour = f"{who.colour} " if says("colour", "colour" if own else "companion colour") else ""
        words = with_article(colour + who.noun)
        if not own:
            return words
        if who.pattern != "plain" and says("pattern"):
            said.add("second colour")
            words += f" with {who.second_colour} {who.pattern}"
        return words

    toy = scene.subject
    opening = rng.choice(OPENINGS[scene.style])
    sentence = f"{opening} {describe(toy, True)}".strip()
    if toy.pose == "upright":
        said.add("pose")
    elif says("pose"):
        sentence += f" {toy.pose}"
    if says("facing"):
        sentence += f" facing {toy.facing}"
    if toy.accessory and says("accessory"):
        says("detail", "accessory colour")
        words = f"{toy.accessory_colour} {toy.accessory}" if "accessory colour" in said else toy.accessory
        sentence += f" wearing {words if toy.accessory == 'glasses' else with_article(words)}"
    if scene.companion:
        sentence += f" next to {describe(scene.companion, False)}"
    elif scene.object and says("object"):
        says("detail", "object colour")
        words = f"{scene.object_colour} {scene.object}" if "object colour" in said else scene.object
        sentence += f" with {with_article(words)}"
    if says("background"):
        sentence += " " + rng.choice(PLACES[scene.background])
    if not toy.accessory:
        said.add("accessory")
    if not scene.object:
        said.add("object")
    return sentence, {name: value if name in said else UNKNOWN for name, value in truth.items()}
