"""The DS set of "Harmonizing": 38 pictures of live animals, 11 pose sentences.

It is not published as files: it is taken from one's own copies of DreamBench and CustomConcept101 by a manifest,

    {"format": "thisness-ds-1", "dreambench": FOLDER, "customconcept101": FOLDER,
     "pictures": [{"source": "dreambench", "picture": "cat/00.jpg", "noun": "cat", "sha256": "..."}, ...],
     "prompts": ["a {subject} sleeping", ...]}

which `python -m thisness.evaluation.benchmarks DREAMBENCH CUSTOMCONCEPT101 ds.json` writes. Relative folders are
relative to the manifest. The two data sets have 20 live animals, so "38" is our reading: the first picture of each by
name, then the second of the first 18. The list of sentences is unpublished but for three (sleeping, standing, playing
guitar): the eleven here are ours.

Source: Harmonizing Visual and Textual Embeddings for Zero-Shot Text-to-Image Customization, experiments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ArtefactError, raise_all
from ...files import read_json, sha256, write_json
from ..items import BenchSubject, Case
from .dreambench import LIVE_CLASSES
from .layout import SHOWN, Contents, Reader, counted, open_folder, unique_name
from .sentences import SLOT, checked_sentence, context_of

FORMAT = "thisness-ds-1"
COUNT = 38
SOURCES = ("dreambench", "customconcept101")
DREAMBENCH = ("cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8")
CUSTOMCONCEPT = (*(f"pet_cat{n}" for n in range(1, 8)), *(f"pet_dog{n}" for n in range(1, 5)))
POSES = (
    "sleeping",
    "standing",
    "sitting",
    "jumping",
    "running",
    "lying on its back",
    "playing guitar",
    "reading a book",
    "playing with a ball",
    "riding a skateboard",
    "swimming in a pool",
)
NOTE = "the 11 pose sentences are ours (the source's list is unpublished), and so is the choice of the 38 pictures"


def write_manifest(dreambench: str | Path, customconcept101: str | Path, out: str | Path) -> Path:
    """Write the manifest of the 38 pictures.

    Args:
        dreambench: a copy of google/dreambooth.
        customconcept101: a copy of customconcept101, or its benchmark_dataset.
        out: the file to write.

    Raises:
        ArtefactError: animals or pictures are missing; all of it in one line.
    """
    roots = {
        "dreambench": _root(Path(dreambench), "dataset"),
        "customconcept101": _root(Path(customconcept101), "benchmark_dataset"),
    }
    animals: list[tuple[str, str, tuple[Path, ...]]] = []
    problems: list[str] = []
    for source, names in zip(SOURCES, (DREAMBENCH, CUSTOMCONCEPT), strict=True):
        reader = open_folder(roots[source], source)
        for name in names:
            path = reader.member(name, folder=True)
            pictures = reader.pictures(path)[0] if path else ()
            if path and len(pictures) < 2:
                reader.problems.append(f"{name} has {len(pictures)} pictures: two are needed")
            animals.append((source, name, pictures))
        problems += [f"{source}: {problem}" for problem in reader.problems]
    raise_all(problems[:SHOWN], ArtefactError, "the DS set cannot be put together")
    animals.sort(key=lambda animal: animal[1])
    rest = COUNT - len(animals)
    chosen = [(*animal[:2], animal[2][0]) for animal in animals]
    chosen += [(*animal[:2], animal[2][1]) for animal in animals[:rest]]
    data = {
        "format": FORMAT,
        **{source: str(root.resolve()) for source, root in roots.items()},
        "pictures": [
            {"source": source, "picture": f"{name}/{file.name}", "noun": _noun(name), "sha256": sha256(file)}
            for source, name, file in chosen
        ],
        "prompts": [f"a {{subject}} {pose}" for pose in POSES],
    }
    write_json(out, data)
    return Path(out)


def read(path: Path) -> Contents:
    """The set that a manifest describes; each picture is one subject.

    Raises:
        ArtefactError: the manifest or a picture is not as it should be; all problems in one line.
    """
    file = path / "ds.json" if path.is_dir() else path
    if not file.is_file():
        raise ArtefactError(
            f"{file} is not there: write it with "
            "python -m thisness.evaluation.benchmarks DREAMBENCH CUSTOMCONCEPT101 ds.json"
        )
    data = read_json(file)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtefactError(f"{file} is not a manifest of the DS set: expected the format {FORMAT!r}")
    reader = Reader(file)
    roots = {source: _manifest_root(reader, data, source) for source in SOURCES}
    subjects: list[BenchSubject] = []
    pictures = data.get("pictures")
    for number, record in enumerate(pictures if isinstance(pictures, list) else (), 1):
        subject = _picture(reader, record, f"picture {number}", roots, [each.name for each in subjects])
        if subject:
            subjects.append(subject)
    prompts = data.get("prompts")
    texts = []
    for number, prompt in enumerate(prompts if isinstance(prompts, list) else (), 1):
        text = checked_sentence(str(prompt), f"prompt {number}", reader.problems)
        if text and SLOT.findall(text) != ["{subject}"]:
            reader.problems.append(f"prompt {number} {text!r} needs one {{subject}}")
        texts.append(text)
    if not reader.problems and not (subjects and texts):
        reader.problems.append("it lists no pictures or no prompts")
    reader.check("a manifest of the DS set that can be used")
    cases = [
        Case(f"{subject.name}-{number:02d}", (("subject", subject.name),), text, "pose", context_of(text))
        for subject in subjects
        for number, text in enumerate(texts)
    ]
    counts = counted([(len(subjects), COUNT, "pictures"), (len(texts), len(POSES), "sentences")])
    return Contents(tuple(subjects), tuple(cases), (NOTE, *counts))


def _manifest_root(reader: Reader, data: dict[str, Any], source: str) -> Path | None:
    given = data.get(source)
    if not isinstance(given, str) or not given:
        reader.problems.append(f"it does not name the folder of {source!r}")
        return None
    root = reader.folder.parent / given  # an absolute one stays as it is
    if not root.is_dir():
        reader.problems.append(f"the folder of {source!r}, {given}, is not there")
        return None
    return root


def _picture(
    reader: Reader, record: Any, where: str, roots: dict[str, Path | None], taken: list[str]
) -> BenchSubject | None:
    given = record if isinstance(record, dict) else {}
    source, picture, noun = (str(given.get(name) or "") for name in ("source", "picture", "noun"))
    if source not in SOURCES or not picture or not noun:
        reader.problems.append(f"{where} needs source ({' or '.join(SOURCES)}), picture and noun")
        return None
    root = roots[source]
    path = reader.member(picture, below=root, by=where) if root else None
    if path is None:
        return None
    if given.get("sha256") not in (None, sha256(path)):
        reader.problems.append(f"{where}: {picture} is another picture than when the manifest was written")
    name = unique_name(picture.rsplit(".", 1)[0], taken)
    return BenchSubject(name, reader.noun(noun, where), (path,), (), True, _noun(path.parent.name))


def _root(folder: Path, below: str) -> Path:
    return folder / below if (folder / below).is_dir() else folder


def _noun(name: str) -> str:
    bare = name.removeprefix("pet_").rstrip("0123456789")
    return bare if bare in LIVE_CLASSES else "animal"
