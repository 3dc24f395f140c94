"""Drift and diversity: distances between made pictures.

    drift     = 1 - cos(f(x), f(what the plain base makes of the same sentence and seed))      0: nothing has changed
    diversity = mean over the other seeds y of  1 - cos(f(x), f(y))                            0: all are the same

The mean of diversity over the seeds of a case is the mean over its pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..items import Item
from .base import EncoderMetric, WithEncoder, cosine, register_metric
from .views import View


@dataclass(frozen=True)
class SpreadSettings(WithEncoder):
    encoder: str = "dinov2-base"


@register_metric("drift")
class Drift(EncoderMetric):
    """None without a baseline."""

    Settings = SpreadSettings
    better = "lower"
    formula = "1 - cos(f(made), f(baseline of the same sentence and seed)); 0 where they are the same"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        pairs = [(View(item.picture), View(item.baseline)) if item.baseline else None for item in items]
        directions = self.tools.directions(self.encoder, [view for pair in pairs if pair for view in pair])
        return [None if pair is None else 1 - cosine(*(directions[view.hash] for view in pair)) for pair in pairs]


@register_metric("diversity")
class Diversity(EncoderMetric):
    """Over the seeds of one (recipe, subject, case). None for a single seed."""

    Settings = SpreadSettings
    formula = "mean over the other seeds of 1 - cos(f(made), f(other)); 0 where all are the same"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        groups = seeds_together(items)
        views = [View(item.picture) for item in items]
        lonely = {at for group in groups if len(group) < 2 for at in group}
        directions = self.tools.directions(
            self.encoder, [None if at in lonely else view for at, view in enumerate(views)]
        )
        values: list[float | None] = [None] * len(items)
        for group in groups:
            for at in group if len(group) > 1 else ():
                others = [1 - cosine(directions[views[at].hash], directions[views[b].hash]) for b in group if b != at]
                values[at] = float(np.mean(others))
        return values


def seeds_together(items: Sequence[Item]) -> list[list[int]]:
    """Positions of the items of each (recipe, subject, case)."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for at, item in enumerate(items):
        groups[item.recipe, item.subject, item.case].append(at)
    return list(groups.values())
