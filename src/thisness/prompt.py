"""Sentences with places for subjects, and which of an encoder's tokens each place became.

Prompt("a {subject} sleeping")  --fill-->  FilledPrompt("a <rufus> dog sleeping")  --tokenize-->  TokenSpans
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .errors import PromptError, nearest, raise_all
from .tokens import SlotTokens, TokenSpans, check_new_tokens, placeholder_tokens, tokenize

__all__ = [
    "FilledPrompt",
    "FilledSlot",
    "Prompt",
    "SlotTokens",
    "SlotWord",
    "TokenSpans",
    "check_new_tokens",
    "clean_text",
    "placeholder_tokens",
]

MAX_CHARACTERS = 10_000  # far over any encoder's limit; the tokens are counted later
_SLOT = re.compile(r"\{([a-z][a-z0-9_-]{0,63})\}")
_BRACED = re.compile(r"\{[^{}]*\}|[{}]")


@dataclass(frozen=True)
class SlotWord:
    """What takes the place of a placeholder.

    Args:
        text: the words themselves: "<rufus> dog", "<rufus>", "sks dog", "dog".
        noun: the class noun, "" where there is none. It need not be part of the text.
    """

    text: str
    noun: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean_text(self.text, "the word of a subject"))
        object.__setattr__(self, "noun", clean_text(self.noun, "the noun of a subject"))
        if not self.text:
            raise PromptError("the word of a subject is empty: give at least its class noun")
        if braced := _BRACED.search(self.text + self.noun):
            raise PromptError(f"{braced[0]!r} in the word of a subject: braces mark placeholders in prompts only")


class FilledSlot(NamedTuple):
    """One place that was filled. Positions are characters of the filled text, ends excluded."""

    slot: str
    char_start: int
    char_end: int
    noun_start: int  # noun_start == noun_end where the text does not contain the noun
    noun_end: int
    noun: str = ""


@dataclass(frozen=True)
class Prompt:
    """A sentence with none, one or several placeholders: "a {subject} sleeping", "{rex} beside a {mug}".

    The text is brought to Unicode's form NFC; runs of white space become one space, invisible marks vanish.

    Args:
        text: the sentence. Names of placeholders: a-z, then a-z, 0-9, "_", "-"; one may stand in several places.

    Raises:
        PromptError: empty, a control character, a brace that is no placeholder, or one that touches a letter; all of
            it at once.
    """

    text: str

    def __post_init__(self) -> None:
        text = clean_text(self.text, "the prompt")
        if not text:
            raise PromptError('the prompt is empty: write what the picture shows, for instance "a {subject} sleeping"')
        problems = []
        for found in _BRACED.finditer(text):
            before, after = text[: found.start()][-1:], text[found.end() :][:1]
            if not _SLOT.fullmatch(found[0]):
                inner = re.sub(r"[^a-z0-9_-]+", "", found[0].lower()).lstrip("0123456789_-") or "subject"
                problems.append(f"{found[0]!r} is not a placeholder (write {{{inner}}}, or no braces)")
            elif before.isalnum() or after.isalnum() or unicodedata.category(after or " ").startswith("M"):
                problems.append(f"{(before + found[0] + after)!r}: put a space between the placeholder and the letter")
        raise_all(problems, PromptError, f"the prompt {text[:200]!r}")
        object.__setattr__(self, "text", text)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the placeholders in order of appearance, each once."""
        return tuple(dict.fromkeys(_SLOT.findall(self.text)))

    def fill(self, words: Mapping[str, SlotWord]) -> FilledPrompt:
        """Put words in the place of all placeholders.

        Args:
            words: one for each name in `slots`.

        Raises:
            PromptError: a placeholder without a word, a word without a placeholder; all of it at once.
        """
        problems = [f"unknown placeholder {{{n}}}{nearest(n, words)}" for n in self.slots if n not in words]
        unused = [f"{{{name}}}" for name in words if name not in self.slots]
        if words and not self.slots:
            problems = [f"no placeholder: write {' and '.join(unused)} where the subject goes"]
        elif unused and not problems:
            problems = [f"{' and '.join(unused)} is given but not in the sentence: write it where the subject goes"]
        elif problems:
            known = ", ".join(f"{{{name}}}" for name in words) or "none: give a subject or a concept"
            problems.append(f"known here: {known}")
        raise_all(["; ".join(problems)] if problems else [], PromptError, f"the prompt {self.text[:200]!r}")

        parts: list[str] = []
        filled: list[FilledSlot] = []
        done = length = 0
        for found in _SLOT.finditer(self.text):
            word = words[found[1]]
            parts += [self.text[done : found.start()], word.text]
            start = length + found.start() - done
            length = start + len(word.text)
            done = found.end()
            filled.append(FilledSlot(found[1], start, length, *_noun_within(word, start), word.noun))
        return FilledPrompt("".join([*parts, self.text[done:]]), self.text, tuple(filled))


@dataclass(frozen=True)
class FilledPrompt:
    """A sentence as the encoder gets it, and where in it the subjects are.

    Args:
        text: the sentence.
        template: the sentence with its placeholders.
        slots: the places that were filled, in order.
    """

    text: str
    template: str
    slots: tuple[FilledSlot, ...] = ()

    @classmethod
    def plain(cls, text: str) -> FilledPrompt:
        """A sentence that has no placeholders, taken as it is; may be empty (a negative prompt)."""
        return cls(text, text)

    def tokenize(self, tokenizer, max_length: int | None = None, *, cut: bool = False) -> TokenSpans:
        """Ids, and the role of each token.

        Args:
            tokenizer: a tokenizer of transformers, of the CLIP kind.
            max_length: tokens in all, with those at the beginning, the end and the padding; the tokenizer's by default.
            cut: leave out what is too long instead of refusing it; for an encoder that only sums up the sentence.

        Raises:
            PromptError: too long (the part that would be cut is shown), characters or learned words that the
                tokenizer does not know.
        """
        return tokenize(self.text, self.slots, tokenizer, max_length, cut)


def clean_text(text: str, what: str) -> str:
    """Text in NFC, white space as single spaces, without invisible marks.

    Raises:
        PromptError: control characters, lone surrogates, or over 10,000 characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise PromptError(f"{what} has {len(text)} characters: at most {MAX_CHARACTERS}")
    text = " ".join(unicodedata.normalize("NFC", text).split())
    joiners = "\u200c\u200d"  # they belong to the spelling of some languages and to emoji
    text = "".join(char for char in text if char in joiners or unicodedata.category(char) != "Cf")
    wrong = sorted({f"U+{ord(char):04X}" for char in text if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn")})
    if wrong:
        raise PromptError(f"{what} holds characters that are not text ({', '.join(wrong)}): remove them")
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _noun_within(word: SlotWord, start: int) -> tuple[int, int]:
    """Where in the filled text the noun of a word stands: its last occurrence as a whole word, else an empty span.

    A learned word may have the noun for its name (<mug>): that is not the noun.
    """
    learned_or_noun = rf"<[^<>\s]*>|(?<!\w)({re.escape(word.noun)})(?!\w)"
    found = [match for match in re.finditer(learned_or_noun, word.text, re.IGNORECASE) if word.noun and match[1]]
    end = start + len(word.text)
    return (start + found[-1].start(), start + found[-1].end()) if found else (end, end)
