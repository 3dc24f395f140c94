"""A cache of features that can be put back to an earlier state."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from .cache import FeatureCache


class JobCache(FeatureCache):
    """In memory only. Snapshots share the vectors, so they cost little."""

    def __init__(self) -> None:
        super().__init__(None)

    def snapshot(self) -> Any:
        """What it holds now."""
        return {own: dict(rows) for own, rows in self._vectors.items()}, OrderedDict(self._patches), self._held

    def restore(self, state: Any | None) -> None:
        """Hold what it held then; None: nothing."""
        vectors, patches, held = state if state is not None else ({}, OrderedDict(), 0)
        self._vectors = {own: dict(rows) for own, rows in vectors.items()}
        self._patches, self._held = OrderedDict(patches), held
