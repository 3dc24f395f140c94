"""Probes of what a sentence reads: `--adjust probe:keep=text` or `visual`. The evidence of Harmonizing for a conflict.

Harmonizing Visual and Textual Embeddings (arXiv 2403.14155), section on pose bias: with the visual embedding filled
with zeros pictures follow the text better, with nothing but the visual embedding they resemble the subject more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..conditioning import ADJUSTMENTS, Conditioning, Sentence
from ..errors import ConfigurationError
from .harmonizing_words import KeepClass, Visual, chosen_slot, image_tokens, visual_only, visual_positions


@dataclass(frozen=True)
class Probe:
    """Settings of the adjustment "probe".

    Args:
        keep: text: the visual words' rows are zeros, and a picture that is read beside the text is not read; visual:
            the sentence is replaced by the visual words alone, as the second branch of attention-swap reads them.
        visual, keep_class: as for attention-swap.
        slot: the placeholder that is meant, where there are several.
    """

    about_concepts: ClassVar[bool] = True

    keep: Literal["text", "visual"] = "text"
    visual: Visual = "null_text"
    keep_class: KeepClass = "auto"
    slot: str = ""

    def bound(self, sentence: Sentence) -> BoundProbe:
        """For one sentence.

        Raises:
            ConfigurationError: no concept, or nothing of it is in the sentence.
        """
        return BoundProbe(self, sentence)


class BoundProbe:
    """A probe of one sentence; a `Bound` adjustment."""

    def __init__(self, settings: Probe, sentence: Sentence) -> None:
        self.settled, self.sentence = settings, sentence
        self.slot = chosen_slot(sentence, settings.slot, "probe")
        self.report: dict[str, Any] = {"name": "probe", "says": f"probe: {settings.keep} alone"}

    def words(self) -> AbstractContextManager[None]:
        return nullcontext()

    @torch.no_grad()
    def __call__(self, conditioning: Conditioning) -> Conditioning:
        settings, sentence = self.settled, self.sentence
        if settings.keep == "visual":
            alone, _ = visual_only(sentence, self.slot, settings.visual, settings.keep_class)
            return conditioning.with_embeds(alone.embeds.expand_as(conditioning.embeds))
        pictures = image_tokens(sentence, self.slot)
        for picture in pictures.values():
            picture.scale = 0.0  # in unguided rows, too
        spans = sentence.filled.tokenize(sentence.base.tokenizer)
        concept = sentence.concepts[self.slot]
        visual = visual_positions(spans, {self.slot: concept}, self.slot)
        if not visual and not pictures:
            raise ConfigurationError(f"probe: the words of {concept.name!r} ({concept.word.text}) are not there")
        embeds = conditioning.embeds.clone()
        if not pictures:
            embeds[:, list(visual)] = 0
        return conditioning.with_embeds(embeds)


ADJUSTMENTS["probe"] = Probe
