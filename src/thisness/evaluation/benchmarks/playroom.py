"""The Playroom as a benchmark: held-out toys that no model ever saw, rendered with their masks and the truth about
every reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import ArtefactError
from ...files import cache_root, directory, read_json, safe_name, verify_directory
from ...playroom.captions import ATTRIBUTES, UNKNOWN, labels
from ...playroom.subjects import held_out_identity, reference_scenes, subject_name, write_subject
from ...playroom.world import CLASSES, CREATURES, WORLD, Scene
from ..items import BenchSubject, Case
from .layout import Contents
from .playroom_prompts import DRIFT, FAMILIES, POSED, Ask, asks, control_asks, pose_asks
from .sentences import context_of

REFERENCES, SIDE = 4, 128


@dataclass(frozen=True)
class Size:
    """Which toys, and how many sentences of each family for each; None for all."""

    toys: tuple[int, ...]
    sentences: Mapping[str, int | None]


CONTROL_TOYS = tuple(range(12))
POSE_TOYS = tuple(index for index in range(30) if index % len(CLASSES) < len(CREATURES))  # things have three poses only
SIZES = {
    "smoke": Size((0, 7), dict.fromkeys(FAMILIES, 1)),  # a dog and a teapot
    "small": Size(
        tuple(range(10)),
        {"pose": 2, "background": 2, "accessory": 2, "object": 2, "style": 1, "two-part": 2, "two-toy": 1, "drift": 2},
    ),
    "full": Size(tuple(range(30)), dict.fromkeys(FAMILIES)),
    "one": Size(
        tuple(range(20)),
        {"pose": 2, "background": 2, "accessory": 1, "object": 1, "style": 1, "two-part": 2, "two-toy": 1, "drift": 0},
    ),
}


def read(folder: Path | None, size: str) -> Contents:
    """Toys and cases of a size; references are rendered where they are not there yet.

    Args:
        folder: where they are kept; a cache by default.
        size: "smoke", "small", "full", "one" (of one reference), "pose" (of one reference, in other poses), or
            "control": toys with something of a reference kept (with "-1", "-2", "-3": of so many references).

    Raises:
        ArtefactError: `folder` holds something else.
    """
    if size.startswith("control"):
        return _control(folder)
    said_of: Callable[[int], Mapping[str, list[Ask]]] = pose_asks if size == "pose" else asks
    wanted = Size(POSE_TOYS, dict.fromkeys(POSED) | {"drift": 0}) if size == "pose" else SIZES[size]
    subjects = tuple(toy(index, folder) for index in wanted.toys)
    cases: list[Case] = []
    for index, subject in zip(wanted.toys, subjects, strict=True):
        for family, said in said_of(index).items():
            for ask in said[: wanted.sentences[family]]:
                name = f"{subject.name}-{family}-{safe_name(ask.words)}"
                place = (("subject", subject.name),)
                cases.append(Case(name, place, ask.text, family, context_of(ask.text), ask.expected))
    for ask in DRIFT[: wanted.sentences["drift"]]:
        cases.append(Case(f"drift-{ask.words}", (), ask.text, "drift", context_of(ask.text), ask.expected))
    return Contents(subjects, tuple(cases))


def _control(folder: Path | None) -> Contents:
    """Toys in pictures that keep a reference's pose, its background, both, or nothing."""
    subjects, cases = [], []
    for index in CONTROL_TOYS:
        subjects.append(toy(index, folder))
        for family, said in control_asks(index).items():
            for ask in said:
                name = f"{subjects[-1].name}-{family}-{safe_name(ask.words)}"
                place = (("subject", subjects[-1].name),)
                cases.append(Case(name, place, ask.text, family, context_of(ask.text), ask.expected, keep=ask.keep))
    return Contents(tuple(subjects), tuple(cases))


def toy(index: int, folder: Path | None = None) -> BenchSubject:
    """Held-out toy number `index`, with its references on disk and verified."""
    name, who, scenes = subject_name(index), held_out_identity(index), reference_scenes(index, REFERENCES)
    home = _rendered(index, folder)
    return BenchSubject(
        name,
        who.noun,
        tuple(home / f"{number:02d}.png" for number in range(REFERENCES)),
        tuple(home / f"{number:02d}_mask.png" for number in range(REFERENCES)),
        live=who.noun in CREATURES,
        category="creature" if who.noun in CREATURES else "thing",
        truths=tuple(map(truth, scenes)),
    )


def truth(scene: Scene) -> dict[str, str]:
    """What a scene shows, by attribute; without those that it does not have."""
    return {name: ATTRIBUTES[name][value] for name, value in labels(scene).items() if value != UNKNOWN}


def _rendered(index: int, folder: Path | None) -> Path:
    """The folder of a toy's references: whole, of this world, and as it was written; rendered again otherwise."""
    root = folder or cache_root() / "playroom"
    home = root / f"world-{WORLD}-{REFERENCES}x{SIDE}" / subject_name(index)
    scenes = json.loads(json.dumps([asdict(scene) for scene in reference_scenes(index, REFERENCES)]))
    with suppress(ArtefactError):
        verify_directory(home)
        if read_json(home / "truth.json")["scenes"] == scenes:
            return home
    with directory(home, overwrite=folder is None) as building:  # only the cache is ours to overwrite
        write_subject(building, index, count=REFERENCES, size=SIDE)
    return home
