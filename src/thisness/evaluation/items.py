"""What flows through measuring: what a benchmark asks for, a picture beside what it should show, and its values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from ..subject import Subject

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, perhaps with the mask of its subject.

    Args:
        image: RGB, any size.
        mask: (H, W) float32 in [0, 1] of its size, 1 the subject; None where nobody knows.
    """

    image: Image.Image
    mask: np.ndarray | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 over size and pixels, in hexadecimal; the mask does not count."""
        return hashlib.sha256(f"{self.image.mode}{self.image.size}".encode() + self.image.tobytes()).hexdigest()

    @cached_property
    def mask_hash(self) -> str:
        """SHA-256 over the mask at 8 bits; "" without one."""
        return (
            ""
            if self.mask is None
            else hashlib.sha256(np.round(self.mask * 255).astype(np.uint8).tobytes()).hexdigest()
        )


@dataclass(frozen=True)
class BenchSubject:
    """A subject of a benchmark, on disk.

    Args:
        name: [a-z0-9][a-z0-9-]*, unique in its benchmark.
        noun: class noun.
        pictures: reference files.
        masks: a file or None for each picture; () for none at all.
        live: whether it is a living thing, where the benchmark says so.
        category: the benchmark's own, as "animal"; "" where it has none.
        truths: for each picture what it shows ("pose": "sitting"), where that is known; ().
    """

    name: str
    noun: str
    pictures: tuple[Path, ...]
    masks: tuple[Path | None, ...] = ()
    live: bool | None = None
    category: str = ""
    truths: tuple[Mapping[str, str], ...] = ()

    def load(self) -> Subject:
        """Its pictures and masks, read and checked.

        Raises:
            ImageError: a file is missing or cannot be used.
        """
        from ..images import load_mask, load_with_alpha
        from ..subject import Subject

        images, masks = [], []
        for number, file in enumerate(self.pictures):
            image, alpha = load_with_alpha(file)
            given = self.masks[number] if self.masks else None
            images.append(image)
            masks.append(alpha if given is None else load_mask(given, image.size))
        return Subject(self.name, self.noun, tuple(images), tuple(masks), tuple(file.name for file in self.pictures))


@dataclass(frozen=True)
class Case:
    """One subject (or several) in one sentence.

    Args:
        id: [a-z0-9][a-z0-9-]*, unique in its benchmark.
        subjects: (placeholder, name of a `BenchSubject`) pairs: (("subject", "rufus"),); () for a sentence without a
            subject, as those that measure drift.
        text: the sentence with its placeholders: "a {subject} sleeping on the beach".
        family: what it asks to change: pose, background, accessory, object, style, two-part, two-toy, drift, ...
        context: the sentence without its subject: "sleeping on the beach".
        expected: attributes that the picture must show ("pose": "sleeping"), in the words of the Playroom; for judges
            that can read them.
        edit: for editing benchmarks the source picture and the mask of what is replaced.
        keep: what of which reference is kept ("pose:2"); recipes that learn no words for it pass the case over.
    """

    id: str
    subjects: tuple[tuple[str, str], ...]
    text: str
    family: str = ""
    context: str = ""
    expected: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    edit: tuple[Path, Path] | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Subjects, cases, seeds.

    Args:
        name: "playroom-small", "dreambench".
        seeds: of every case.
        preset: name of the metrics' preset that its source measures with.
        masker: what finds the subject in its made pictures: "playroom"; "" for nothing.
        notes: what a reader of its numbers should know: the protocol, and where this copy differs from it.
    """

    name: str
    subjects: tuple[BenchSubject, ...]
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    preset: str = "thisness"
    notes: tuple[str, ...] = ()
    masker: str = ""

    def subject(self, name: str) -> BenchSubject:
        return next(each for each in self.subjects if each.name == name)


@dataclass(frozen=True, eq=False)
class Item:
    """A made picture, and all that a metric or a judge may compare it with.

    Args:
        id: of its row in the run's plan.
        recipe, subject, case, seed: what it was made from; `subject` is the first of several, "" for none.
        picture: what was made.
        references: the subject's pictures.
        noun: the subject's class noun.
        sentence: the sentence with each placeholder replaced by its class noun.
        concept: the subject's part of it alone: "a dog".
        context: the sentence without the subject.
        family, expected: as the case's.
        truths: as the subject's.
        baseline: what the plain base made of the same sentence and seed, for drift; None where it was not made.
        source: for editing: the source picture; its mask is what was replaced.
        category: the subject's, in the benchmark's words ("style": judges ask other questions about styles).
    """

    id: str
    recipe: str
    subject: str
    case: str
    seed: int
    picture: Picture
    references: tuple[Picture, ...]
    noun: str
    sentence: str
    concept: str = ""
    context: str = ""
    family: str = ""
    expected: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    truths: tuple[Mapping[str, str], ...] = ()
    baseline: Picture | None = None
    source: Picture | None = None
    category: str = ""


@dataclass(frozen=True)
class Scored:
    """One row of a finished run.

    Args:
        values: by the metric's name; None where it says nothing about this row (no mask, no reference).
        image: the picture, or None where making it failed.
        failure: one line that says why there is no picture; "".
        seconds: that making it took.
    """

    id: str
    recipe: str
    subject: str
    case: str
    family: str
    seed: int
    sentence: str
    values: Mapping[str, float | None]
    image: Path | None = None
    failure: str = ""
    seconds: float = 0.0
