"""DreamEditBench: put a subject in the place of another, or into a marked box of a background.

    FOLDER or FOLDER/data:
        replacement_source/TYPE/found0.jpg, found0_mask.png ...    the mask (white: what is replaced) is yours to add
        addition_source/TYPE/found0.jpg ..., bbox.json             {"found0.jpg": [left, top, right, bottom], ...}
        subjects/SUBJECT/00.jpg ...                                DreamBench's folders of the same subjects

The published boxes are corners in the picture stretched to 512 x 512, as its code loads it; a mask of the picture's
own size is made of each and kept in the cache.

Source: Li et al., DreamEdit (arXiv 2306.12624).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ...errors import ArtefactError, ImageError
from ...files import cache_root, read_json
from ..items import BenchSubject, Case
from .layout import Contents, Reader, open_folder, unique_name

SIDE = 512
TASKS = {"replacement": "replacement_source", "addition": "addition_source"}
Edit = tuple[str, Path, Path]
"""Name, source picture, mask."""


def read(folder: Path | None, size: str) -> Contents:
    """Subjects and cases of a copy.

    Args:
        folder: of the copy.
        size: "replacement", "addition" or "both".

    Raises:
        ArtefactError: the layout differs; all problems in one line.
    """
    assert folder is not None
    reader = open_folder(folder, "DreamEditBench")
    root = folder / "data" if (folder / "data").is_dir() else folder
    tasks = [task for task in TASKS if size in (task, "both")]
    sources = {task: _sources(reader, root, task) for task in tasks}
    home = root if (root / "subjects").exists() or root == folder else folder
    subjects_root = reader.member("subjects", below=home, folder=True)
    subjects: list[BenchSubject] = []
    cases: list[Case] = []
    for path in reader.folders(subjects_root) if subjects_root else ():
        kind = _kind(path.name, sources)
        if kind is None:
            reader.problems.append(f"subjects/{path.name} has no folder of its own or of its type in the sources")
            continue
        pictures, masks = reader.pictures(path)
        name = unique_name(path.name, [each.name for each in subjects])
        noun = reader.noun(_noun(path.name), f"subjects/{path.name}")
        subjects.append(BenchSubject(name, noun, pictures, masks))
        for task in tasks:
            cases += [
                Case(
                    f"{name}-{task}-{stem}"[:64].rstrip("-"),
                    (("subject", name),),
                    "a photo of a {subject}",
                    task,
                    "",
                    edit=(source, mask),
                )
                for stem, source, mask in sources[task].get(kind, ())
            ]
    if subjects_root and not subjects and not reader.problems:
        reader.problems.append("subjects/ is empty: put DreamBench's folders there")
    reader.check("a copy of DreamEditBench")
    return Contents(tuple(subjects), tuple(cases), ())


def _sources(reader: Reader, root: Path, task: str) -> dict[str, list[Edit]]:
    """Source pictures with their masks, by type."""
    top = reader.member(TASKS[task], below=root, folder=True)
    found: dict[str, list[Edit]] = {}
    for path in reader.folders(top) if top else ():
        pictures, masks = reader.pictures(path)
        if task == "replacement":
            given = masks or (None,) * len(pictures)
            if lacking := [p.name for p, m in zip(pictures, given, strict=True) if m is None]:
                reader.problems.append(
                    f"{reader.short(path)}: {len(lacking)} of {len(pictures)} pictures have no mask "
                    f"(add {Path(lacking[0]).stem}_mask.png: white is what is replaced)"
                )
            found[path.name] = [(p.stem.lower(), p, m) for p, m in zip(pictures, given, strict=True) if m is not None]
        else:
            boxes = _boxes(reader, path, pictures)
            found[path.name] = [(p.stem.lower(), p, boxes[p.name]) for p in pictures if p.name in boxes]
    return found


def _boxes(reader: Reader, path: Path, pictures: tuple[Path, ...]) -> dict[str, Path]:
    """The mask of each picture's box, by the picture's name."""
    file = reader.member("bbox.json", below=path)
    try:
        data = read_json(file) if file else {}
    except ArtefactError as error:
        reader.problems.append(str(error))
        return {}
    masks: dict[str, Path] = {}
    for picture in pictures if file else ():
        box = data.get(picture.name) if isinstance(data, dict) else None
        fits = (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(value, int) and 0 <= value <= SIDE for value in box)
            and box[0] < box[2]
            and box[1] < box[3]
        )
        if not fits or box is None:
            reader.problems.append(
                f"{reader.short(path)}/bbox.json: {picture.name} needs [left, top, right, bottom] in 0 ... {SIDE}, "
                f"found {str(box)[:60]}"
            )
            continue
        try:
            masks[picture.name] = _box_mask(picture, box)
        except ImageError as error:
            reader.problems.append(str(error))
    return masks


def _box_mask(picture: Path, box: list[int]) -> Path:
    """The file of a mask of a picture's size, white in the box; made where it is not in the cache."""
    from PIL import Image

    from ...images import load_image, save_png

    width, height = load_image(picture).size
    key = hashlib.sha256(f"{width}x{height}:{box}".encode()).hexdigest()[:24]
    path = cache_root() / "box-masks" / f"{key}.png"
    if not path.is_file():
        mask = Image.new("L", (width, height))
        corners = [round(value * side / SIDE) for value, side in zip(box, (width, height) * 2, strict=True)]
        mask.paste(255, (corners[0], corners[1], corners[2], corners[3]))
        save_png(mask, path)
    return path


def _kind(name: str, sources: dict[str, dict[str, list[Edit]]]) -> str | None:
    """The sources' folder for a subject: its own name, else its type's ("dog" for dog8, "sneaker" for red_sneaker)."""
    bare = name.rstrip("0123456789")
    for candidate in (name, bare, bare.split("_")[-1]):
        if all(candidate in found for found in sources.values()):
            return candidate
    return None


def _noun(name: str) -> str:
    """ "dog" for dog8, "duck toy" for duck_toy."""
    return name.rstrip("0123456789").replace("_", " ").replace("-", " ").strip()
