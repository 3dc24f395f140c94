"""DreamBench++: 150 pictures of animals, humans, objects and styles, nine sentences each.

    FOLDER or FOLDER/data:
        images/CATEGORY/NN.jpg      also deeper; the parent folder is the category
        captions/CATEGORY/NN.txt    the same tree; line 1 the subject, lines 2 to 10 the sentences

Categories and indices are kept in fields, never read out of a name again.

Source: Peng et al., DreamBench++ (arXiv 2406.16855).
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import ArtefactError, nearest
from ...files import inside, listed
from ...subject import PICTURES
from ..items import BenchSubject, Case
from .layout import Contents, Reader, counted, open_folder, unique_name
from .sentences import checked_sentence, context_of, with_place

CATEGORIES = ("animal", "human", "object", "style")
FAMILIES = ("photorealistic",) * 4 + ("style",) * 3 + ("imaginative",) * 2
PUBLISHED = 150


def read(folder: Path) -> Contents:
    """Subjects and cases of a copy.

    Raises:
        ArtefactError: the layout differs; all problems in one line.
    """
    reader = open_folder(folder, "DreamBench++")
    root = folder / "data" if not (folder / "images").exists() and (folder / "data").is_dir() else folder
    images = _tree(reader, reader.member("images", below=root, folder=True), PICTURES)
    captions = _tree(reader, reader.member("captions", below=root, folder=True), frozenset({".txt"}))
    if images or captions:
        reader.problems += [f"images/{key} has no captions/{key}.txt" for key in images if key not in captions]
        reader.problems += [
            f"captions/{key}.txt has no picture images/{key}.jpg" for key in captions if key not in images
        ]
    subjects: list[BenchSubject] = []
    cases: list[Case] = []
    reworded: list[str] = []
    for key in sorted(images.keys() & captions.keys()):
        category = Path(key).parent.name
        if category not in CATEGORIES:
            reader.problems.append(
                f"images/{key}: the folder {category!r} is no category{nearest(category, CATEGORIES)}: "
                f"{', '.join(CATEGORIES)}"
            )
            continue
        spoken, sentences = _caption(reader, captions[key], f"captions/{key}.txt")
        if not sentences:
            continue
        noun = reader.noun(_noun(spoken), f"captions/{key}.txt, line 1")
        name = unique_name(f"{category}-{Path(key).name}-{spoken}", [each.name for each in subjects])
        live = category in ("animal", "human")
        subjects.append(BenchSubject(name, noun, (images[key],), (), live, category))
        for number, (sentence, family) in enumerate(zip(sentences, FAMILIES, strict=True)):
            text, exact = with_place(sentence, noun or spoken)
            text = checked_sentence(text, f"captions/{key}.txt, line {number + 2}", reader.problems)
            if not exact or noun != spoken:
                reworded.append(f"{name}-{number}")
            cases.append(Case(f"{name}-{number}", (("subject", name),), text, family, context_of(text)))
    if not reader.problems and not subjects:
        reader.problems.append("images/ and captions/ are empty")
    reader.check("a copy of DreamBench++")
    notes = counted([(len(subjects), PUBLISHED, "pictures")])
    if reworded:
        notes += (f"{len(reworded)} sentences do not name the subject word for word: {listed(reworded, 4)}",)
    return Contents(tuple(subjects), tuple(cases), notes)


def _tree(reader: Reader, root: Path | None, suffixes: frozenset[str]) -> dict[str, Path]:
    """Files below a folder by their relative path without suffix."""
    found: dict[str, Path] = {}
    for entry in sorted(root.rglob("*")) if root else ():
        if entry.is_dir() or entry.name[0] == "." or entry.suffix.lower() not in suffixes:
            continue
        assert root is not None
        try:
            path = inside(root, entry.relative_to(root).as_posix())
        except ArtefactError as error:
            reader.problems.append(str(error))
            continue
        key = entry.relative_to(root).with_suffix("").as_posix()
        if key in found:
            reader.problems.append(f"{root.name}/{key} is there in two formats: keep one")
        found[key] = path
    return found


def _caption(reader: Reader, path: Path, where: str) -> tuple[str, list[str]]:
    """The subject's words and the nine sentences; [] with a problem."""
    lines = reader.lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) != 1 + len(FAMILIES) or not all(lines):
        filled = sum(map(bool, lines))
        reader.problems.append(f"{where} has {filled} filled lines: expected the subject and {len(FAMILIES)} sentences")
        return "", []
    return lines[0], lines[1:]


def _noun(spoken: str) -> str:
    """The subject's words as a noun: at most the last four of them, without signs."""
    return " ".join(re.sub(r"[^\w' -]", " ", spoken).split()[-4:])
