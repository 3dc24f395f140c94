"""Orchestration at work: `--adjust orchestrate`. The visual words of a sentence lose what they share with its text.

The projection acts after the text encoder, before keys and values are made of its rows. Rows of the text stay bit for
bit. A picture that is read as tokens of its own, beside the text's (IP-Adapter), loses it there: in the tokens, or in
the values (and keys) that each layer makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..conditioning import ADJUSTMENTS, Conditioning, Sentence, encode
from ..errors import ConfigurationError, nearest
from ..prompt import FilledPrompt, TokenSpans, clean_text
from .harmonizing import Reduce, gains, orthogonal, random_span, restored, retained, shrunk, span_of
from .harmonizing_words import (
    basis_positions,
    clauses,
    image_tokens,
    text_only,
    visual_positions,
    without_clauses,
    word_weights,
)

Scope = Literal["all", "first"]
Space = Literal["input", "value", "key_value"]
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"strength": 1.0, "reduce": "sum", "scope": "all"},
    "mean": {"strength": 1.0, "reduce": "mean", "scope": "all"},
    "robust": {"strength": 0.8, "reduce": "sum", "scope": "first"},
}
LITTLE = 0.1  # energy left below which it is worth a warning
MANY = 6  # visual tokens above which a report gives the range only


class Harmonized(NamedTuple):
    """Visual tokens (batch, M, width), the share of energy that each kept (batch, M), and the span's rank (batch,)."""

    tokens: Tensor
    retained: Tensor
    rank: Tensor


