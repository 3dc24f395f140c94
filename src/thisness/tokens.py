"""Which token is what: spans found through the offsets that fast tokenizers report.

Roles, one for each token:

    bos, eos       the marks that the tokenizer puts around the sentence; eos is the first one, not the padding
    subject        learned or rare words in a placeholder ("<rufus>", "<rufus_1>", "sks")
    noun           the class noun in a placeholder ("dog" of "<rufus> dog")
    article        a, an, the
    punctuation    tokens without any letter or digit
    context        the other words
    pad            up to the encoder's length
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import PromptError, raise_all

if TYPE_CHECKING:
    from .prompt import FilledSlot

Role = Literal["bos", "subject", "noun", "article", "punctuation", "context", "eos", "pad"]
ARTICLES = frozenset({"a", "an", "the"})
_LEARNED = re.compile(r"<[a-z0-9][a-z0-9_-]*>")


@dataclass(frozen=True)
class SlotTokens:
    """The tokens of one filled place, as positions in the sequence."""

    slot: str
    word: tuple[int, ...]  # what is not the noun: the learned or rare words
    noun: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return tuple(sorted(self.word + self.noun))


@dataclass(frozen=True)
class TokenSpans:
    """A tokenized sentence.

    Args:
        text: the sentence.
        ids: (L,) token ids, padded to the encoder's length.
        roles: (L,) the role of each token.
        offsets: (L,) first and last-but-one character of each token in `text`; (0, 0) for marks and padding.
        slots: the tokens of each filled place, in order; a placeholder that stands twice has two entries.
    """

    text: str
    ids: tuple[int, ...]
    roles: tuple[Role, ...]
    offsets: tuple[tuple[int, int], ...]
    slots: tuple[SlotTokens, ...] = ()

    @property
    def length(self) -> int:
        """Tokens without the padding."""
        return len(self.roles) - self.roles.count("pad")

    @property
    def end(self) -> int:
        """Position of the end mark (the first one), the last real token where the tokenizer sets none."""
        return self.roles.index("eos") if "eos" in self.roles else self.length - 1

    def where(self, *roles: Role) -> tuple[int, ...]:
        """Positions of all tokens of some roles."""
        return tuple(position for position, role in enumerate(self.roles) if role in roles)

    def of(self, slot: str) -> tuple[int, ...]:
        """Positions of all tokens of a placeholder, word and noun, wherever it stands.

        Raises:
            PromptError: there is no such placeholder in the sentence.
        """
        found = [position for entry in self.slots if entry.slot == slot for position in entry.all]
        if not found:
            raise PromptError(f"no placeholder {{{slot}}} in {self.text[:200]!r}")
        return tuple(found)

    def piece(self, position: int) -> str:
        """The characters that a token stands for; "" for marks and padding."""
        start, end = self.offsets[position]
        return self.text[start:end]


def tokenize(
    text: str, slots: Sequence[FilledSlot], tokenizer: Any, max_length: int | None = None, cut: bool = False
) -> TokenSpans:
    """Ids and roles of a filled sentence; see `FilledPrompt.tokenize`."""
    limit = max_length if max_length is not None else tokenizer.model_max_length
    if not 2 <= limit <= 100_000:  # transformers writes 10**30 where a tokenizer names no length
        raise ValueError(f"max_length is {limit}: pass the number of tokens that the encoder takes")
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    ids: list[int] = list(encoded["input_ids"])
    offsets = [_trimmed(text, *span) for span in encoded["offset_mapping"]]
    special = encoded["special_tokens_mask"]
    marks = [bool(mark) and start == end for mark, (start, end) in zip(special, offsets, strict=True)]
    _check_learned(text, slots, offsets)
    _check_known(text, ids, offsets, marks, tokenizer)
    if cut and len(ids) > limit:
        kept = [*range(limit - 1), len(ids) - 1]  # as transformers truncates: the end mark stays
        ids, offsets, marks = ([each[at] for at in kept] for each in (ids, offsets, marks))
    _check_length(text, ids, offsets, marks, limit)
    places = [_tokens_of(slot, offsets, marks) for slot in slots]
    roles = _roles(text, offsets, marks, places)
    padding = limit - len(ids)
    return TokenSpans(
        text=text,
        ids=(*ids, *[tokenizer.pad_token_id] * padding),
        roles=(*roles, *["pad"] * padding),  # type: ignore[arg-type]
        offsets=(*offsets, *[(0, 0)] * padding),
        slots=tuple(places),
    )


def placeholder_tokens(name: str, count: int = 1) -> tuple[str, ...]:
    """Names of new tokens for a concept: "<rufus>", "<rufus_1>", "<rufus_2>" (as diffusers names them)."""
    return (f"<{name}>", *(f"<{name}_{number}>" for number in range(1, count)))


def check_new_tokens(tokens: Iterable[str], tokenizer: Any) -> None:
    """Refuse new tokens that would be mistaken for others.

    Args:
        tokens: names that are to be added.
        tokenizer: that they are to be added to.

    Raises:
        PromptError: a name that is not of the form <a-z0-9_->, is a word of the vocabulary, was added already, or is
            there twice; all of it at once.
    """
    tokens = list(tokens)
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.get_added_vocab()
    problems = []
    for number, token in enumerate(tokens):
        if not _LEARNED.fullmatch(token):  # lower case, for the tokenizer lowers the text but not the name
            problems.append(f"the new token {token[:80]!r} must be of a-z, 0-9, '_', '-' in angle brackets, as <rufus>")
        elif token in tokens[:number]:
            problems.append(f"the new token {token!r} is there twice: give each concept a name of its own")
        elif token in added:
            problems.append(
                f"the token {token!r} is in use by another concept: learn one of them under another name (--name)"
            )
        elif token in vocabulary or token + "</w>" in vocabulary:
            problems.append(f"{token!r} is a word of the vocabulary already: choose another name")
    raise_all(problems, PromptError)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the white space that some tokenizers count to the word after it."""
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _check_known(text: str, ids: list[int], offsets: list[tuple[int, int]], marks: list[bool], tokenizer: Any) -> None:
    """No token of the sentence may be a mark: an unknown character, or a mark that somebody wrote out.

    An encoder of the CLIP kind takes its first end mark for the end of the sentence.
    """
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}  # the padding may be a word: "!"
    rows = zip(ids, offsets, marks, strict=True)
    wrong = dict.fromkeys(text[a:b] for i, (a, b), mark in rows if i in special and not mark and b > a)
    if wrong:
        shown = ", ".join(repr(piece[:40]) for piece in list(wrong)[:8])
        raise PromptError(f"the encoder of this base cannot read {shown} in {text[:200]!r}: write it another way")


