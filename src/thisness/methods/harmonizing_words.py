"""Which tokens of a sentence are visual and which are text, and the sentence of the visual part alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

import torch

from ..bases import Base
from ..concept import Concept
from ..conditioning import Conditioning, Sentence, encode
from ..errors import ConfigurationError, nearest
from ..prompt import FilledPrompt, Prompt, SlotWord, TokenSpans
from ..tokens import ARTICLES
from .zero_shot import zero_shot_methods

if TYPE_CHECKING:
    from ..attention.image_tokens import ImageTokens

CONJUNCTIONS = r"(?<!\w)(and|but|then|while)(?!\w)"
Visual = Literal["null_text", "zeros", "zeros_bos", "drop"]
KeepClass = Literal["auto", "yes", "no"]


def visual_positions(spans: TokenSpans, concepts: Mapping[str, Concept], slot: str = "") -> tuple[int, ...]:
    """Tokens of the learned or rare words, without nouns; those typed in the sentence count, too.

    Args:
        spans: of the sentence.
        concepts: by placeholder.
        slot: of one concept only.
    """
    found = {at for each in spans.slots if each.slot in concepts and slot in ("", each.slot) for at in each.word}
    typed = {token for name, each in concepts.items() if slot in ("", name) for token in each.tokens}
    found |= {at for at in range(spans.length) if spans.piece(at) in typed}
    return tuple(sorted(found))


def image_tokens(sentence: Sentence, slot: str = "") -> dict[str, ImageTokens]:
    """Pictures that are read as tokens beside the text (IP-Adapter), by placeholder; each once.

    Args:
        sentence: with its concepts attached to the base.
        slot: of one concept only.
    """
    found: dict[str, ImageTokens] = {}
    for name, brought in sentence.attached.items():
        known = any(each is brought.tokens for each in found.values())
        if brought.tokens is not None and slot in ("", name) and not known:
            found[name] = brought.tokens
    return found


def class_positions(spans: TokenSpans, nouns: Collection[str]) -> tuple[int, ...]:
    """Every token of every occurrence of a class noun, in a placeholder or not."""
    found = set(spans.where("noun"))
    for noun in nouns:
        for match in re.finditer(rf"(?<!\w){re.escape(noun)}(?!\w)", spans.text, re.IGNORECASE) if noun else ():
            found |= set(_within(spans, *match.span()))
    return tuple(sorted(found - set(spans.where("subject"))))


def basis_positions(
    spans: TokenSpans,
    concepts: Mapping[str, Concept],
    *,
    punctuation: bool = False,
    eos: bool = False,
    stop: Collection[str] = (),
    scope: Literal["all", "first"] = "all",
) -> tuple[int, ...]:
    """Tokens whose span is taken out of the visual ones: all words but articles and class nouns, of any concept.

    Args:
        spans: of the sentence, or of another that is to be the basis.
        concepts: by placeholder; their words and nouns are left out.
        punctuation, eos: these too. The end mark sums up the whole sentence, the subject included.
        stop: further words to leave out.
        scope: all copies of a word that stands several times, or the first only.
    """
    roles = {"context"} | ({"punctuation"} if punctuation else set()) | ({"eos"} if eos else set())
    out = set(visual_positions(spans, concepts)) | set(class_positions(spans, {e.word.noun for e in concepts.values()}))
    unwanted = {word.lower() for word in stop}
    for match in re.finditer(r"[^\W_]+", spans.text):
        if match[0].lower() in unwanted:
            out |= set(_within(spans, *match.span()))
    found, seen = [], set()
    for at, role in enumerate(spans.roles):
        if role in roles and at not in out and at <= spans.end and (scope == "all" or spans.ids[at] not in seen):
            found.append(at)
            seen.add(spans.ids[at])
    return tuple(found)


def clauses(spans: TokenSpans, positions: Collection[int]) -> list[tuple[int, ...]]:
    """Positions by clause: parted by punctuation marks, and before "and", "but", "then", "while".

    A mark right behind the subject parts nothing, so that "a photo of a <rex>, sleeping" is one clause.
    """
    found: list[list[int]] = [[]]
    begins = {match.start() for match in re.finditer(CONJUNCTIONS, spans.text, re.IGNORECASE)}
    for at, role in enumerate(spans.roles):
        mark = role == "punctuation" and spans.roles[at - 1] not in ("subject", "noun")
        if (mark or (role == "context" and spans.offsets[at][0] in begins)) and found[-1]:
            found.append([])
        if at in positions:
            found[-1].append(at)
    return [tuple(each) for each in found if each]


def ended_before(filled: FilledPrompt, character: int) -> FilledPrompt:
    """A sentence that stops before one of its characters."""
    text = filled.text[:character].rstrip()
    return FilledPrompt(text, text, tuple(each for each in filled.slots if each.char_end <= len(text)))


def without_clauses(base: Base, sentence: Sentence, spans: TokenSpans, positions: Collection[int]) -> torch.Tensor:
    """What stands in the places of words where the sentence ends before their clause, or before the part of it behind
    the subject: (1, length, width), other rows 0.

    The encoder is causal: what is left of a row when this is taken off is what its clause says, without what all rows
    share and without what was said before.
    """
    subject = {*spans.where("subject", "noun")}
    total: torch.Tensor | None = None
    for clause in clauses(spans, positions):
        parts: list[list[int]] = [[]]
        for at in clause:
            if parts[-1] and subject & set(range(parts[-1][-1], at)):
                parts.append([])
            parts[-1].append(at)
        for part in parts:
            start = len(spans.text) if spans.roles[part[0]] == "eos" else spans.offsets[part[0]][0]
            ended = encode(base, ended_before(sentence.filled, start)).embeds
            total = torch.zeros_like(ended) if total is None else total
            total[:, part] = ended[:, part]
    assert total is not None
    return total


def word_weights(spans: TokenSpans, weights: Mapping[str, float]) -> tuple[list[float], list[str]]:
    """A weight for each token, 1 for words that are not named; and the words that are not in the sentence."""
    found = [1.0] * len(spans.ids)
    missing = []
    for word, weight in weights.items():
        places = list(re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", spans.text, re.IGNORECASE))
        missing += [] if places else [word]
        for match in places:
            for at in _within(spans, *match.span()):
                found[at] = weight
    return found, missing


def chosen_slot(sentence: Sentence, slot: str, what: str) -> str:
    """The placeholder that is meant.

    Raises:
        ConfigurationError: no concept, no such placeholder, or several and none is named.
    """
    if not sentence.concepts:
        raise ConfigurationError(
            f"{what} needs a subject that the sentence reads as words of its own: give a concept "
            "(--concept FOLDER, or --subject PATH --method NAME)"
        )
    known = ", ".join(sentence.concepts)
    if slot and slot not in sentence.concepts:
        raise ConfigurationError(f"{what}: slot={slot}: no such placeholder{nearest(slot, sentence.concepts)}: {known}")
    if not slot and len(sentence.concepts) > 1:
        raise ConfigurationError(f"{what}: several concepts ({known}): say which one, {what}:slot=NAME")
    return slot or next(iter(sentence.concepts))


def visual_only(
    sentence: Sentence, slot: str, mode: Visual = "null_text", keep_class: KeepClass = "auto"
) -> tuple[Conditioning, tuple[int, ...]]:
    """What the second branch reads: the visual words, unchanged, and no text.

    Args:
        sentence: with its concepts attached to the base.
        slot: of the concept.
        mode: null_text: "a <rufus>" as a sentence; since the text encoder is causal, the words' rows are those of every
            sentence that begins so. zeros: the sentence's own encoding with all other rows 0; zeros_bos: but the first.
            drop: as null_text; all but the first row and the words is to be hidden from attention.
        keep_class: whether the noun stays: auto: where the concept's word has it (DreamBooth: an identifier alone says
            nothing), but not with words that were read of a picture (BLIP-Diffusion): these say all. A picture that
            is read beside the text (IP-Adapter) needs neither words nor noun: what is left of the text is that of no
            sentence.

    Returns:
        One row, and the positions that stay visible in it (for drop).

    Raises:
        ConfigurationError: the words of the concept are not in the sentence.
    """
    base, concept = sentence.base, sentence.concepts[slot]
    if image_tokens(sentence, slot):
        return _no_text(base, concept.word.noun if keep_class == "yes" else "", mode)
    spans = sentence.filled.tokenize(base.tokenizer)
    visual = visual_positions(spans, {slot: concept})
    if not visual:
        raise ConfigurationError(f"the words of {concept.name!r} ({concept.word.text}) are not in the sentence")
    keep_class = "no" if keep_class == "auto" and concept.method in zero_shot_methods() else keep_class
    if mode in ("zeros", "zeros_bos"):
        nouns = class_positions(spans, {concept.word.noun}) if keep_class != "no" else ()
        keep = {*visual, *nouns} | ({0} if mode == "zeros_bos" else set())
        whole = encode(base, sentence.filled)
        mask = torch.zeros(whole.embeds.shape[1], 1, dtype=whole.embeds.dtype, device=whole.embeds.device)
        mask[sorted(keep)] = 1
        return whole.with_embeds(whole.embeds * mask), tuple(sorted(keep))
    filled = Prompt(f"{article_before(spans, visual[0])} {{{slot}}}").fill({slot: _word(concept, keep_class)})
    own = filled.tokenize(base.tokenizer)
    return encode(base, filled), tuple(sorted({0, *own.of(slot)}))


def _no_text(base: Base, noun: str, mode: Visual) -> tuple[Conditioning, tuple[int, ...]]:
    """What the text encoder says of an empty sentence, or of "a NOUN"; zeros: but the noun, of nothing."""
    filled = FilledPrompt.plain(f"a {noun}" if noun else "")
    spans, whole = filled.tokenize(base.tokenizer), encode(base, filled)
    keep = set(class_positions(spans, {noun})) | (set() if mode == "zeros" else {0})
    if mode in ("zeros", "zeros_bos"):
        mask = torch.zeros(whole.embeds.shape[1], 1, dtype=whole.embeds.dtype, device=whole.embeds.device)
        mask[sorted(keep)] = 1
        whole = whole.with_embeds(whole.embeds * mask)
    return whole, tuple(sorted(keep))


def article_before(spans: TokenSpans, position: int) -> str:
    """The article before a token as it is written there, else "a"."""
    before = spans.text[: spans.offsets[position][0]].split()
    return before[-1] if before and before[-1].lower() in ARTICLES else "a"


def text_only(base: Base, sentence: Sentence) -> tuple[Conditioning, TokenSpans]:
    """The sentence with nouns for the learned words."""
    pieces, done = [], 0
    for place in sorted(sentence.filled.slots, key=lambda each: each.char_start):
        if place.slot in sentence.concepts:
            pieces += [sentence.filled.text[done : place.char_start], place.noun or "thing"]
            done = place.char_end
    filled = FilledPrompt.plain("".join([*pieces, sentence.filled.text[done:]]))
    return encode(base, filled), filled.tokenize(base.tokenizer)


def _word(concept: Concept, keep_class: KeepClass) -> SlotWord:
    word = concept.word
    has = re.search(rf"(?<![\w<]){re.escape(word.noun)}(?![\w>])\s*$", word.text) if word.noun else None
    if keep_class == "no" and has and word.text[: has.start()].strip():
        return SlotWord(word.text[: has.start()].strip(), word.noun)
    if keep_class == "yes" and not has and word.noun:
        return SlotWord(f"{word.text} {word.noun}", word.noun)
    return word


def _within(spans: TokenSpans, start: int, end: int) -> list[int]:
    """Tokens that stand for any of these characters."""
    return [at for at, (a, b) in enumerate(spans.offsets) if max(a, start) < min(b, end)]
