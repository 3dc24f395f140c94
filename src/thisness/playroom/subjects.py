"""Reference folders of held-out toys: what a person would photograph, with exact masks and the ground truth beside
them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from .world import BACKGROUNDS, CLASSES, FACINGS, Identity, Scene, Toy, identity, poses_of, rng_of

NAMES = ("rufus", "mimi", "bruno", "hazel", "saffron", "kiwi", "bolt", "earl", "hiker", "beetle")
"""Names of the first ten held-out toys, one of each class in the order of `CLASSES`."""


def held_out_identity(index: int) -> Identity:
    """Held-out toy number `index`; its class is `CLASSES[index % 10]`. No model ever saw it."""
    return identity(index, "held-out", CLASSES[index % len(CLASSES)])


def subject_name(index: int) -> str:
    """rufus, mimi, ... for the first ten, then dog-10, cat-11, ..."""
    return NAMES[index] if index < len(NAMES) else f"{CLASSES[index % len(CLASSES)]}-{index}"


def held_out_subjects(count: int = 10) -> list[str]:
    """Names of the first held-out toys."""
    return [subject_name(i) for i in range(count)]


def subject_index(name: str) -> int:
    """The number behind a name of `subject_name`.

    Raises:
        UserError: no held-out toy has this name.
    """
    from ..errors import UserError, nearest

    if name in NAMES:
        return NAMES.index(name)
    noun, _, number = name.partition("-")
    if number.isdigit() and int(number) >= len(NAMES) and CLASSES[int(number) % len(CLASSES)] == noun:
        return int(number)
    raise UserError(
        f"no held-out toy is called {name!r}{nearest(name, NAMES)}: "
        f"use one of {', '.join(NAMES)}, or CLASS-NUMBER as in dog-10"
    )


def reference_scenes(index: int, count: int = 4) -> list[Scene]:
    """Scenes of one held-out toy, all in different poses and places, with nothing worn and nothing beside it."""
    who, rng = held_out_identity(index), rng_of("references", index)
    poses = list(poses_of(who.noun))
    rng.shuffle(poses)
    places = rng.sample(BACKGROUNDS, count)
    return [
        Scene((Toy(who, poses[i % len(poses)], FACINGS[i % 2]),), place, seed=rng.randrange(1 << 30))
        for i, place in enumerate(places)
    ]


def write_subject(folder: str | Path, index: int = 0, *, count: int = 4, size: int = 128) -> Path:
    """Render the reference pictures of a held-out toy: `00.png`, `00_mask.png`, ..., and `truth.json`.

    Args:
        folder: where to; made if absent.
        index: number of the toy.
        count: pictures, 1 to 10.
        size: side in pixels.

    Returns:
        The folder, ready for `Subject.from_folder(folder, noun)`.
    """
    from PIL import Image

    from ..files import write_json
    from ..images import save_png
    from .render import render

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = reference_scenes(index, count)
    made = render(scenes, size)
    for i, (picture, mask) in enumerate(zip(made.images, made.masks, strict=True)):
        save_png(Image.fromarray(picture.permute(1, 2, 0).numpy()), folder / f"{i:02d}.png")
        save_png(Image.fromarray(mask[0].numpy()), folder / f"{i:02d}_mask.png")
    truth = {
        "name": subject_name(index),
        "noun": scenes[0].subject.identity.noun,
        "scenes": [asdict(scene) for scene in scenes],
    }
    write_json(folder / "truth.json", truth)
    return folder
