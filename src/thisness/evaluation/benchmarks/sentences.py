"""Sentences of benchmarks: checked, with the subject's place found, and what they say besides it."""

from __future__ import annotations

import re

from ...errors import PromptError
from ...prompt import Prompt

SLOT = re.compile(r"\{[a-z][a-z0-9_-]*\}")
_ARTICLE = re.compile(r"(?:^|\s)(?:an?|the|this|my|one)\s*$", re.IGNORECASE)
_LEADING_ARTICLE = re.compile(r"^(?:an?|the|this|my|one)\s+", re.IGNORECASE)
_PLAIN = re.compile(r"^(?:an?\s+|the\s+)?(?:photo|photograph|picture|image)\s+of$", re.IGNORECASE)
_PREPOSITION = re.compile(r"\s+(?:of|on|in|at|near|with|by|to|and|beside|behind|under|from)$", re.IGNORECASE)
_LINK = re.compile(r"^(?:is|are|and)\s+", re.IGNORECASE)


def context_of(text: str) -> str:
    """What a sentence says besides its subject.

    "a {subject} on the beach" -> "on the beach"; "a red {subject}" -> "red"; "a sculpture of the {subject}." -> "a
    sculpture"; "a photo of a {subject}" -> "". A sentence without a place is its own context; one with several places
    has none that a rule finds: "".
    """
    places = list(SLOT.finditer(text))
    if not places:
        return text.strip().rstrip(".").strip()
    if len(places) > 1:
        return ""
    before = _ARTICLE.sub("", text[: places[0].start()].strip()).strip()
    after = _LINK.sub("", text[places[0].end() :].strip(" .,;:")).strip()
    if _PLAIN.match(before):
        before = ""
    elif _PREPOSITION.search(before):
        before = _PREPOSITION.sub("", before)
    else:
        before = _LEADING_ARTICLE.sub("", before)
    comma = "," if before and text[places[0].end() :].startswith(",") else ""
    return " ".join(part for part in (before + comma, after) if part)


def with_place(text: str, noun: str) -> tuple[str, bool]:
    """The sentence with {subject} where its noun stands first, and whether it stands there word for word.

    In this order: the noun itself, its plural or singular, its last word; else it is put at the end.

    Source: DreamBench++ names the subject in its sentences by the subject's own words.
    """
    last = noun.split()[-1]
    for words, exact in (
        (noun, True),
        (f"{noun}s", False),
        (noun.removesuffix("s"), False),
        (last, False),
        (f"{last}s", False),
    ):
        found = re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text, re.IGNORECASE)
        if found:
            return f"{text[: found.start()]}{{subject}}{text[found.end() :]}", exact
    article = "an" if noun[0].lower() in "aeiou" else "a"
    return f"{text.rstrip(' .')}, with {article} {{subject}}", False


def checked_sentence(text: str, where: str, problems: list[str]) -> str:
    """The sentence in clean text, or "" with a problem."""
    try:
        return Prompt(text).text
    except PromptError as error:
        problems.append(f"{where}: {error}")
        return ""
