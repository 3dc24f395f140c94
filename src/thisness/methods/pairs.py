"""Pairs that adapters learn from: what is read, and what is drawn.

    FolderPairs        a folder for each thing: read in one picture, drawn in another
    coco_pairs         `CocoPairs`: objects of a picture are read, the same picture is drawn;
                       `YouTubeVISPairs`: a thing in one frame is read, it is drawn in another frame

All are used alike (`Pairs`): `len`, and `draw(index, seed)`, which gives a `Pair`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import ArtefactError, ConfigurationError, UserError, nearest, raise_all
from ..files import listed
from ..images import fit_square
from ..sources import FOLDERS, FORMS, noun_in
from ..subject import PICTURES, Subject, checked_noun, find_pictures
from .templates import OBJECT


@dataclass(frozen=True, eq=False)
class Pair:
    """What is read, and what is drawn.

    Attributes:
        subjects: each alone before white, square.
        nouns: of each.
        picture: square, of the same side.
        mask: (side, side) float32 in [0, 1], all subjects in it; 1 everywhere where nothing is known.
        caption: of the picture.
        source: file of the picture.
        frames: numbers of the frames that are read and drawn; () where there is one picture.
        looks: for each subject the picture that it is read from, of any size, and its mask there or None.
        categories: the broader class of each subject, "" where it is not known.
    """

    subjects: tuple[Image.Image, ...]
    nouns: tuple[str, ...]
    picture: Image.Image
    mask: np.ndarray
    caption: str
    source: str
    frames: tuple[int, ...] = ()
    looks: tuple[tuple[Image.Image, np.ndarray | None], ...] = ()
    categories: tuple[str, ...] = ()


class Pairs(Protocol):
    """Where pairs come from.

    Attributes:
        size: side of the pictures in pixels; may be set before the first pair is drawn.
        name: to people.
        signature: of what is in it, in hexadecimal.
        varied: whether an index gives other pairs with other seeds.
        same: whether the picture that is read is the one that is drawn.
    """

    size: int
    name: str
    varied: bool
    same: bool

    @property
    def signature(self) -> str: ...

    def __len__(self) -> int: ...

    def draw(self, index: int, seed: int) -> Pair:
        """Raises ArtefactError or ImageError: this one cannot be used."""
        ...


class FolderPairs:
    """Things, each with a folder of pictures: read in one, drawn in another. One index for each thing.

    Masks lie beside the pictures or are their transparency, as `Subject` reads them. The caption of NAME.png is
    NAME.txt beside it, else one of the sentences for objects.

    Args:
        folder: with a folder for each thing; or the pictures of one thing.
        noun: what kind of thing all of them are; "" for what each folder says (`sources.noun_in`).
        size: side in pixels.
        masks: whether each picture must have one.

    Attributes:
        left_out: names of things with a single picture.

    Raises:
        ArtefactError: nothing with two pictures, or pictures without a mask.
        ImageError: pictures that are refused; all of it at once.
        UserError: no noun.
    """

    varied, same = True, False

    def __init__(self, folder: str | Path, noun: str = "", *, size: int = 512, masks: bool = True) -> None:
        self.folder, self.size, self.masks = Path(folder), size, masks
        self.name = str(folder)
        if not self.folder.is_dir():
            raise ArtefactError(f"{folder}: no such folder of things")
        inside = sorted(each for each in self.folder.iterdir() if each.is_dir() and each.name[0] != ".")
        things = [each for each in inside if _shows(each)]
        if things and _shows(self.folder):
            raise ArtefactError(
                f"{folder} has pictures and folders of pictures ({listed(each.name for each in things)}) in it: give a "
                "folder with one folder for each thing, or the folder of one thing"
            )
        things = things or [self.folder]
        found: list[tuple[Path, list[tuple[Path, Path | None]]]] = []
        problems = []
        for thing in things:
            try:
                found.append((thing, find_pictures(thing)))
            except UserError as error:
                problems.append(str(error))
        raise_all(problems, ArtefactError)
        self.left_out = tuple(thing.name for thing, pictures in found if len(pictures) < 2)
        found = [(thing, pictures) for thing, pictures in found if len(pictures) > 1]
        if not found:
            raise ArtefactError(
                f"{folder}: no thing with two pictures ({listed(self.left_out)}): one is read, another is drawn"
            )
        nouns = [noun or noun_in(thing) for thing, _ in found]
        silent = [str(thing) for (thing, _), said in zip(found, nouns, strict=True) if not said]
        if silent:
            raise UserError(
                f"{listed(silent)}: what kind of thing is it: write the word into noun.txt beside the pictures, or "
                "give one for all (--noun dog)"
            )
        self.nouns = [checked_noun(each) for each in nouns]
        bare = [file for _, pictures in found for file, mask in pictures if mask is None and not _has_alpha(file)]
        if masks and bare:
            names = listed(str(file.relative_to(self.folder)) for file in bare)
            raise ArtefactError(
                f"{folder}: {names}: no mask (NAME_mask.png beside NAME.png, or transparency), so nobody knows what is "
                "to be read: thisness masks makes them"
            )
        self.things = [[file for file, _ in pictures] for _, pictures in found]

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, index: int) -> Pair:
        return self.draw(index, 0)

    @cached_property
    def signature(self) -> str:
        """Over names, sizes and times of all files of the things, and the nouns."""
        told = []
        for noun, files in zip(self.nouns, self.things, strict=True):
            for path in sorted(each for each in files[0].parent.iterdir() if each.is_file()):
                stat = path.stat()
                told.append((noun, str(path.relative_to(self.folder)), stat.st_size, stat.st_mtime_ns))
        return signature_of(FOLDERS, told, self.masks)

    def draw(self, index: int, seed: int) -> Pair:
        """A pair of pictures of a thing, and a sentence where there is none beside the picture, that the seed decides.

        Raises:
            ArtefactError, ImageError: one of them cannot be used.
        """
        noun, files, choice = self.nouns[index], self.things[index], Random(seed)
        read, drawn = choice.sample(files, 2)
        shown = []
        for file in (read, drawn):
            one = Subject.from_folder(file, noun)
            mask = one.masks[0]
            if mask is None and self.masks:
                raise ArtefactError(f"{file}: no mask, and it is opaque everywhere")
            shown.append((one.images[0], mask))
        sentence = choice.choice(OBJECT).replace("{subject}", noun)
        told = drawn.with_suffix(".txt")
        if told.is_file():
            sentence = " ".join(told.read_text(encoding="utf-8", errors="replace").split()) or sentence
        image, mask = shown[1]
        return made_pair(
            image, shown[:1], (noun,), sentence, self.size, str(drawn.relative_to(self.folder)), drawn=[mask]
        )


def open_pairs(
    form: str, parts: Sequence[str], noun: str = "", *, masks: bool = True, least: int = 1000, most: int = 4,
    apart: float = 1 / 8,
) -> Pairs:  # fmt: skip
    """What a person named, opened.

    Args:
        form: one of FORMS.
        parts: files and folders in its order.
        noun: of folders that do not say theirs.
        masks: whether pictures of folders must have one.
        least: pixels that an object of COCO or YouTube-VIS has.
        most: objects of a COCO picture that are read.
        apart: least distance of two frames, by the length of the video.

    Raises:
        ConfigurationError: no such form, or another number of parts.
        ArtefactError, ImageError, UserError: what is there cannot be used.
    """
    from .coco_pairs import CocoPairs, YouTubeVISPairs

    if form not in FORMS:
        raise ConfigurationError(f"no form of data {form!r}{nearest(form, FORMS)}: known are {', '.join(FORMS)}")
    counts = {"coco": (2, 3), "youtube-vis": (2,), FOLDERS: (1,)}[form]
    if len(parts) not in counts:
        raise ConfigurationError(f"{form}: {len(parts)} parts: expected {FORMS[form]}")
    if form == "coco":
        return CocoPairs(parts[0], parts[1], parts[2] if len(parts) == 3 else None, least=least, most=most)
    if form == "youtube-vis":
        return YouTubeVISPairs(parts[0], parts[1], least=least, apart=apart)
    return FolderPairs(parts[0], noun, masks=masks)


def made_pair(
    image: Image.Image, looks: Sequence[tuple[Image.Image, np.ndarray | None]], nouns: tuple[str, ...], caption: str,
    size: int, source: str, *, drawn: Sequence[np.ndarray | None] | None = None, frames: tuple[int, ...] = (),
    categories: tuple[str, ...] = (),
) -> Pair:  # fmt: skip
    """A pair of prepared pictures.

    Args:
        image: that is drawn, of any size; it is cropped to a square about what is in it.
        looks: pictures and masks of what is read; (H, W) in [0, 1], or None for all of the picture.
        nouns, caption, source, frames, categories: as of `Pair`.
        size: side in pixels.
        drawn: masks in `image`; those of what is read by default.
    """
    from .ezigen import prepared

    masks = [mask for mask in (drawn if drawn is not None else [mask for _, mask in looks]) if mask is not None]
    picture, mask = fit_square(image, size, np.maximum.reduce(masks) if masks else None)
    if mask is None:
        mask = np.ones((size, size), np.float32)
    subjects = tuple(prepared(shown, cover, size)[0] for shown, cover in looks)
    return Pair(subjects, nouns, picture, mask, caption, source, frames, tuple(looks), categories)


def signature_of(*parts: object) -> str:
    """SHA-256 over plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _shows(folder: Path) -> bool:
    return any(each.suffix.lower() in PICTURES and each.name[0] != "." for each in folder.iterdir() if each.is_file())


def _has_alpha(file: Path) -> bool:
    """Whether a picture may be transparent, by its header; one that cannot be opened is refused when it is read."""
    try:
        with Image.open(file) as image:
            return "A" in image.getbands() or "transparency" in image.info
    except (OSError, ValueError, Image.DecompressionBombError):
        return True
