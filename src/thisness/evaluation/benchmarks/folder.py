"""Anybody's own subjects: a folder for each, a table of their nouns, a file of sentences.

FOLDER:
    subjects.csv             name,noun[,live][,category]     rufus,dog,yes,pets
    prompts.txt              one sentence a line: "a {subject} sleeping", or with its family before a bar:
                             "pose | a {subject} sleeping"; "#" begins a comment; without {subject}: drift
    rufus/*.jpg, *_mask.png  pictures, and masks beside them where there are any
    rufus/prompts.txt        optional: sentences of this subject alone, instead
"""

from __future__ import annotations

from pathlib import Path

from ...errors import nearest
from ..items import BenchSubject, Case
from .layout import Contents, Reader, open_folder, unique_name
from .sentences import SLOT, checked_sentence, context_of

YES_NO = {"": None, "yes": True, "no": False}


def read(folder: Path) -> Contents:
    """Subjects and cases.

    Raises:
        ArtefactError: the layout differs; all problems in one line.
    """
    reader = open_folder(folder, "subjects")
    table = reader.member("subjects.csv")
    rows = reader.table(table, ("name", "noun")) if table else []
    common_file = reader.member("prompts.txt")
    common = _sentences(reader, common_file) if common_file else []
    subjects: list[BenchSubject] = []
    cases: list[Case] = []
    for row in rows:
        where = f"subjects.csv, {row['name']!r}"
        path = reader.member(row["name"], folder=True, by="subjects.csv")
        noun = reader.noun(row.get("noun", ""), where)
        live = row.get("live", "").lower()
        if live not in YES_NO:
            reader.problems.append(f"{where}: live is {live!r}: write yes, no or nothing")
        if path is None:
            continue
        pictures, masks = reader.pictures(path)
        name = unique_name(path.name, [each.name for each in subjects])
        subjects.append(BenchSubject(name, noun, pictures, masks, YES_NO.get(live), row.get("category", "")))
        own = path / "prompts.txt"
        given = _sentences(reader, own, drift=False) if own.is_file() and not own.is_symlink() else common
        cases += [
            Case(f"{name}-{number:02d}", (("subject", name),), text, family, context_of(text))
            for number, (family, text) in enumerate(given)
            if SLOT.search(text)
        ]
    cases += [
        Case(f"drift-{number:02d}", (), text, family or "drift", context_of(text))
        for number, (family, text) in enumerate(common)
        if not SLOT.search(text)
    ]
    listed_names = [row["name"] for row in rows]
    if rows:
        reader.problems += [
            f"the folder {path.name} is not in subjects.csv{nearest(path.name, listed_names)}"
            for path in reader.folders(folder)
            if path.name not in listed_names
        ]
    elif table and not reader.problems:
        reader.problems.append("subjects.csv lists no subjects")
    reader.check("a folder of subjects")
    return Contents(tuple(subjects), tuple(cases))


def _sentences(reader: Reader, path: Path, drift: bool = True) -> list[tuple[str, str]]:
    """(family, sentence) of each line."""
    found = []
    for number, line in enumerate(reader.lines(path), 1):
        if not line or line.startswith("#"):
            continue
        where = f"{reader.short(path)}, line {number}"
        family, bar, sentence = line.partition("|")
        text = checked_sentence(sentence if bar else line, where, reader.problems)
        if others := [slot for slot in SLOT.findall(text) if slot != "{subject}"]:
            reader.problems.append(f"{where}: {others[0]} is not known here: write {{subject}}")
        elif text and not drift and not SLOT.search(text):
            reader.problems.append(f"{where}: a subject's own sentence needs {{subject}}")
        elif text:
            found.append((family.strip() if bar else "", text))
    if not found:
        reader.problems.append(f"{reader.short(path)} has no sentences that can be used")
    return found
