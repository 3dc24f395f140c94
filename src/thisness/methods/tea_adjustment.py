"""TEA at work: `--adjust tea:alpha=0.2`. The arithmetic is in `tea`; here is which vectors it acts on, in a sentence.

Token level: the rows of a concept's learned word are turned toward the vocabulary's row of its noun, for as long as
sentences are encoded. Prompt level: the encoded sentence is turned toward the same sentence with the noun alone. No
weight is changed; the negative prompt is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..adapters import EMBEDDINGS
from ..adapters.lora import without_lora
from ..adapters.words import overridden_rows, text_parts
from ..concept import Concept
from ..conditioning import ADJUSTMENTS, Conditioning, Sentence, encode
from ..errors import ConfigurationError, PromptError, nearest, raise_all
from ..prompt import FilledPrompt, TokenSpans
from ..tokens import ARTICLES
from . import tea_weights
from .tea import NONE, Norm, Rotated, adjust_sequence, aligned, check_alpha, positional, rotate
from .tea_words import adjusted_rows, pieces_of, rows_of, word_tokens

Level = Literal["token", "prompt"]
PAPER_BETA = 1.5
TOKEN_LEVEL = ("detex",)  # beside all whose concepts are words only


@dataclass(frozen=True)
class Tea:
    """Settings of the adjustment "tea". Those that are None are the preset's.

    Args:
        alpha: rotation toward the noun, 0 (none) to 1 (all the way); "auto": found for each sentence by previews.
        gamma: norm of the result, (1-gamma)|word| + gamma|noun|.
        beta: norm of the result as a factor of the noun's instead; at token level only, unless `force`.
        norm: the rule by name: blend (gamma), ratio (beta), keep, anchor.
        level: token (the word's rows), prompt (the encoded sentence); auto: token for concepts that are words only and
            for detex, else prompt.
        align: prompt level: which positions meet, by what they are (span) or by number (positional).
        rows: prompt level: which positions are turned: all, those of the concept, content (without the beginning, the
            end and the padding), content-eos.
        anchor: prompt level: encode the noun's sentence with the concept's text encoder (tuned) or without its low-rank
            weights (base).
        multi_vector: token level: turn each row of a word, or all as one body by their mean direction.
        noun: what to turn toward; the concept's own noun by default.
        several: token level: what stands for a noun of several tokens: mean, first or last.
        lookup: token level: the noun's row as prompts read it (word), or by its bare name (raw), as the official code.
        slot: the placeholder whose concept is meant; all by default. Several adjustments may name one each.
        weights: equal, or context: each dimension by how much it matters to the context (`tea_weights`).
        preset: default; paper (positional, beta 1.5 at token level); code (positional, raw lookup).
        extrapolate: allow alpha outside of 0 ... 1.
        force: allow beta at prompt level, where it scales keys and values of every token.
        previews, preview_steps, preview_seeds, recover, identity, clip, identity_encoder: of alpha=auto; see
            `tea_auto.choose`.
    """

    about_concepts: ClassVar[bool] = True

    alpha: float | Literal["auto"] = 0.2
    gamma: float = 0.5
    beta: float | None = None
    norm: Norm | None = None
    level: Literal["auto", "token", "prompt"] = "auto"
    align: Literal["span", "positional"] | None = None
    rows: Literal["all", "concept", "content", "content-eos"] = "all"
    anchor: Literal["tuned", "base"] = "tuned"
    multi_vector: Literal["each", "mean"] = "each"
    noun: str = ""
    several: Literal["mean", "first", "last"] = "mean"
    lookup: Literal["word", "raw"] | None = None
    slot: str = ""
    weights: Literal["equal", "context"] = "equal"
    preset: Literal["default", "paper", "code"] = "default"
    extrapolate: bool = False
    force: bool = False
    previews: int = 6
    preview_steps: int = 8
    preview_seeds: int = 2
    recover: float = 0.8
    identity: float = 0.9
    clip: str = ""
    identity_encoder: str = ""

    def __post_init__(self) -> None:
        if self.alpha != "auto":
            check_alpha(self.alpha, self.extrapolate)
        wrong = []
        if self.beta is not None and not 0 < self.beta <= 100:
            wrong.append(f"beta {self.beta} must be above 0, at most 100: it is the norm as a factor of the noun's")
        if not -10 <= self.gamma <= 10:
            wrong.append(f"gamma {self.gamma} must be in -10 ... 10 (0 keeps the word's norm, 1 takes the noun's)")
        if self.norm == "ratio" and self.beta is None:
            wrong.append("norm=ratio needs beta")
        if self.beta is not None and self.norm not in (None, "ratio"):
            wrong.append(f"norm={self.norm} does not use beta: leave one out")
        if self.weights == "context" and self.multi_vector == "mean":
            wrong.append("weights=context turns each dimension by itself: it cannot go with multi_vector=mean")
        for name, least, most in (("previews", 1, 32), ("preview_steps", 1, 1000), ("preview_seeds", 1, 16)):
            if not least <= getattr(self, name) <= most:
                wrong.append(f"{name} {getattr(self, name)} must be in {least} ... {most}")
        wrong += [
            f"{n} {v} must be in 0 ... 1" for n in ("recover", "identity") if not 0 <= (v := getattr(self, n)) <= 1
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        preset = self.preset in ("paper", "code")
        object.__setattr__(self, "align", self.align or ("positional" if preset else "span"))
        object.__setattr__(self, "lookup", self.lookup or ("raw" if self.preset == "code" else "word"))

    def bound(self, sentence: Sentence) -> BoundTea:
        """For one sentence. With alpha=auto this makes previews.

        Raises:
            ConfigurationError: no concept, no noun, a level that the concept does not have; all of it at once.
            PromptError: a noun that the base cannot read, or that makes the sentence too long.
        """
        if self.alpha != "auto":
            return BoundTea(self, sentence)
        from .tea_auto import choose

        found = choose(self, sentence)
        bound = BoundTea(found.settled, sentence)
        bound.report["auto"] = found.report
        bound.note(found.says)
        return bound

    def rule(self, level: Level) -> dict[str, Any]:
        """Keywords of `rotate`: what the norm is, and the range of alpha."""
        beta = self.beta
        if beta is None and self.norm is None and self.preset == "paper" and level == "token":
            beta = PAPER_BETA
        return {"gamma": self.gamma, "beta": beta, "norm": self.norm, "extrapolate": self.extrapolate}


ADJUSTMENTS["tea"] = Tea


@dataclass(frozen=True)
class Place:
    """Where the word of a concept stands in a sentence. Characters, ends excluded."""

    slot: str
    concept: Concept
    start: int
    end: int
    noun: str
    level: Level


class BoundTea:
    """TEA for one sentence; a `Bound` adjustment."""

    def __init__(self, tea: Tea, sentence: Sentence) -> None:
        self.settled, self.sentence = tea, sentence
        self.places = find_places(tea, sentence)
        self.report: dict[str, Any] = {"name": "tea", "alpha": tea.alpha, "words": [], "notes": []}
        self.tokens: list[str] = []
        self.rows: dict[str, Tensor] = {}
        told: set[str] = set()
        for place in self.places:
            if place.level == "token" and place.slot not in told:
                self._add_word(place)
            told.add(place.slot)
        self.replaced = [place for place in self.places if place.level == "prompt"]
        self.target = self._target() if self.replaced else None
        self._say()

    def words(self) -> AbstractContextManager[None]:
        return overridden_rows(self.sentence.base, self.tokens, self.rows) if self.tokens else nullcontext()

    @torch.no_grad()
    def __call__(self, conditioning: Conditioning) -> Conditioning:
        """Prompt level; embeddings of token level come adjusted already.

        Raises:
            ConfigurationError: the sentence is encoded exactly as the noun's: there is nothing to adjust.
        """
        if self.target is None:
            return conditioning
        tea, base = self.settled, self.sentence.base
        target_text, target_spans, places = self.target
        with without_lora(*base.text_encoders) if tea.anchor == "base" else nullcontext():
            target = encode(base, target_text)
        source = base.tokenize(self.sentence.filled)[0]
        partners = (
            aligned(source, target_spans, places)
            if tea.align == "span"
            else positional(len(source.ids), len(target_spans.ids))
        )
        chosen = self._chosen(partners, source)
        met = [(i, other) for i, other in enumerate(partners) if other != NONE]
        same = all(
            torch.equal(conditioning.embeds[:, i], target.embeds[:1, j].expand_as(conditioning.embeds[:, i]))
            for i, j in met
        )
        if same:
            said = ", ".join(repr(place.concept.word.text) for place in self.replaced)
            raise ConfigurationError(
                f"tea has nothing to adjust at prompt level: the text encoder reads {said} exactly as "
                f"{', '.join(repr(place.noun) for place in self.replaced)}, so the concept is in other weights alone; "
                "leave tea out"
            )
        encoders = [int(encoder.config.hidden_size) for encoder in base.text_encoders]  # type: ignore[union-attr, arg-type]
        widths = encoders if sum(encoders) == conditioning.embeds.shape[-1] else []
        assert tea.alpha != "auto"
        weights = tea_weights.of_states(base, self.replaced[0].noun) if tea.weights == "context" else None
        rule = tea.rule("prompt")
        done = [
            adjust_sequence(row, target.embeds[0], chosen, tea.alpha, **rule, widths=widths, weights=weights)
            for row in conditioning.embeds
        ]
        adjusted = conditioning.with_embeds(torch.stack([each.vectors for each in done]))
        if conditioning.pooled is not None and target.pooled is not None and tea.rows == "all":
            adjusted = replace(adjusted, pooled=rotate(conditioning.pooled, target.pooled, tea.alpha, **rule).vectors)
        self._tell(done[0], len(met))
        return adjusted

    def _add_word(self, place: Place) -> None:
        tea, base = self.settled, self.sentence.base
        tokens = word_tokens(place.concept)
        weights = None
        if tea.weights == "context":
            weights = tea_weights.of_rows(base, self.sentence.filled, tokens)
        found = adjusted_rows(tea, base, tokens, place.noun, weights)
        self.tokens += tokens
        for name, done in found.items():
            before = self.rows.get(name)
            self.rows[name] = done.vectors if before is None else torch.cat([before, done.vectors])
        (name, first), *_ = found.items()
        norm = torch.linalg.vector_norm(rows_of(base, tokens)[name], dim=-1).mean()
        if int(first.zero.sum()):
            self.note(f"{int(first.zero.sum())} of its rows are zero and stay so")
        if int(first.opposite.sum()):
            self.note(f"{int(first.opposite.sum())} of its rows point away from the noun and keep their direction")
        if "tea" in place.concept.settings:
            self.note(f"{place.concept.name} was baked with TEA already, and is adjusted once more")
        own, _ = next(iter(text_parts(base).values()))
        pieces = pieces_of(base.parts[own], place.noun)
        if len(pieces) > 1 and tea.lookup == "word":
            self.note(f"{place.noun!r} is {len(pieces)} tokens ({', '.join(pieces)}): {_SEVERAL[tea.several]}")
        self.report["words"].append(
            {
                "word": " ".join(tokens),
                "noun": place.noun,
                "level": "token",
                "degrees": _round(math.degrees(float(first.angle.mean()))),
                "norm": _round(float(norm)),
                "norm_after": _round(float(first.radius.mean())),
            }
        )

    def _target(self) -> tuple[str, TokenSpans, list[tuple[tuple[int, int], tuple[int, int]]]]:
        """The sentence with nouns for the words of prompt level, and where they are in both."""
        tea, base, text = self.settled, self.sentence.base, self.sentence.filled.text
        if tea.beta is not None and abs(tea.beta - 1) > 0.1 and not tea.force:
            raise ConfigurationError(
                f"tea: beta={tea.beta:g} at prompt level scales keys and values of every token by {tea.beta:g}, the "
                "paper's code does not do it: leave beta out (gamma=0.5), or force=true"
            )
        pieces, places, done, length = [], [], 0, 0
        for place in self.replaced:
            pieces += [text[done : place.start], place.noun]
            begin = length + place.start - done
            length = begin + len(place.noun)
            places.append(((place.start, place.end), (begin, length)))
            done = place.end
            weights = [key for file, group in place.concept.tensors.items() if file != EMBEDDINGS for key in group]
            if not any(key.startswith("text_encoder") for key in weights):
                self.note(f"the text encoder is the base's own: only the words {place.concept.word.text!r} differ")
        target = "".join([*pieces, text[done:]])
        try:
            spans = base.tokenize(FilledPrompt.plain(target))
        except PromptError as error:
            raise PromptError(f"tea, the sentence with nouns for the learned words: {error}") from None
        return target, spans[0], places

    def _chosen(self, partners: Sequence[int], source: TokenSpans) -> list[int]:
        """Partners of the positions that are to be turned."""
        if self.settled.rows == "all":
            return list(partners)
        inside = {
            at
            for at in range(source.end)
            for place in self.replaced
            if source.roles[at] not in ("bos", "pad") and place.start <= source.offsets[at][0] < place.end
        }
        marks = {"content": ("bos", "pad", "eos"), "content-eos": ("bos", "pad")}.get(self.settled.rows, ())
        keep = inside if self.settled.rows == "concept" else {i for i, r in enumerate(source.roles) if r not in marks}
        return [other if at in keep else NONE for at, other in enumerate(partners)]

    def _tell(self, done: Rotated, met: int) -> None:
        turned = done.angle > 1e-4
        degrees = math.degrees(float(done.angle[turned].mean())) if bool(turned.any()) else 0.0
        self.report["words"] = [word for word in self.report["words"] if word["level"] == "token"]
        for place in self.replaced:
            self.report["words"].append(
                {
                    "word": place.concept.word.text,
                    "noun": place.noun,
                    "level": "prompt",
                    "degrees": _round(degrees),
                    "positions": int(turned.any(-1).sum()),
                    "of": met,
                }
            )
        if int(done.opposite.sum()):
            self.note(f"{int(done.opposite.sum())} positions point away from the noun's and keep their direction")
        self._say()

    def note(self, text: str) -> None:
        """Something more to tell."""
        if text not in self.report["notes"]:
            self.report["notes"].append(text)
        self._say()

    def _say(self) -> None:
        """The line for people."""
        parts = []
        for word in self.report["words"]:
            line = f"{word['word']} toward {word['noun']!r} ({word['level']} level): {word['degrees']:g} degrees apart"
            if word["level"] == "token":
                line += f", norm {word['norm']:g} -> {word['norm_after']:g}"
            else:
                line += f" on average at {word['positions']} of {word['of']} positions"
            parts.append(line)
        self.report["says"] = "; ".join(
            [f"tea, alpha {self.settled.alpha:g}: " + "; ".join(parts), *self.report["notes"]]
        )


_SEVERAL = {
    "mean": "the mean of their directions, and of their norms",
    "first": "the first one's row",
    "last": "the last one's row",
}


def find_places(tea: Tea, sentence: Sentence) -> list[Place]:
    """Where words are that TEA is to act on, in order.

    Raises:
        ConfigurationError: all that is wrong with them, at once.
    """
    if not sentence.concepts:
        raise ConfigurationError("tea adjusts what was learned, and no concept is given: give one (--concept FOLDER)")
    if tea.slot and tea.slot not in sentence.concepts:
        known = ", ".join(sentence.concepts)
        raise ConfigurationError(
            f"tea: slot={tea.slot}: no such placeholder{nearest(tea.slot, sentence.concepts)}: {known}"
        )
    places, problems = [], []
    for slot, concept in sentence.concepts.items():
        if tea.slot not in ("", slot):
            continue
        noun = tea.noun or concept.word.noun
        level = level_of(tea, concept)
        if not noun:
            problems.append(f"{concept.name!r} has no noun to turn its word toward: say one, tea:noun=dog")
        elif {piece.lower() for piece in noun.split()} <= ARTICLES:
            problems.append(f"the noun {noun!r} of {concept.name!r} is an article: say what it is, tea:noun=dog")
        if level == "token" and not (word_tokens(concept) and EMBEDDINGS in concept.tensors):
            problems.append(
                f"{concept.name!r} ({concept.method}) has no learned word, its word is {concept.word.text!r}: "
                "there are no rows to adjust at token level; use level=prompt"
            )
        spans = [(each.char_start, each.char_end) for each in sentence.filled.slots if each.slot == slot]
        spans = spans or _written_out(sentence.filled.text, concept)
        if not spans:
            problems.append(f"the words of {concept.name!r} ({concept.word.text}) are not in the sentence")
        places += [Place(slot, concept, start, end, noun, level) for start, end in spans]
    raise_all(problems, ConfigurationError, "tea")
    return sorted(places, key=lambda place: place.start)


def level_of(tea: Tea, concept: Concept) -> Level:
    """Rows where only words were learned; else the encoded sentence. Custom Diffusion is at prompt level as in the
    official code, though it has a row: its keys and values are tuned, too."""
    if tea.level != "auto":
        return tea.level
    return "token" if set(concept.tensors) == {EMBEDDINGS} or concept.method in TOKEN_LEVEL else "prompt"


def _written_out(text: str, concept: Concept) -> list[tuple[int, int]]:
    """Where a concept's word was typed: with its noun, else its tokens alone."""
    for words in (concept.word.text, " ".join(word_tokens(concept))):
        found, start = [], text.find(words) if words else -1
        while start >= 0:
            found.append((start, start + len(words)))
            start = text.find(words, start + len(words))
        if found:
            return found
    return []


def _round(value: float) -> float:
    return float(f"{value:.4g}")
