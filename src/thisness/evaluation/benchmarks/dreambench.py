"""DreamBench: 30 subjects, 158 pictures, 25 sentences each (google/dreambooth).

    FOLDER or FOLDER/dataset:
        prompts_and_classes.txt        classes, and one list of sentences for objects and one for live subjects
        backpack/00.jpg ...            a folder for each subject

Source: Ruiz et al., DreamBooth (CVPR 2023), section 4.1.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..items import BenchSubject, Case
from .layout import Contents, Reader, counted, open_folder, unique_name
from .sentences import checked_sentence, context_of

PROMPTS = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")  # the file does not say which subjects are live; its README does: the cats and dogs
PUBLISHED = (30, 158, 25)  # subjects, pictures, sentences of each list
_SENTENCE = re.compile(r"""^(['"])(.*)\1\s*\.format\(""")


def read(folder: Path) -> Contents:
    """Subjects and cases of a copy.

    Raises:
        ArtefactError: the layout differs; all problems in one line.
    """
    reader = open_folder(folder, "google/dreambooth")
    root = folder / "dataset" if (folder / "dataset").is_dir() else folder
    classes, lists = _prompts_and_classes(reader, root)
    subjects: list[BenchSubject] = []
    for listed_name, noun in classes.items():
        path = reader.member(listed_name, below=root, folder=True, by=PROMPTS)
        if path is None:
            continue
        pictures, masks = reader.pictures(path)
        live = noun in LIVE_CLASSES
        name = unique_name(listed_name, [each.name for each in subjects])
        subjects.append(BenchSubject(name, noun, pictures, masks, live, "live" if live else "object"))
    if classes:
        unlisted = [each.name for each in reader.folders(root) if each.name not in classes]
        reader.problems += [f"the folder {name} has no class in {PROMPTS}" for name in unlisted]
    reader.check("a copy of DreamBench")
    cases = [
        Case(f"{subject.name}-{number:02d}", (("subject", subject.name),), text, _family(text), context_of(text))
        for subject in subjects
        for number, text in enumerate(lists[bool(subject.live)])
    ]
    pictures_in_all = sum(len(subject.pictures) for subject in subjects)
    notes = counted(
        [
            (len(subjects), PUBLISHED[0], "subjects"),
            (pictures_in_all, PUBLISHED[1], "pictures"),
            (len(lists[False]), PUBLISHED[2], "sentences for objects"),
            (len(lists[True]), PUBLISHED[2], "sentences for live subjects"),
        ]
    )
    return Contents(tuple(subjects), tuple(cases), notes)


def _prompts_and_classes(reader: Reader, root: Path) -> tuple[dict[str, str], dict[bool, list[str]]]:
    """Class by subject; sentences of objects (False) and of live subjects (True)."""
    classes: dict[str, str] = {}
    lists: dict[bool, list[str]] = {False: [], True: []}
    path = reader.member(PROMPTS, below=root)
    if path is None:
        return classes, lists
    section = ""
    for number, line in enumerate(reader.lines(path), 1):
        where = f"{PROMPTS}, line {number}"
        if line in ("Classes", "Object Prompts", "Live Subject Prompts", "Prompts"):
            section = line
        elif section == "Classes" and "," in line and line != "subject_name,class":
            name, noun = (part.strip() for part in line.split(",", 1))
            if name in classes:
                reader.problems.append(f"{where}: {name!r} has a class already")
            classes[name] = reader.noun(noun, where)
        elif section.endswith("Prompts") and (found := _SENTENCE.match(line)):
            text = re.sub(r"\{0\}\s*\{1\}", "{subject}", found[2].replace("\\'", "'"))
            if "{subject}" not in text:
                reader.problems.append(f"{where}: expected {{0}} {{1}} where token and class go")
            elif text := checked_sentence(text, where, reader.problems):
                lists[section.startswith("Live")].append(text)
    if not classes:
        reader.problems.append(f"{PROMPTS} lists no subjects under 'Classes' as 'subject_name,class'")
    for live, heading in ((False, "Object Prompts"), (True, "Live Subject Prompts")):
        if not lists[live]:
            reader.problems.append(f"{PROMPTS} has no sentences under {heading!r}")
    return classes, lists


def _family(text: str) -> str:
    """background, accessory (what is worn) or property ("a red ..."), by its words."""
    if re.search(r"\b(?:wearing|outfit)\b", text):
        return "accessory"
    return "property" if text.endswith("{subject}") else "background"
