"""Masked patch matching: does each piece of the subject have its like in the picture, wherever it went?

For unit patch vectors r_i of a reference and g_j of the made picture, I the reference's patches inside its mask and J
those of the made picture that may answer:

    S(r -> g) = mean over i in I of  max over j in J of  r_i . g_j

MaSC (arXiv 2605.22469) lets all patches answer: J is the whole picture ("generated=whole", always defined). With
"generated=mask" only those inside its mask do. "direction=both" is (S(r -> g) + S(g -> r)) / 2, which needs both masks.
A patch is inside where the mask covers at least half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ...errors import ConfigurationError
from ..items import Item, Picture
from .base import EncoderMetric, Tools, WithEncoder, aggregated, register_metric
from .pictures import References
from .views import LEAST, Fill, Part, View, seen

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 32  # pictures whose patches are in memory together


def matched(queries: Tensor, keys: Tensor) -> float:
    """Mean over queries (q, d) of the highest cosine with any key (k, d)."""
    from torch.nn.functional import normalize

    return float((normalize(queries, dim=-1) @ normalize(keys, dim=-1).T).max(1).values.mean())


class Patches(NamedTuple):
    """vectors: (h * w, e); inside: (h * w) bool, None where all count."""

    vectors: Tensor
    inside: np.ndarray | None

    def chosen(self) -> Tensor:
        import torch

        return self.vectors if self.inside is None else self.vectors[torch.from_numpy(self.inside)]


@dataclass(frozen=True)
class PatchSettings(WithEncoder):
    """Beside the encoder's, whose pooling does not count.

    Args:
        references: how values over references become one.
        generated: which patches of the made picture answer: "whole", or inside its "mask".
        direction: "references" asks from the reference to the picture; "both" averages the two ways.
        fill: None leaves the backgrounds to the encoder, whose attention then mixes them into the subject's patches;
            a colour paints them over first, where there is a mask.
    """

    encoder: str = "dinov2-base"
    references: References = "mean"
    generated: Literal["whole", "mask"] = "whole"
    direction: Literal["references", "both"] = "references"
    fill: Fill | None = None

    def __post_init__(self) -> None:
        if self.direction == "both" and self.generated == "whole":
            raise ConfigurationError("direction=both asks for the picture's own subject: set generated=mask, too")


class PatchMetric(EncoderMetric):
    """What patch metrics share: patches of pictures with the part of them that counts."""

    part: Part = "subject"

    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        self.uses_made_mask = settings.generated == "mask"
        super().__init__(name, settings, tools)
        self.identity["encoder"] = self.encoder.identity_of("patches")
        self.identity["part"] = f"patches covered to at least {LEAST}"
        tools.cache.keep_patches(self.encoder)

    def score(self, items: Sequence[Item]) -> list[float | None]:
        values: list[float | None] = []
        for start in range(0, len(items), AT_ONCE):
            values += self._scored(items[start : start + AT_ONCE])
        return values

    def _scored(self, items: Sequence[Item]) -> list[float | None]:
        made = [self._made(item) for item in items]
        rows = []
        for item in items:
            pictures = item.references[:1] if self.settings.references == "first" else item.references
            rows.append([v for v in (self._view(each, self.part) for each in pictures) if v is not None])
        patches = self._patches([v for v in (*made, *(v for row in rows for v in row)) if v is not None])
        return [
            None if x is None else aggregated(self._values(x, row, patches), self.settings.references)
            for x, row in zip(made, rows, strict=True)
        ]

    def _made(self, item: Item) -> tuple[View, Part] | None:
        if self.settings.generated == "mask":
            return self._view(self.tools.made(item), self.part)
        return self._view(item.picture, "whole")

    def _view(self, picture: Picture, part: Part) -> tuple[View, Part] | None:
        """What is encoded, and which part of its patches counts."""
        fill = self.settings.fill
        shown = seen(picture, part, fill or "grey")
        if shown is None:
            return None
        return (shown if fill else View(picture), part)

    def _patches(self, views: Sequence[tuple[View, Part]]) -> dict[tuple[str, str, str], Patches]:
        if not views:
            return {}
        vectors = self.tools.cache.get(self.encoder, [view for view, _ in views], "patches")
        found = {}
        for (view, part), rows in zip(views, vectors, strict=True):
            inside = None
            if part != "whole":
                assert view.picture.mask is not None, "seen was asked"
                mask = view.picture.mask if part == "subject" else 1 - view.picture.mask
                grid = self._grid(len(rows), mask)
                inside = self.encoder.coverage([mask], grid)[0] >= LEAST
            found[_named(view, part)] = Patches(rows, inside)
        return found

    def _grid(self, count: int, mask: np.ndarray) -> tuple[int, int]:
        """(h, w) of so many patches of a picture of the mask's shape, after preprocessing."""
        height, width = self.encoder.preprocessing.mask(mask).shape
        h = round((count * height / width) ** 0.5)
        return h, count // h

    def _values(self, made: tuple[View, Part], row: Sequence[tuple[View, Part]], patches: Any) -> list[float]:
        values = []
        answer = patches[_named(*made)].chosen()
        for each in row:
            asked = patches[_named(*each)].chosen()
            if not len(asked) or not len(answer):  # a subject smaller than a patch
                continue
            value = matched(asked, answer)
            if self.settings.direction == "both":
                value = (value + matched(answer, asked)) / 2
            values.append(value)
        return values


def _named(view: View, part: Part) -> tuple[str, str, str]:
    return view.hash, view.picture.mask_hash, part


@register_metric("patches")
class MatchedPatches(PatchMetric):
    """Masked max-cosine over patches of the subject. None where no reference has a mask."""

    Settings = PatchSettings
    formula = "aggregate over references of mean_i max_j cos(r_i, g_j), i inside the reference's mask"