@dataclass(frozen=True)
class Orchestrate:
    """Settings of the adjustment "orchestrate". Those that are None are the preset's.

    Args:
        strength: 0 (nothing) to 1 (the paper): how much of the shared part is taken out.
        reduce: sum of the projections on the text's directions (the paper), or their mean.
        ridge: above 0: directions that few words have are spared, s^2 / (s^2 + ridge).
        weights: how much single words count, "red:0,guitar:0.5"; others 1. 0 leaves a word out, as one that tells what
            the subject looks like; between 0 and 1 needs ridge.
        scope: all copies of a word, or the first only.
        punctuation, eos: these rows, too; the end mark sums up the subject as well.
        extra_stop: further words to leave out, "my,of".
        basis: rows of the text from the sentence itself (contextual), where those after the subject have read it; from
            the sentence with the noun (text_only); or contrast: contextual, minus what stands in their places where the
            sentence ends before their clause. Beyond the paper.
        basis_text: another sentence for the basis, as a caption of the reference; the ablation of the paper.
        rtol: directions weaker than this share of the strongest are not counted.
        max_rank: directions at most; a quarter of the width by default.
        space: of a picture that is read beside the text: input: its tokens against rows of the text encoder; value: in
            each layer, values against values; key_value: keys against keys, too. Words have the text encoder's only.
        group: sentence: all words are one basis (the paper); clause: one basis for each clause, and a copy of the
            visual rows for each: the first in their place, the others in that of padding. For sentences with many
            instructions, whose common span leaves little. Beyond the paper.
        renorm: give the visual rows their lengths back.
        slot: the placeholder whose concept is meant; all by default.
        control: random: as many random directions; shrink: only the shorter length. For comparisons.
        preset: paper, mean or robust.
    """

    about_concepts: ClassVar[bool] = True

    strength: float | None = None
    reduce: Reduce | None = None
    ridge: float = 0.0
    weights: str = ""
    scope: Scope | None = None
    punctuation: bool = False
    eos: bool = False
    extra_stop: str = ""
    basis: Literal["contextual", "text_only", "contrast"] = "contextual"
    basis_text: str = ""
    rtol: float = 1e-3
    max_rank: int | None = None
    space: Space = "input"
    group: Literal["sentence", "clause"] = "sentence"
    renorm: bool = False
    slot: str = ""
    control: Literal["off", "random", "shrink"] = "off"
    preset: Literal["paper", "mean", "robust"] = "paper"

    def __post_init__(self) -> None:
        for name, value in PRESETS.get(self.preset, PRESETS["paper"]).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        wrong = []
        if not 0 <= self.factor <= 1:
            wrong.append(f"strength {self.strength} must be in 0 ... 1")
        if not 0 <= self.ridge <= 1e6:
            wrong.append(f"ridge {self.ridge} must be in 0 ... 1e6")
        if not 0 < self.rtol < 1:
            wrong.append(f"rtol {self.rtol} must be between 0 and 1")
        if self.max_rank is not None and self.max_rank < 1:
            wrong.append(f"max_rank {self.max_rank} must be 1 at least; strength=0 takes nothing out")
        weights, unread = _weights(self.weights)
        wrong += [f"weights: {each!r} is not of the form word:number" for each in unread]
        wrong += [
            f"weights: {word}:{value:g} must be in 0 ... 10" for word, value in weights.items() if not 0 <= value <= 10
        ]
        if not self.ridge and any(value not in (0.0, 1.0) for value in weights.values()):
            wrong.append("weights other than 0 and 1 change nothing without ridge: a projection ignores lengths")
        if self.group == "clause" and self.space != "input":
            wrong.append(f"group=clause and space={self.space}: copies of a picture's tokens are made in space=input")
        if self.basis == "contrast" and self.basis_text:
            wrong.append("basis=contrast is of the sentence itself: leave basis_text out")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def factor(self) -> float:
        """The strength as a number."""
        return float(self.strength if self.strength is not None else 1.0)

    def bound(self, sentence: Sentence) -> BoundOrchestrate:
        """For one sentence.

        Raises:
            ConfigurationError: nothing in the sentence is visual.
        """
        return BoundOrchestrate(self, sentence)

    @torch.no_grad()
    def tokens(
        self, visual: Tensor, text: Tensor, chosen: Tensor | None = None, weights: Tensor | None = None
    ) -> Harmonized:
        """Visual tokens without what they share with text, in whatever space both are in.

        For IP-Adapter: image tokens before to_k_ip and to_v_ip with rows of the text encoder; or, for each layer, V_ip
        with V_text (and K_ip with K_text), in full width before the heads are split.

        Args:
            visual: (batch, M, width).
            text: (batch, N, width).
            chosen: (batch, N) of bool, which rows are the basis; see `basis_positions`.
            weights: (batch, N).
        """
        span = span_of(text, chosen, weights, rtol=self.rtol, max_rank=self.max_rank)
        if self.control == "random":
            span = random_span(span)
        assert self.reduce is not None
        result = orthogonal(visual, span, gains(span, self.factor, self.reduce, self.ridge))
        left = retained(visual, result)
        if self.control == "shrink":
            result = shrunk(visual, result)
        return Harmonized(restored(visual, result) if self.renorm else result, left, span.rank)


ADJUSTMENTS["orchestrate"] = Orchestrate


Part = tuple[str, Tensor, int]
"""What was changed, the share of energy that each of its tokens kept, (M,), and the rank of the span."""


