"""The reference pictures of one thing: read from a folder, checked before anything expensive starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import ImageError, UserError, raise_all
from .files import checked_name, listed, safe_name
from .images import check_mask, load_mask, load_with_alpha
from .prompt import SlotWord, clean_text

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
OTHER_PICTURES = frozenset({".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jxl", ".dng", ".raw", ".svg"})
MASK = "_mask"  # NAME_mask.png beside NAME.png
MAX_PICTURES = 100
KEPT_SIDE = 2048  # pixels of the longer side that are kept in memory; no base takes more


@dataclass(frozen=True, eq=False)
class Subject:
    """One thing, seen from several sides.

    Args:
        name: a-z, 0-9 and "-"; also names its learned word.
        noun: what kind of thing it is, in one to four words: "dog", "teddy bear".
        images: 1 to 100 RGB pictures of any size.
        masks: for each picture an array (H, W) in [0, 1] of its size, 1 the subject, or None; () for none at all.
        files: names of the files that the pictures came from; () where they came from none.

    Raises:
        ImageError, UserError: any of it is otherwise; all of it at once.
    """

    name: str
    noun: str
    images: tuple[Image.Image, ...]
    masks: tuple[np.ndarray | None, ...] = ()
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked_name(self.name, "the subject's name")
        object.__setattr__(self, "noun", checked_noun(self.noun))
        object.__setattr__(self, "images", tuple(self.images))
        if not 1 <= len(self.images) <= MAX_PICTURES:
            raise ImageError(
                f"{self.name}: {len(self.images)} pictures: 1 to {MAX_PICTURES} are needed, 3 to 6 are usual"
            )
        for what in ("masks", "files"):
            if (given := len(getattr(self, what))) not in (0, len(self.images)):
                raise ImageError(
                    f"{self.name}: {given} {what} for {len(self.images)} pictures: give one for each or none"
                )
        problems = [f"picture {n} is {i.mode}, not RGB" for n, i in enumerate(self.images) if i.mode != "RGB"]
        raise_all(problems, ImageError, self.name)
        masks = self.masks or (None,) * len(self.images)
        names = self.files or tuple(f"picture {number}" for number in range(len(self.images)))
        checked = (
            None if mask is None else check_mask(mask, image.size, name=f"the mask of {name}")
            for image, mask, name in zip(self.images, masks, names, strict=True)
        )
        object.__setattr__(self, "masks", tuple(checked))
        object.__setattr__(self, "files", tuple(self.files))

    @classmethod
    def from_folder(cls, path: str | Path, noun: str, name: str | None = None, *, resize_mask: bool = False) -> Subject:
        """Read a folder of pictures, or one picture.

        The mask of NAME.jpg is NAME_mask.png beside it (white the subject), else the transparency of NAME itself,
        else there is none. Pictures over 2048 pixels are scaled down to that. Files that are not pictures are passed
        over; pictures of another format are refused rather than left out.

        Args:
            path: a folder, or a PNG, JPEG or WebP file.
            noun: what kind of thing it is: "dog".
            name: "rufus"; the folder's name by default, brought to a-z, 0-9 and "-".
            resize_mask: scale masks that are of another size than their pictures, instead of refusing them.

        Raises:
            ImageError: no pictures, or some cannot be used; all of it at once.
            UserError: the noun or the name has another form.
        """
        path = Path(path)
        if name is None:
            resolved = path.resolve()
            name = safe_name(resolved.stem if resolved.is_file() else resolved.name, default="subject")
        checked_name(name, "the subject's name")
        noun = checked_noun(noun)
        images: list[Image.Image] = []
        masks: list[np.ndarray | None] = []
        problems: list[str] = []
        pairs = find_pictures(path)
        for file, mask_file in pairs:
            try:
                image, mask = _read(file, mask_file, resize_mask)
                images.append(image)
                masks.append(mask)
            except ImageError as error:
                problems.append(str(error))
        raise_all(problems, ImageError)
        return cls(name, noun, tuple(images), tuple(masks), tuple(file.name for file, _ in pairs))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the pixels and the masks, in hexadecimal; names do not count, the order does."""
        digest = hashlib.sha256()
        for image, mask in zip(self.images, self.masks, strict=True):
            digest.update(f"{image.size}{mask is not None}".encode())
            digest.update(image.tobytes())
            if mask is not None:
                digest.update(np.round(mask * 255).astype(np.uint8).tobytes())
        return digest.hexdigest()

    @property
    def word(self) -> SlotWord:
        """What stands in a prompt for a subject that nothing was learned of: its class noun."""
        return SlotWord(self.noun, self.noun)

    def __repr__(self) -> str:
        masks = sum(mask is not None for mask in self.masks)
        return f"Subject({self.name!r}, {self.noun!r}, {len(self.images)} pictures, {masks} masks)"


