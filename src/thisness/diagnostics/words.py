"""Which tokens of a sentence a word is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PromptError, nearest
from ..tokens import TokenSpans


@dataclass(frozen=True)
class Word:
    """A word of a sentence, or several in a row.

    Args:
        text: as in the sentence.
        positions: of all its tokens; those of every place where it stands.
        of_subject: whether they belong to a placeholder.
    """

    text: str
    positions: tuple[int, ...]
    of_subject: bool = False


def words_of(spans: TokenSpans) -> tuple[Word, ...]:
    """The words that a picture is made of, in the order of the sentence: for each placeholder its learned words and its
    noun, and every context word; no articles, no punctuation. A word that stands twice is there once."""
    pieces: dict[str, tuple[bool, list[int]]] = {}
    for start, end in _spans(spans.text):
        positions = _within(spans, start, end)
        roles = {spans.roles[position] for position in positions}
        if roles & {"subject", "noun", "context"}:
            entry = pieces.setdefault(spans.text[start:end], (bool(roles & {"subject", "noun"}), []))
            entry[1].extend(positions)
    return tuple(Word(text, tuple(sorted(set(at))), of_subject) for text, (of_subject, at) in pieces.items())


def choose_words(spans: TokenSpans, wanted: Sequence[str]) -> tuple[Word, ...]:
    """Words by what a person wrote.

    Args:
        spans: of the sentence.
        wanted: words or phrases of it ("sleeping", "living room"), upper or lower case, or a placeholder in braces
            ("{subject}": all that stands in its place); all of `words_of` where none are given.

    Raises:
        PromptError: some are not in the sentence: all of them, with the words that are.
    """
    if not wanted:
        return words_of(spans)
    found, missing = [], []
    for text in wanted:
        text = " ".join(text.split())
        if text.startswith("{") and text.endswith("}") and any(entry.slot == text[1:-1] for entry in spans.slots):
            positions = spans.of(text[1:-1])
            found.append(Word(_text_of(spans, text[1:-1]), positions, True))
            continue
        places = re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", spans.text, re.IGNORECASE) if text else ()
        positions = tuple(sorted({at for place in places for at in _within(spans, *place.span())}))
        if positions:
            subject = set(positions) <= {at for entry in spans.slots for at in entry.all}
            found.append(Word(text, positions, subject))
        else:
            missing.append(text)
    if missing:
        known = list(dict.fromkeys(spans.text[start:end] for start, end in _spans(spans.text)))
        told = ", ".join(f"{text!r}{nearest(text, known)}" for text in missing)
        raise PromptError(f"{told}: not in the sentence, whose words are {', '.join(known)}")
    unique = {word.positions: word for word in found}
    return tuple(unique.values())


def subject_positions(spans: TokenSpans) -> tuple[int, ...]:
    """All tokens of the first placeholder, wherever it stands; () without one."""
    return spans.of(spans.slots[0].slot) if spans.slots else ()


def _spans(text: str) -> list[tuple[int, int]]:
    """Words, learned ones in angle brackets whole, with inner hyphens and apostrophes."""
    return [found.span() for found in re.finditer(r"<[^<>\s]+>|\w+(?:[-'’]\w+)*", text)]


def _within(spans: TokenSpans, start: int, end: int) -> list[int]:
    """Tokens that share a character with a part of the sentence."""
    marks = ("bos", "eos", "pad")
    return [
        position
        for position, ((a, b), role) in enumerate(zip(spans.offsets, spans.roles, strict=True))
        if role not in marks and max(a, start) < min(b, end)
    ]


def _text_of(spans: TokenSpans, slot: str) -> str:
    entry = next(entry for entry in spans.slots if entry.slot == slot)
    first, last = min(entry.all), max(entry.all)
    return spans.text[spans.offsets[first][0] : spans.offsets[last][1]]