def _check_learned(text: str, slots: Sequence[FilledSlot], offsets: list[tuple[int, int]]) -> None:
    """Each learned word must be one token; otherwise its letters would be read instead."""
    for slot in slots:
        for found in _LEARNED.finditer(text, slot.char_start, slot.char_end):
            if found.span() not in offsets:
                raise PromptError(
                    f"the tokenizer does not know the learned word {found[0]!r}: "
                    "attach the concept to the base before its prompt is encoded"
                )


def _check_length(text: str, ids: list[int], offsets: list[tuple[int, int]], marks: list[bool], limit: int) -> None:
    if len(ids) <= limit:
        return
    trailing = 1 if marks and marks[-1] else 0
    cut = text[offsets[limit - trailing][0] :]
    shown = cut if len(cut) <= 160 else cut[:157] + "..."
    raise PromptError(
        f"the prompt has {len(ids)} tokens but the encoder takes {limit}: {shown!r} would be cut; "
        f"shorten it by {len(ids) - limit}"
    )


def _tokens_of(slot: FilledSlot, offsets: list[tuple[int, int]], marks: list[bool]) -> SlotTokens:
    def within(start: int, end: int) -> set[int]:
        spans = enumerate(zip(offsets, marks, strict=True))
        return {at for at, ((a, b), mark) in spans if not mark and max(a, start) < min(b, end)}

    noun = within(slot.noun_start, slot.noun_end)
    return SlotTokens(slot.slot, tuple(sorted(within(slot.char_start, slot.char_end) - noun)), tuple(sorted(noun)))


def _roles(text: str, offsets: list[tuple[int, int]], marks: list[bool], places: Sequence[SlotTokens]) -> list[Role]:
    articles = {found.span() for found in re.finditer(r"\w+", text) if found[0].lower() in ARTICLES}
    content = [position for position, mark in enumerate(marks) if not mark]
    first = content[0] if content else 1  # an empty sentence: its first mark begins it
    roles: list[Role] = []
    for position, (span, mark) in enumerate(zip(offsets, marks, strict=True)):
        if mark:
            leads = position < first and (len(marks) > 1)
            roles.append("bos" if leads else "eos")
        elif span in articles:
            roles.append("article")
        elif not any(char.isalnum() for char in text[slice(*span)]):
            roles.append("punctuation")
        else:
            roles.append("context")
    for place in places:
        for position in place.word:
            roles[position] = "subject"
        for position in place.noun:
            roles[position] = "noun"
    return roles