def checked_noun(noun: str) -> str:
    """A class noun in clean text.

    Raises:
        UserError: empty, over four words, or with anything but letters, digits, "-" and "'".
    """
    words = noun.split()
    plain = all(char.isalnum() or char in "-'" for word in words for char in word)
    if not 1 <= len(words) <= 4 or len(noun) > 64 or not plain:
        raise UserError(f"the noun {noun[:80]!r} must be one to four plain words for the kind of thing: --noun dog")
    return clean_text(noun, "the noun")


def find_pictures(path: str | Path) -> list[tuple[Path, Path | None]]:
    """Pictures of a folder in the order of their names, each with the file of its mask, if there is one.

    Args:
        path: a folder, or one picture.

    Raises:
        ImageError: not there, no pictures, too many, pictures of other formats, masks without a picture, two masks
            for one picture, or links that lead out of the folder; all of it at once.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path} is not there: name a folder with pictures, or a picture")
    if path.is_file():
        beside = [entry for entry in path.parent.iterdir() if entry.stem == path.stem + MASK]
        entries, folder = [path, *beside], path.parent
        if path.suffix.lower() not in PICTURES:
            raise ImageError(f"{path} is not a PNG, JPEG or WebP picture: save it as one of these")
    else:
        folder = path
        entries = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name[0] != ".")
    pictures = [entry for entry in entries if entry.suffix.lower() in PICTURES]
    foreign = [entry.name for entry in entries if entry.suffix.lower() in OTHER_PICTURES]
    masks = {entry for entry in pictures if entry.stem.endswith(MASK)} - ({path} if path.is_file() else set())
    plain = [entry for entry in pictures if entry not in masks]
    problems = []
    if foreign:
        problems.append(f"{listed(foreign)}: not PNG, JPEG or WebP (save as one of these, or move away)")
    if outside := _outside(folder, pictures):
        problems.append(f"{listed(outside)}: links to files elsewhere (copy the files themselves)")
    if not plain and not foreign:
        problems.append("no PNG, JPEG or WebP picture is in it")
    if len(plain) > MAX_PICTURES:
        problems.append(f"{len(plain)} pictures: at most {MAX_PICTURES} (3 to 6 good ones are usual)")
    stems = [entry.stem for entry in plain]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        problems.append(f"{listed(twice)}: there in two formats, so their masks would be mixed up (keep one)")
    mask_of: dict[str, Path] = {}
    for mask in sorted(masks):
        stem = mask.stem.removesuffix(MASK)
        if stem in mask_of:
            problems.append(f"{stem} has two masks (keep one)")
        elif stem not in stems:
            problems.append(f"{mask.name} is a mask without its picture {stem}.png")
        mask_of[stem] = mask
    raise_all(problems, ImageError, str(path))
    return [(entry, mask_of.get(entry.stem)) for entry in plain]


def _outside(folder: Path, entries: Iterable[Path]) -> list[str]:
    root = folder.resolve()
    return [entry.name for entry in entries if entry.is_symlink() and root not in entry.resolve().parents]


def _read(file: Path, mask_file: Path | None, resize_mask: bool) -> tuple[Image.Image, np.ndarray | None]:
    image, alpha = load_with_alpha(file)
    if mask_file is not None:
        mask: np.ndarray | None = load_mask(mask_file, image.size, resize=resize_mask)
    elif alpha is not None:
        mask = check_mask(alpha, image.size, name=f"{file}: its transparency as a mask")
    else:
        mask = None
    if max(image.size) > KEPT_SIDE:
        image.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.LANCZOS)
        mask = None if mask is None else check_mask(mask, image.size, resize=True, name=str(mask_file or file))
    return image, mask
