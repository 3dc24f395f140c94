"""What the Playroom asks of each held-out toy: fixed lists, in the language of its training captions.

Per toy, what is asked differs from what its references show: other poses, other places, things worn and stood beside
it in colours that are not its own. The one exception: a thing has three poses and four references, which show them
all; `already_shown` finds these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from ...playroom.captions import OPENINGS, PLACES, with_article
from ...playroom.subjects import held_out_identity, reference_scenes
from ...playroom.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLOURS, OBJECTS, STYLES, poses_of

FAMILIES = ("pose", "background", "accessory", "object", "style", "two-part", "two-toy", "drift")
UNSAID = "upright"
"""The pose that no training caption names, since it goes without saying; so nothing here asks for it."""
Value = TypeVar("Value")


class Ask(NamedTuple):
    """A sentence, the words that tell it from its siblings, and what a picture of it must show."""

    words: str
    text: str
    expected: Mapping[str, str]


def rotated(values: Sequence[Value], by: int) -> list[Value]:
    """The same values from another beginning, so that toys share the load evenly."""
    start = by % len(values)
    return [*values[start:], *values[:start]]


def asks(index: int) -> dict[str, list[Ask]]:
    """All sentences for held-out toy number `index`, by family, without drift; smaller sizes take the first of each."""
    who, scenes = held_out_identity(index), reference_scenes(index)
    poses = _unseen_first(
        [pose for pose in poses_of(who.noun) if pose != UNSAID], [scene.subject.pose for scene in scenes], index
    )
    places = _unseen_first(BACKGROUNDS, [scene.background for scene in scenes], index)
    colours = rotated([name for name in COLOURS if name not in (who.colour, who.second_colour)], 3 * index)
    worn = list(zip(rotated(ACCESSORIES, index), colours, strict=False))
    beside = list(zip(rotated(OBJECTS, index), colours[4:], strict=False))
    others = list(zip(rotated([name for name in CLASSES if name != who.noun], 3 * index), colours[7:], strict=False))
    return {
        "pose": [_pose(pose) for pose in poses],
        "background": [_place(place) for place in places],
        "accessory": [_worn(*each) for each in worn],
        "object": [_beside(*each) for each in beside],
        "style": [_style(style) for style in rotated(STYLES[1:], index)],
        "two-part": [
            ask
            for number in range(5)
            for ask in (
                _both(_pose(poses[number % len(poses)]), _place(rotated(places, 2)[number])),
                _both(_worn(*rotated(worn, 2)[number % len(worn)]), _place(rotated(places, 5)[number])),
            )
        ],
        "two-toy": [_other(*each) for each in others[:3]],
    }


class Kept(NamedTuple):
    """A sentence, what is kept of which references, and what a picture must show."""

    words: str
    text: str
    keep: tuple[str, ...]
    expected: Mapping[str, str]


CONTROL = ("alone", "keep-pose", "keep-background", "keep-both")
"""Families of the size "control": whether what is kept of a reference is there, and nothing where nothing shall be."""


def control_asks(index: int) -> dict[str, list[Kept]]:
    """For held-out toy number `index`: the subject alone where no reference shows it; each reference's pose somewhere
    else; each reference's background in another pose; a pose and a background of different references."""
    who, scenes = held_out_identity(index), reference_scenes(index)
    shown = [scene.subject.pose for scene in scenes]
    poses = _unseen_first([pose for pose in poses_of(who.noun) if pose != UNSAID], shown, index)
    every = [pose for pose in poses_of(who.noun) if pose != UNSAID]
    places = _unseen_first(BACKGROUNDS, [scene.background for scene in scenes], index)
    found: dict[str, list[Kept]] = {name: [] for name in CONTROL}
    for number in range(2):
        ask = _both(_pose(poses[number % len(poses)]), _place(places[number]))
        found["alone"].append(Kept(ask.words, ask.text, (), ask.expected))
    count = len(scenes)
    for number, scene in enumerate(scenes):
        place = _place(places[(2 + number) % len(places)])
        expected = {"pose": scene.subject.pose, **place.expected}
        found["keep-pose"].append(Kept(f"{number} {place.words}", place.text, (f"pose:{number}",), expected))
        other = rotated([pose for pose in every if pose != scene.subject.pose], index + number)[0]
        pose = _pose(other)
        expected = {**pose.expected, "background": scene.background}
        found["keep-background"].append(Kept(f"{number} {other}", pose.text, (f"background:{number}",), expected))
    for one, two in ((0, 1), (2, 3)):
        expected = {"pose": scenes[one].subject.pose, "background": scenes[two % count].background}
        keep = (f"pose:{one}", f"background:{two % count}")
        found["keep-both"].append(Kept(f"{one} {two}", "a {subject}", keep, expected))
    return found


