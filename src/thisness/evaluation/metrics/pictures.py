"""Pictures against the references: CLIP-I and DINO-I, whole or masked.

    value = aggregate over references r of cos(f(x), f(r))

f is the encoder with its pooling; `mask` says whose background is painted over first. With "references" only the
references are cut out, which is always possible; with "both" the made picture, too, which needs its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..items import Item, Picture
from .base import EncoderMetric, Tools, WithEncoder, aggregated, cosine, register_metric
from .views import Fill, View, seen

References = Literal["mean", "best", "first"]


@dataclass(frozen=True)
class SimilaritySettings(WithEncoder):
    """Beside the encoder's.

    Args:
        references: how values over references become one: their mean (of cosines, not of vectors), the best, or the
            first reference alone (the anchor).
        mask: None, "references", or "both".
        fill: colour of what is masked.
    """

    references: References = "mean"
    mask: Literal["references", "both"] | None = None
    fill: Fill = "grey"


class Similarity(EncoderMetric):
    """References without a mask are left out where one is needed; without any left the value is None."""

    formula = "aggregate over references of cos(f(made), f(reference))"
    Settings = SimilaritySettings

    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        self.uses_made_mask = settings.mask == "both"
        super().__init__(name, settings, tools)
        if settings.mask is None:
            self.identity.pop("fill")

    def score(self, items: Sequence[Item]) -> list[float | None]:
        made = [self._made(item) for item in items]
        references = [references_of(item, self._reference, self.settings.references) for item in items]
        directions = self.tools.directions(self.encoder, [*made, *(view for row in references for view in row)])
        return [
            None
            if x is None
            else aggregated([cosine(directions[x.hash], directions[r.hash]) for r in row], self.settings.references)
            for x, row in zip(made, references, strict=True)
        ]

    def _made(self, item: Item) -> View | None:
        if self.settings.mask == "both":
            return seen(self.tools.made(item), "subject", self.settings.fill)
        return seen(item.picture, "whole", self.settings.fill)

    def _reference(self, picture: Picture) -> View | None:
        return seen(picture, "subject" if self.settings.mask else "whole", self.settings.fill)


def references_of(item: Item, view: Any, how: str) -> list[View]:
    """Views of the references that count: with "first", of the first alone."""
    pictures = item.references[:1] if how == "first" else item.references
    return [each for each in map(view, pictures) if each is not None]


@dataclass(frozen=True)
class ClipISettings(SimilaritySettings):
    encoder: str = "clip-b32"


@dataclass(frozen=True)
class DinoISettings(SimilaritySettings):
    encoder: str = "dino-s16"


@register_metric("clip-i")
class ClipI(Similarity):
    """Image embeddings of a model trained with text (DreamBooth, arXiv 2208.12242)."""

    Settings = ClipISettings


@register_metric("dino-i")
class DinoI(Similarity):
    """Class tokens of a model trained on pictures alone (DreamBooth, arXiv 2208.12242)."""

    Settings = DinoISettings
