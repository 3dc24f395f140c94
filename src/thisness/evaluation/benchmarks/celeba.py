"""People: a folder for each identity, 17 sentences (the CelebA set of TEA).

    FOLDER:
        342/*.jpg ...     a folder for each identity, 10 to 15 pictures
        nouns.csv         optional: name,noun with "342,man"; "person" for those that it does not list

Source: TEA (test-time embedding adjustment), Table 4 and its section on reference pictures.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ...errors import nearest
from ..items import BenchSubject, Case
from .layout import Contents, Reader, counted, open_folder, unique_name
from .sentences import context_of

IDENTITIES = 10
NOUN = "person"


def sentences() -> list[str]:
    """The 17 sentences."""
    text = resources.files(__package__).joinpath("celeba_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def read(folder: Path) -> Contents:
    """Subjects and cases of a folder of identities.

    Raises:
        ArtefactError: the layout differs; all problems in one line.
    """
    reader = open_folder(folder, "identities")
    nouns = _nouns(reader)
    subjects: list[BenchSubject] = []
    for path in reader.folders(folder):
        pictures, masks = reader.pictures(path)
        name = unique_name(path.name, [each.name for each in subjects])
        subjects.append(BenchSubject(name, nouns.pop(path.name, NOUN), pictures, masks, True, "person"))
    known = [path.name for path in reader.folders(folder)]
    reader.problems += [f"nouns.csv: there is no folder {name!r}{nearest(name, known)}" for name in nouns]
    if not subjects:
        reader.problems.append("there is no folder in it: expected one for each identity")
    reader.check("a folder of identities")
    cases = [
        Case(f"{subject.name}-{number:02d}", (("subject", subject.name),), text, "", context_of(text))
        for subject in subjects
        for number, text in enumerate(sentences())
    ]
    return Contents(tuple(subjects), tuple(cases), counted([(len(subjects), IDENTITIES, "identities")]))


def _nouns(reader: Reader) -> dict[str, str]:
    if not (reader.folder / "nouns.csv").exists():
        return {}
    path = reader.member("nouns.csv")
    rows = reader.table(path, ("name", "noun")) if path else []
    return {row["name"]: reader.noun(row.get("noun", ""), f"nouns.csv, {row['name']!r}") for row in rows}
