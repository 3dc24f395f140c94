"""CustomConcept101: 101 concepts, twenty sentences each, and 101 pairs of concepts (adobe-research/custom-diffusion).

    FOLDER (customconcept101 of the repository, with the pictures unpacked into it):
        dataset.json, dataset_multiconcept.json
        prompts/NAME.txt                        one sentence a line, {} or {0} and {1} where the concepts go
        benchmark_dataset/CATEGORY_NAME/*.jpg

Its own text score carries a factor of 2.5; ours does not.

Source: Kumari et al., Custom Diffusion (CVPR 2023).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import ArtefactError
from ...files import listed, read_json
from ..items import BenchSubject, Case
from .layout import Contents, Reader, counted, open_folder, unique_name
from .sentences import SLOT, checked_sentence, context_of

PUBLISHED = 101
LIVE = ("pet", "person")
FIELDS = ("class_prompt", "instance_data_dir", "prompt_filename")
SLOTS = ("subject", "second")
"""Placeholders of the two concepts of a pair."""


class _Copy:
    """A copy as it is read: its subjects by (folder, noun), its files of sentences once each."""

    def __init__(self, folder: Path) -> None:
        self.reader: Reader = open_folder(folder, "customconcept101")
        self.subjects: dict[tuple[str, str], BenchSubject] = {}
        self.sentences: dict[str, list[str]] = {}
        self.placeless: list[str] = []

    def records(self, name: str) -> list[Any]:
        path = self.reader.member(name)
        try:
            data = read_json(path) if path else []
        except ArtefactError as error:
            self.reader.problems.append(str(error))
            return []
        if path and (not isinstance(data, list) or not data):
            self.reader.problems.append(f"{name} is not a list of records")
            return []
        return data

    def valid(self, record: Any, where: str, fields: tuple[str, ...]) -> bool:
        lacking = [f for f in fields if not isinstance(record, dict) or not isinstance(record.get(f), str)]
        if lacking:
            self.reader.problems.append(f"{where} has no {', '.join(lacking)}")
        return not lacking

    def subject(self, record: dict[str, str], where: str, by: str) -> BenchSubject | None:
        """The subject of a record; the published pairs name one folder by two nouns, so both make it up."""
        key = (record["instance_data_dir"], record["class_prompt"])
        if key not in self.subjects:
            path = self.reader.member(key[0], folder=True, by=by)
            noun = self.reader.noun(key[1], where)
            if path is None:
                return None
            pictures, masks = self.reader.pictures(path)
            name = unique_name(path.name, [each.name for each in self.subjects.values()])
            category = path.name.split("_")[0]
            live = True if category in LIVE else None
            self.subjects[key] = BenchSubject(name, noun, pictures, masks, live, category)
        return self.subjects[key]

    def texts(self, name: str, by: str, slots: tuple[str, ...]) -> list[str]:
        """The sentences of a file; those without a place for each concept are left out, and counted."""
        if name not in self.sentences:
            path = self.reader.member(name, by=by)
            found = []
            for number, line in enumerate(self.reader.lines(path) if path else (), 1):
                if not line:
                    continue
                text = re.sub(r"\{([01]?)\}", lambda match: f"{{{slots[int(match[1] or 0)]}}}", line)
                if set(SLOT.findall(text)) != {f"{{{slot}}}" for slot in slots}:
                    self.placeless.append(f"{name}:{number}")
                elif text := checked_sentence(text, f"{name}, line {number}", self.reader.problems):
                    found.append(text)
            if path and not found:
                marks = "{}" if len(slots) == 1 else "{0} and {1}"
                self.reader.problems.append(f"{name} has no sentence with {marks}")
            self.sentences[name] = found
        return self.sentences[name]

    def contents(self, cases: list[Case], found: tuple[int, int, str]) -> Contents:
        self.reader.check("a copy of CustomConcept101")
        notes = counted([found])
        if self.placeless:
            notes += (f"left out, without a place for each concept: {listed(self.placeless, 4)}",)
        return Contents(tuple(self.subjects.values()), tuple(cases), notes)


def read(folder: Path) -> Contents:
    """Single concepts.

    Raises:
        ArtefactError: the layout differs; all problems in one line.
    """
    copy = _Copy(folder)
    cases: list[Case] = []
    taken: set[str] = set()
    for number, record in enumerate(copy.records("dataset.json"), 1):
        where = f"dataset.json, record {number}"
        if not copy.valid(record, where, FIELDS):
            continue
        subject = copy.subject(record, where, "dataset.json")
        texts = copy.texts(record["prompt_filename"], "dataset.json", SLOTS[:1])
        if subject is None or subject.name in taken:
            copy.reader.problems += [f"{where} repeats {record['instance_data_dir']}"] if subject else []
            continue
        taken.add(subject.name)
        cases += [
            Case(f"{subject.name}-{index:02d}", (("subject", subject.name),), text, "", context_of(text))
            for index, text in enumerate(texts)
        ]
    return copy.contents(cases, (len(copy.subjects), PUBLISHED, "concepts"))


def read_multi(folder: Path) -> Contents:
    """Pairs of concepts. The placeholders are {subject} and {second}.

    Raises:
        ArtefactError: the layout differs; all problems in one line.
    """
    copy = _Copy(folder)
    cases: list[Case] = []
    found = copy.records("dataset_multiconcept.json")
    for number, group in enumerate(found, 1):
        where = f"dataset_multiconcept.json, pair {number}"
        if not isinstance(group, list) or len(group) != 3:
            copy.reader.problems.append(f"{where} is not two concepts and their prompt_filename_compose")
            continue
        valid = [copy.valid(record, where, FIELDS[:2]) for record in group[:2]]
        if not all(valid) or not copy.valid(group[2], where, ("prompt_filename_compose",)):
            continue
        pair = [copy.subject(record, where, "dataset_multiconcept.json") for record in group[:2]]
        texts = copy.texts(group[2]["prompt_filename_compose"], "dataset_multiconcept.json", SLOTS)
        placed = tuple((slot, each.name) for slot, each in zip(SLOTS, pair, strict=True) if each is not None)
        cases += [
            Case(f"pair-{number:03d}-{index:02d}", placed, text, "two-concept", context_of(text))
            for index, text in enumerate(texts)
        ]
    return copy.contents(cases, (len(found), PUBLISHED, "pairs"))