class BoundOrchestrate:
    """Orchestration of one sentence; a `Bound` adjustment."""

    def __init__(self, settings: Orchestrate, sentence: Sentence) -> None:
        self.settled, self.sentence = settings, sentence
        concepts = sentence.concepts
        if not concepts:
            raise ConfigurationError(
                "orchestrate acts on what is known of a subject, and no concept is given: give one (--concept FOLDER, "
                "or --subject PATH --method NAME)"
            )
        if settings.slot and settings.slot not in concepts:
            raise ConfigurationError(
                f"orchestrate: slot={settings.slot}: no such placeholder{nearest(settings.slot, concepts)}: "
                + ", ".join(concepts)
            )
        self.spans = sentence.base.tokenize(sentence.filled)[0]
        self.visual = visual_positions(self.spans, concepts, settings.slot)
        self.pictures = image_tokens(sentence, settings.slot)
        if settings.space != "input" and not self.pictures:
            raise ConfigurationError(
                f"orchestrate: space={settings.space} is for a picture that is read beside the text (ip-adapter), and "
                "here are words only: leave space=input"
            )
        if not self.visual and not self.pictures:
            said = ", ".join(f"{each.name!r} ({each.word.text})" for each in concepts.values())
            raise ConfigurationError(f"orchestrate: no word of {said} is in the sentence")
        self.report: dict[str, Any] = {"name": "orchestrate", "notes": []}

    def words(self) -> AbstractContextManager[None]:
        return nullcontext()

    @torch.no_grad()
    def __call__(self, conditioning: Conditioning) -> Conditioning:
        settings = self.settled
        text, spans = self._text(conditioning)
        positions = basis_positions(
            spans,
            self.sentence.concepts,
            punctuation=settings.punctuation,
            eos=settings.eos,
            stop=[word.strip() for word in settings.extra_stop.split(",") if word.strip()],
            scope=settings.scope or "all",
        )
        factors, missing = word_weights(spans, _weights(settings.weights)[0])
        positions = tuple(at for at in positions if factors[at] > 0)
        self.report["notes"] += [f"{word!r} is not in the sentence: its weight changes nothing" for word in missing]
        if not positions:
            self._say([], spans, [])
            return conditioning
        groups = self._room(clauses(spans, positions)) if settings.group == "clause" else [positions]
        embeds = text.embeds
        if settings.basis == "contrast":
            embeds = embeds - without_clauses(self.sentence.base, self.sentence, spans, positions).to(embeds)
        bases = [  # rows (batch, N, width) and weights (batch, N) of each group
            (
                embeds[:, list(group)].expand(len(conditioning), -1, -1),
                torch.tensor([[factors[at] for at in group]]).expand(len(conditioning), -1),
            )
            for group in groups
        ]
        done = [self._beside(slot, [(rows[:1], weights[:1]) for rows, weights in bases]) for slot in self.pictures]
        if self.visual:
            before = conditioning.embeds[:, list(self.visual)]  # (batch, M, width)
            made = [settings.tokens(before, rows, weights=weights) for rows, weights in bases]
            conditioning = self._with(conditioning, [each.tokens for each in made])
            left = torch.cat([each.retained[0] for each in made])
            done.insert(0, (self._words(), left, sum(int(each.rank[0]) for each in made)))
        self._say(groups, spans, done)
        return conditioning

    def _room(self, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Groups for whose copies there is padding; the last ones together where there is too little."""
        if not self.visual:
            return groups
        most = 1 + len(self.spans.where("pad")) // len(self.visual)
        if len(groups) > most:
            self.report["notes"].append(
                f"{len(groups)} clauses, but padding for {most}: the last {len(groups) - most + 1} are one"
            )
            groups = [*groups[: most - 1], tuple(at for group in groups[most - 1 :] for at in group)]
        return groups

    def _with(self, conditioning: Conditioning, copies: list[Tensor]) -> Conditioning:
        """The visual rows changed, (batch, M, width) each: the first in their place, the others from the end of the
        padding on."""
        embeds, mask = conditioning.embeds.clone(), conditioning.mask
        places, pad, count = list(self.visual), self.spans.where("pad"), len(self.visual)
        for number, copy in enumerate(copies):
            if number:
                places = list(pad[len(pad) - number * count : len(pad) - (number - 1) * count])
                if mask is not None:
                    mask = mask.clone()
                    mask[:, places] = 1
            embeds[:, places] = copy
        return replace(conditioning, embeds=embeds, mask=mask)

    def _words(self) -> str:
        return " ".join(self.spans.piece(at) for at in self.visual)

    def _beside(self, slot: str, bases: list[tuple[Tensor, Tensor]]) -> Part:
        """Change what the sentence reads of a picture beside it; bases: (1, N, width) and (1, N) each."""
        picture, settings = self.pictures[slot], self.settled
        name = f"{len(picture.tokens)} image tokens of {self.sentence.concepts[slot].name}"
        if settings.space == "input":
            made = [settings.tokens(picture.given[None], rows.to(picture.given), weights=w) for rows, w in bases]
            if settings.factor > 0:
                picture.change(torch.cat([each.tokens[0] for each in made]))
            return name, torch.cat([each.retained[0] for each in made]), sum(int(each.rank[0]) for each in made)
        ((rows, weights),) = bases
        changed, left, ranks = {}, [], []
        for site in picture.layers:
            attn: Any = self.sentence.base.denoiser.get_submodule(site)
            keys, values = (each[:1] for each in picture.keys_values(site))  # (1, M, heads * D)
            done = settings.tokens(values, attn.to_v(rows.to(values)), weights=weights)
            if settings.space == "key_value":
                keys = settings.tokens(keys, attn.to_k(rows.to(keys)), weights=weights).tokens
            changed[site] = (keys[0], done.tokens[0])
            left.append(done.retained[0])
            ranks.append(int(done.rank[0]))
        if settings.factor > 0:
            picture.change_values(changed)
        return name, torch.stack(left).mean(0), min(ranks)

    def _text(self, conditioning: Conditioning) -> tuple[Conditioning, TokenSpans]:
        """Rows that the basis is taken from, and what they are."""
        base, settings = self.sentence.base, self.settled
        if settings.basis_text:
            other = FilledPrompt.plain(clean_text(settings.basis_text, "orchestrate: basis_text"))
            return encode(base, other), other.tokenize(base.tokenizer)
        if settings.basis == "text_only":
            return text_only(base, self.sentence)
        return conditioning, self.spans

    def _say(self, groups: Sequence[tuple[int, ...]], spans: TokenSpans, done: list[Part]) -> None:
        report, notes = self.report, self.report["notes"]
        positions = [at for group in groups for at in group]
        report["visual"] = [self.spans.piece(at) for at in self.visual]
        for slot, picture in self.pictures.items():
            report["visual"] += [f"{self.sentence.concepts[slot].name}:{n}" for n in range(len(picture.tokens))]
        report["basis"] = [spans.piece(at) for at in positions]
        if self.settled.group == "clause":
            report["clauses"] = [[spans.piece(at) for at in group] for group in groups]
        if not done:
            report |= {"rank": 0, "retained": [1.0] * len(report["visual"])}
            notes.insert(0, "nothing to orthogonalise to: the sentence says nothing beside the subject; left as it is")
        else:
            report["rank"] = min(rank for _, _, rank in done)
            report["retained"] = [round(float(each), 4) for _, left, _ in done for each in left]
            if report["rank"] < len(positions):
                notes.append(f"{len(positions)} words span {report['rank']} directions")
            if min(report["retained"]) < LITTLE:
                notes.append(
                    f"warning: only {min(report['retained']):.0%} of a visual row is left: say less in one sentence, "
                    "or take strength=0.8 or max_rank"
                )
        line = f"orchestrate, strength {self.settled.factor:g}"
        if done:
            energy = ", ".join(f"{each:.2f}" for each in report["retained"])
            if len(report["retained"]) > MANY:
                energy = f"{min(report['retained']):.2f} to {max(report['retained']):.2f}"
            said = " and ".join(name for name, _, _ in done)
            out = " | ".join(" ".join(spans.piece(at) for at in group) for group in groups)
            line += f": {said} without {out}; energy left {energy}"
        report["says"] = "; ".join([line, *notes])


def _weights(text: str) -> tuple[dict[str, float], list[str]]:
    """Numbers by word from "red:0,guitar:0.5", and what cannot be read."""
    found: dict[str, float] = {}
    unread = []
    for pair in filter(None, (each.strip() for each in text.split(","))):
        word, colon, number = pair.rpartition(":")
        try:
            found[word.strip()] = float(number)
        except ValueError:
            colon = ""
        if not colon or not word.strip():
            unread.append(pair)
    return found, unread
