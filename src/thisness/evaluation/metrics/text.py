"""The picture against the sentence: CLIP-T.

    value = cos(f(x), g(sentence))

Raw: not times 100, not times 2.5, not cut at 0. The placeholder is replaced by the class noun before this module sees
the sentence; a sentence over the encoder's limit is refused, not cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import ConfigurationError, UserError
from ..items import Item
from .base import EncoderMetric, Tools, WithEncoder, cosine, register_metric, unit
from .views import seen


@dataclass(frozen=True)
class ClipTSettings(WithEncoder):
    """Beside the encoder's.

    Args:
        part: of the sentence: "full", "concept" ("a dog"), "context" (all but the subject).
    """

    encoder: str = "clip-b32"
    part: Literal["full", "concept", "context"] = "full"


@register_metric("clip-t")
class ClipT(EncoderMetric):
    """Parts: TEA. None where the case has no such part."""

    Settings = ClipTSettings
    formula = "cos(f(made), g(text))"

    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        super().__init__(name, settings, tools)
        if not self.encoder.has_text:
            raise UserError(
                f"{name}: {self.encoder.name} has no text side: give an encoder that compares pictures with text, "
                "as clip-b32, clip-l14 or playroom-clip"
            )
        if self.encoder.pooling != "projected":
            raise ConfigurationError(
                f"{name}: pooling {self.encoder.pooling!r} has no counterpart in text: leave it out"
            )
        self.identity["text"] = "placeholder replaced by the class noun; over-long text refused"

    def check(self, sentences: Sequence[str]) -> None:
        self.encoder.check_text([each for each in sentences if each])

    def score(self, items: Sequence[Item]) -> list[float | None]:
        texts = [self._text(item) for item in items]
        said = list(dict.fromkeys(text for text in texts if text))
        if not said:
            return [None] * len(items)
        words = dict(zip(said, unit(self.tools.cache.get(self.encoder, said, "text").numpy()), strict=True))
        made = [seen(item.picture, "whole", "grey") if text else None for item, text in zip(items, texts, strict=True)]
        directions = self.tools.directions(self.encoder, made)
        return [
            None if view is None else cosine(directions[view.hash], words[text])
            for view, text in zip(made, texts, strict=True)
        ]

    def _text(self, item: Item) -> str:
        return {"full": item.sentence, "concept": item.concept, "context": item.context}[self.settings.part]
