"""Editing: what was put in against the references, what was to stay against the source (DreamEditBench).

    foreground = aggregate over references of cos(f(x inside m), f(r inside its mask))
    background = cos(f(x outside m), f(source outside m))

m is the mask of what was replaced in the source ("region=source", always there), or the made picture's own mask
("region=picture", as when a segmenter finds the new subject). What is not looked at is painted over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..items import Item, Picture
from .base import EncoderMetric, Tools, WithEncoder, aggregated, cosine, register_metric
from .pictures import References, references_of
from .views import Fill, Part, View, seen


@dataclass(frozen=True)
class EditSettings(WithEncoder):
    """Beside the encoder's.

    Args:
        region: whose mask says what is foreground in the made picture.
        fill: colour of what is not looked at.
    """

    encoder: str = "dinov2-base"
    region: Literal["source", "picture"] = "source"
    fill: Fill = "black"


@dataclass(frozen=True)
class EditForegroundSettings(EditSettings):
    """Beside the others.

    Args:
        references: how values over references become one.
        masked_references: whether the references' own backgrounds are painted over; those without a mask are then
            left out.
    """

    references: References = "mean"
    masked_references: bool = True


class EditMetric(EncoderMetric):
    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        self.uses_made_mask = settings.region == "picture"
        super().__init__(name, settings, tools)

    def _made(self, item: Item) -> Picture:
        """The made picture with the mask that counts."""
        if self.settings.region == "picture":
            return self.tools.made(item)
        mask = item.source.mask if item.source else None
        return Picture(item.picture.image, None if mask is None else resized(mask, item.picture.image.size))


@register_metric("edit-foreground")
class EditForeground(EditMetric):
    """None outside of editing."""

    Settings = EditForegroundSettings
    formula = "aggregate over references of cos(f(made inside m), f(reference inside its mask))"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        how, fill = self.settings.references, self.settings.fill
        part: Part = "subject" if self.settings.masked_references else "whole"
        made = [seen(self._made(item), "subject", fill) if item.source else None for item in items]
        rows = [references_of(item, lambda picture: seen(picture, part, fill), how) for item in items]
        directions = self.tools.directions(self.encoder, [*made, *(view for row in rows for view in row)])
        return [
            None if x is None else aggregated([cosine(directions[x.hash], directions[r.hash]) for r in row], how)
            for x, row in zip(made, rows, strict=True)
        ]


@register_metric("edit-background")
class EditBackground(EditMetric):
    """None outside of editing."""

    Settings = EditSettings
    formula = "cos(f(made outside m), f(source outside m))"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        pairs = [self._pair(item) for item in items]
        directions = self.tools.directions(self.encoder, [view for pair in pairs for view in pair])
        return [
            None if made is None or source is None else cosine(directions[made.hash], directions[source.hash])
            for made, source in pairs
        ]

    def _pair(self, item: Item) -> tuple[View | None, View | None]:
        if item.source is None:
            return None, None
        fill = self.settings.fill
        return seen(self._made(item), "background", fill), seen(item.source, "background", fill)


def resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask for a picture of another size (width, height) of the same scene."""
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    scaled = Image.fromarray(np.asarray(mask, np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.clip(np.asarray(scaled, np.float32), 0, 1)
