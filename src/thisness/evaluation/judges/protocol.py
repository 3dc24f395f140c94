"""What a judge is asked, and what counts as an answer: the protocol of DreamBench++ (arXiv 2406.16855).

Three turns: task, criteria, meaning of 0 to 4 and form of the answer; a prewritten restatement by the assistant; the
item. Two columns: `cp` (concept preservation: reference and picture) and `pf` (prompt following: sentence and
picture). The wording is ours (`prompts.json`); whoever has the published text gives it as a file of the same form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, raise_all
from ...files import read_json
from ..items import Item, Picture

COLUMNS = ("cp", "pf")
VARIANTS = ("full", "human-prior", "reasoning", "no-scale", "no-criteria")
"""full: as in the tables; the others change one thing each: human-prior (cp: what must not count), reasoning (cp also
reasons before its score), no-scale, no-criteria."""
TOP = 4
STYLE = "style"
PROMPTS = Path(__file__).with_name("prompts.json")

Part = str | Picture


@dataclass(frozen=True)
class Turn:
    """One message. role: "user" or "assistant"; parts: texts and pictures in order."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Question:
    """All that is sent for one rating."""

    column: str
    turns: tuple[Turn, ...]

    @property
    def pictures(self) -> list[Picture]:
        return [part for turn in self.turns for part in turn.parts if isinstance(part, Picture)]

    def content(self) -> Any:
        """JSON data with each picture replaced by its hash."""
        return [
            [turn.role, [{"picture": part.hash} if isinstance(part, Picture) else part for part in turn.parts]]
            for turn in self.turns
        ]


def content_hash(data: Any) -> str:
    """SHA-256 over JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()).hexdigest()


class Protocol:
    """Builds questions.

    Args:
        variant: one of `VARIANTS`.
        prompts: a file of the form of `prompts.json`; ours by default.

    Raises:
        ConfigurationError: an unknown variant.
        ArtefactError: the file is not readable; ConfigurationError: it has another form.
    """

    def __init__(self, variant: str = "full", prompts: str | Path | None = None) -> None:
        if variant not in VARIANTS:
            raise ConfigurationError(f"no variant {variant!r} of the protocol: expected one of {', '.join(VARIANTS)}")
        self.variant = variant
        self.words = read_json(prompts or PROMPTS)
        _check(self.words, str(prompts or PROMPTS.name))

    @property
    def identity(self) -> dict[str, Any]:
        words = self.words
        return {"version": words["version"], "wording": content_hash(words)[:16], "variant": self.variant}

    def question(
        self, column: str, item: Item, reference: Picture | None = None, *, directly: bool = False
    ) -> Question:
        """The three turns for one item.

        Args:
            column: "cp" (needs `reference`) or "pf".
            directly: ask for the score alone, also where the protocol reasons first.
        """
        kind = "pf" if column == "pf" else "cp-style" if item.category == STYLE else "cp-subject"
        words, headings, variant = self.words["kinds"][kind], self.words["headings"], self.variant
        reasons = not directly and (column == "pf" or variant == "reasoning")
        paragraphs = [self.words["intro"], words["task"]]
        if variant != "no-criteria":
            paragraphs.append(
                "\n".join([self.words["headings"]["criteria"], *(f"- {line}" for line in words["criteria"])])
            )
        if variant == "human-prior" and kind == "cp-subject":
            paragraphs.append(self.words["human-prior"])
        if variant != "no-scale":
            paragraphs.append("\n".join([headings["scale"], *words["scale"]]))
        paragraphs.append(self.words["answers"]["reasoned" if reasons else "score"])
        parts: list[Part] = []
        for piece in words["item"]:
            if piece == "{picture}":
                parts.append(item.picture)
            elif piece == "{reference}":
                if reference is None:
                    raise ValueError("concept preservation needs a reference")
                parts.append(reference)
            else:
                parts.append(piece.replace("{sentence}", item.sentence))
        turns = (
            Turn("user", ("\n\n".join(paragraphs),)),
            Turn("assistant", (words["plan"],)),
            Turn("user", tuple(parts)),
        )
        return Question(column, turns)


_AMOUNT = r"[-+]?\d+(?:[.,]\d+)?"
_SCORE = re.compile(
    rf"\bscore\b[\s*_`\"']*(?:[:=]|\bis\b)[\s*_`\"']*({_AMOUNT}(?:\s*(?:[-–/]|to|or|out of)\s*{_AMOUNT})?)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"([0-4])(?:\s*(?:/|out of)\s*4)?", re.IGNORECASE)


def parse_score(answer: str) -> int:
    """The one score of an answer: exactly one "Score: n" with a whole n from 0 to 4, or such a number alone.

    "Score: 3/4", "**Score:** 3." count; "Score: 3.5", "Score: 7", "Score: 3-4", two scores do not.

    Raises:
        ValueError: a clause that says what is wrong with the answer.
    """
    found = _SCORE.findall(answer)
    if len(found) > 1:
        raise ValueError(f"{len(found)} scores in the answer")
    number = _NUMBER.fullmatch(found[0] if found else answer.strip("*_`\"'. \n"))
    if number is None:
        raise ValueError("its score is not a whole number from 0 to 4" if found else "no score in the answer")
    return int(number[1])


def _check(words: Any, name: str) -> None:
    """Of the same form as our own file, by keys and types. Raises ConfigurationError with all that differs."""
    problems: list[str] = []

    def compare(given: Any, like: Any, where: str) -> None:
        if isinstance(like, Mapping):
            if not isinstance(given, Mapping):
                problems.append(f"{where or 'it'} must be an object")
                return
            for key in like:
                if key not in given:
                    problems.append(f"{where}{key} is missing")
                else:
                    compare(given[key], like[key], f"{where}{key}.")
        elif isinstance(like, list):
            if not isinstance(given, list) or not given or not all(isinstance(entry, str) for entry in given):
                problems.append(f"{where.rstrip('.')} must be a list of texts")
        elif not isinstance(given, str):
            problems.append(f"{where.rstrip('.')} must be text")

    compare(words, read_json(PROMPTS), "")
    if not problems:
        for kind, entry in words["kinds"].items():
            needed = ["{picture}"] + (["{reference}"] if kind.startswith("cp") else [])
            missing = [slot for slot in needed if slot not in entry["item"]]
            problems += [f"kinds.{kind}.item lacks {slot}" for slot in missing]
        if not any("{sentence}" in piece for piece in words["kinds"]["pf"]["item"]):
            problems.append("kinds.pf.item lacks {sentence}")
    raise_all(problems, ConfigurationError, name)
