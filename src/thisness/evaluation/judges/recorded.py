"""A judge that reads what others have said: ratings from a file, by the item's id. For tests, and for ratings that
people gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ArtefactError, raise_all
from ...files import sha256
from ..items import Item
from .arithmetic import Rated, item_share, protocol_table, read_recorded
from .column import Column, Failure, chosen


@dataclass(frozen=True)
class Settings:
    """Of recorded ratings.

    Args:
        file: JSON Lines as `read_recorded` takes them.
        columns: of those in the file; empty for all.
        label: begins the columns' names.
    """

    file: str
    columns: tuple[str, ...] = ()
    label: str = "recorded"


def make(settings: Settings, context: Any) -> list[Column]:
    """A column for each in the file.

    Raises:
        ArtefactError: the file cannot be used.
        ConfigurationError: a column that it does not have.
    """
    rated = read_recorded(settings.file)
    passes = protocol_table(rated).passes  # checks them too
    held = sorted({row.column for row in rated})
    columns = chosen(settings.columns or held, held, settings.file)
    hashed = sha256(Path(settings.file))
    return [
        RecordedColumn(settings.label, column, [row for row in rated if row.column == column], passes, hashed)
        for column in columns
    ]


class RecordedColumn(Column):
    """Mean score / 4 over the passes; what the file does not rate is a failure."""

    def __init__(self, label: str, column: str, rated: Sequence[Rated], passes: int, hashed: str) -> None:
        self.name = f"{label}:{column}"
        self.identity = {"judge": "recorded", "column": column, "file": hashed, "passes": passes}
        self._passes, self._rated = passes, {row.id: row.passes for row in rated}
        self._failures: list[Failure] = []
        raise_all([] if rated else ["it rates nothing"], ArtefactError, column)

    @property
    def failures(self) -> list[Failure]:
        return self._failures

    def score(self, items: Sequence[Item]) -> list[float | None]:
        self._failures, values = [], []
        for item in items:
            given = self._rated.get(item.id, ())
            scores = (*given, *[None] * (self._passes - len(given)))
            reasons = ["recorded as failed"] * len(given) + ["not in the file"] * (self._passes - len(given))
            self._failures += [
                Failure(item.id, self.name, number, reason)
                for number, (score, reason) in enumerate(zip(scores, reasons, strict=True), 1)
                if score is None
            ]
            values.append(item_share(scores))
        return list(values)
