"""A judge that says the same of every picture: for tests, and as the floor that any judge must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..items import Item
from .column import Column


@dataclass(frozen=True)
class Settings:
    """value: in [0, 1]."""

    value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"value is {self.value}: expected 0 ... 1")


def make(settings: Settings, context: Any) -> list[Column]:
    """One column."""
    return [ConstantColumn(settings.value)]


class ConstantColumn(Column):
    """The same value for all."""

    def __init__(self, value: float) -> None:
        self.name, self.value = "constant:value", value
        self.identity = {"judge": "constant", "value": value}

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [self.value] * len(items)