POSED = ("pose", "pose-object", "pose-place")
"""Families of the size "pose": each of the toy's poses but its one reference's, alone and with something else."""


def pose_asks(index: int) -> dict[str, list[Ask]]:
    """Eleven sentences for held-out creature number `index`, none of which asks for the pose of its first reference:
    all other poses alone, with each object, in two places.

    After the pose set of "Harmonizing Visual and Textual Embeddings" (arXiv 2403.14155), some of whose actions come
    with an object ("playing guitar").
    """
    who, scene = held_out_identity(index), reference_scenes(index)[0]
    poses = rotated([pose for pose in poses_of(who.noun) if pose not in (UNSAID, scene.subject.pose)], index)
    colours = rotated([name for name in COLOURS if name not in (who.colour, who.second_colour)], 3 * index)
    places = rotated([place for place in BACKGROUNDS if place != scene.background], index)
    beside = [_beside(thing, colour) for thing, colour in zip(OBJECTS, colours, strict=False)]
    found = [_pose(pose) for pose in poses]
    return {
        "pose": found,
        "pose-object": [_both(found[n % len(found)], ask) for n, ask in enumerate(beside)],
        "pose-place": [_both(found[-1 - n], _place(place)) for n, place in enumerate(places[:2])],
    }


DRIFT = (
    Ask(
        "cat",
        "a red cat sleeping on the beach",
        {"class": "cat", "colour": "red", "pose": "sleeping", "background": "beach"},
    ),
    Ask("car", "a blue car in the city", {"class": "car", "colour": "blue", "background": "city"}),
    Ask(
        "rabbit",
        "a green rabbit wearing a yellow hat in the snow",
        {
            "class": "rabbit",
            "colour": "green",
            "accessory": "hat",
            "accessory colour": "yellow",
            "background": "snow",
        },
    ),
    Ask(
        "robot",
        "a purple robot with an orange ball in the kitchen",
        {
            "class": "robot",
            "colour": "purple",
            "object": "ball",
            "object colour": "orange",
            "background": "kitchen",
        },
    ),
)
"""Sentences without the subject, the same for all toys: a concept should leave them as they are."""


def _unseen_first(values: Sequence[str], shown: Sequence[str], index: int) -> list[str]:
    """Those that no reference shows; where all are shown, those that the fewest show first."""
    order = rotated(values, index)
    unseen = [value for value in order if value not in shown]
    return unseen or sorted(order, key=shown.count)


def _pose(pose: str) -> Ask:
    return Ask(pose, f"a {{subject}} {pose}", {"pose": pose})


def _place(place: str) -> Ask:
    return Ask(place, f"a {{subject}} {PLACES[place][0]}", {"background": place})


def _worn(accessory: str, colour: str) -> Ask:
    words = f"{colour} {accessory}"
    said = words if accessory == "glasses" else with_article(words)
    return Ask(words, f"a {{subject}} wearing {said}", {"accessory": accessory, "accessory colour": colour})


def _beside(thing: str, colour: str) -> Ask:
    words = f"{colour} {thing}"
    return Ask(words, f"a {{subject}} with {with_article(words)}", {"object": thing, "object colour": colour})


def _style(style: str) -> Ask:
    return Ask(style, f"{OPENINGS[style][0]} a {{subject}}", {"style": style})


def _other(noun: str, colour: str) -> Ask:
    words = f"{colour} {noun}"
    return Ask(words, f"a {{subject}} next to {with_article(words)}", {"companion": noun, "companion colour": colour})


def _both(first: Ask, second: Ask) -> Ask:
    rest = second.text.removeprefix("a {subject} ")
    return Ask(f"{first.words} {second.words}", f"{first.text} {rest}", {**first.expected, **second.expected})
