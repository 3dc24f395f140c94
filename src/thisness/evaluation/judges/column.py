"""What a judge gives: columns, which are used as metrics are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigurationError, nearest, raise_all
from ..items import Item


@dataclass(frozen=True)
class Failure:
    """A rating that could not be had: it counts as 0.

    Args:
        item: the item's id.
        column: name of the column.
        times: which of the rating's passes (from 1), or 0 where there are none.
        reason: one line.
    """

    item: str
    column: str
    times: int
    reason: str

    def __str__(self) -> str:
        return f"{self.item}{f' (pass {self.times})' if self.times else ''}: {self.reason}"


class Column(ABC):
    """One number a picture, from a judge. Columns of one judge share its work.

    Attributes:
        name: "oracle:follow", "openai:cp".
        identity: JSON data that says what judged and how; two values may be compared where it is equal.
    """

    name: str
    identity: dict[str, Any]

    @abstractmethod
    def score(self, items: Sequence[Item]) -> list[float | None]:
        """A value in [0, 1] for each item; None where the column says nothing about it. A failure counts as 0."""

    @property
    def failures(self) -> list[Failure]:
        """What counts as 0 in the values of the last `score` because nobody rated it."""
        return []


def chosen(asked: Sequence[str], known: Mapping[str, Any] | Sequence[str], judge: str) -> list[str]:
    """The columns asked for, each once.

    Raises:
        ConfigurationError: the judge does not have one; the nearest is given.
    """
    raise_all(
        [f"no column {name!r}{nearest(name, known)}: it has {', '.join(known)}" for name in asked if name not in known],
        ConfigurationError,
        judge,
    )
    return list(dict.fromkeys(asked))
