"""Judges that are asked for a score from 0 to 4: what they share. Questions, passes, what was answered before, the
budget, failures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...errors import ConfigurationError, raise_all
from ..items import Item
from . import protocol
from .answers import Answer, Answers
from .arithmetic import item_share
from .column import Column, Failure, chosen
from .protocol import Question, content_hash

NAMED = 5  # failures that the summary names


def tell(line: str) -> None:
    """To whoever runs this: one line on stderr."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RatingSettings:
    """What all judges have that are asked for a score.

    Args:
        columns: of "cp" (concept preservation) and "pf" (prompt following).
        variant: of the protocol; "full" is what tables are made with.
        passes: independent ratings of each picture, which are averaged.
        temperature: of sampling.
        references: how many of the subject's pictures are compared with, each in a question of its own (cp); the
            protocol takes the first alone.
        prompts: a file with another wording, of the form of `prompts.json`.
        label: begins the columns' names instead of the judge's; needed where two of a kind are used at once.
    """

    columns: tuple[str, ...] = protocol.COLUMNS
    variant: str = "full"
    passes: int = 3
    temperature: float = 1.0
    references: int = 1
    prompts: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        chosen(self.columns, protocol.COLUMNS, "columns")
        raise_all(
            [
                f"{name} is {getattr(self, name)}: expected {least} ... {most}"
                for name, least, most in (("passes", 1, 100), ("references", 1, 100), ("temperature", 0, 2))
                if not least <= getattr(self, name) <= most
            ]
        )
        if self.variant not in protocol.VARIANTS:
            raise ConfigurationError(f"variant is {self.variant!r}: expected one of {', '.join(protocol.VARIANTS)}")
        if not self.columns:
            raise ConfigurationError("columns is empty: name one or more")


@dataclass(frozen=True)
class Asked:
    """One rating that is wanted. key: hash of all that decides it, the pass included; time: which pass, from 1."""

    key: str
    question: Question
    time: int
    temperature: float

    @property
    def seed(self) -> int:
        """For sampling: another one for each question and pass, the same whenever it is asked."""
        return int(self.key[:8], 16) & 0x7FFFFFFF


class Rater(Protocol):
    """Answers questions.

    Attributes:
        name: "openai".
        identity: JSON data: what decides its answers.
        directly: whether it takes the score alone, without reasoning first.
        limit: the most requests it may make; None for no limit.
        made: requests made so far.
    """

    name: str
    identity: dict[str, Any]
    directly: bool
    limit: int | None
    made: int

    def rate(self, asked: Sequence[Asked], done: Callable[[Answer], None]) -> None:
        """Answer all, calling `done` with each as it is there, from one thread at a time.

        Raises:
            UserError: it cannot go on (no such model, wrong key, budget used up). What was answered is kept.
        """


class RatingJudge:
    """Asks a rater, remembers what it said, and gives columns.

    Args:
        rater: who answers.
        settings: what is asked.
        answers: where answers are kept.
        say: told the number of requests before the first, and what failed.
    """

    def __init__(
        self, rater: Rater, settings: RatingSettings, answers: Answers, say: Callable[[str], None] = tell
    ) -> None:
        self.rater, self.settings, self.answers, self.say = rater, settings, answers, say
        self.protocol = protocol.Protocol(settings.variant, settings.prompts and Path(settings.prompts))
        self.failed: dict[str, str] = {}
        self.identity: dict[str, Any] = {
            **rater.identity,
            "protocol": self.protocol.identity,
            "temperature": settings.temperature,
            "passes": settings.passes,
            "references": settings.references,
            "value": "mean score / 4, failures as 0",
        }
        self.columns = [RatingColumn(self, column) for column in chosen(settings.columns, protocol.COLUMNS, rater.name)]
        if answers.damaged:
            say(f"{rater.name}: {answers.damaged} damaged lines in {answers.path} are asked again")

    def asked(self, column: str, item: Item) -> list[Asked]:
        """The ratings that a picture needs in a column: references x passes; none where there is no reference."""
        references: Sequence[Any] = item.references[: self.settings.references] if column == "cp" else (None,)
        wanted = []
        for reference in references:
            question = self.protocol.question(column, item, reference, directly=self.rater.directly)
            decides = {"rater": self.rater.identity, "temperature": self.settings.temperature}
            content = [content_hash(question.content()), decides]
            for time in range(1, self.settings.passes + 1):
                wanted.append(Asked(content_hash([*content, time]), question, time, self.settings.temperature))
        return wanted

    def missing(self, columns: Sequence[str], items: Sequence[Item]) -> list[Asked]:
        """What has not been answered yet, each once."""
        wanted = {each.key: each for column in columns for item in items for each in self.asked(column, item)}
        return [each for key, each in wanted.items() if self.answers.get(key) is None and key not in self.failed]

    def announce(self, items: Sequence[Item] | int) -> int:
        """Say how many requests rating these items in all columns takes at least, and check that against the limit.

        Args:
            items: or how many there will be.

        Raises:
            ConfigurationError: over the limit; nothing has been asked.
        """
        names = [column.column for column in self.columns]
        if isinstance(items, int):
            each = sum(self.settings.references if name == "cp" else 1 for name in names) * self.settings.passes
            count = wanted = items * each
        else:
            count = len(self.missing(names, items))
            wanted = len({asked.key for name in names for item in items for asked in self.asked(name, item)})
        limit, name = self.rater.limit, self.rater.name
        if limit is not None and self.rater.made + count > limit:
            before = f" after {self.rater.made} made before" if self.rater.made else ""
            raise ConfigurationError(
                f"{name}: {count} calls are needed{before}, and at most {limit} are allowed: raise max_calls, or ask "
                "for fewer pictures, passes or columns; nothing was asked"
            )
        if count:
            most = f", at most {limit}" if limit is not None else ""
            self.say(f"{name}: {count} calls{most} ({wanted - count} of {wanted} ratings answered before)")
        return count

    def rate(self, column: str, items: Sequence[Item]) -> None:
        """Have every item rated in a column."""
        self.announce(items)
        missing = self.missing([column], items)
        abouts = {each.key: {"column": column, "pass": each.time, **self._about()} for each in missing}

        def done(answer: Answer) -> None:
            kept = Answer(
                answer.key, answer.score, answer.raw, answer.failure, answer.seconds, answer.requests,
                abouts[answer.key],
            )  # fmt: skip
            self.answers.add(kept)
            if not kept.valid:
                self.failed[answer.key] = answer.failure or "no score"

        if missing:
            self.rater.rate(missing, done)

    def _about(self) -> dict[str, Any]:
        return {**self.rater.identity, "variant": self.settings.variant}


class RatingColumn(Column):
    """Concept preservation or prompt following, in [0, 1]."""

    def __init__(self, judge: RatingJudge, column: str) -> None:
        self.judge, self.column = judge, column
        self.name = f"{judge.settings.label or judge.rater.name}:{column}"
        self.identity = {"judge": judge.rater.name, "column": column, **judge.identity}
        self._failures: list[Failure] = []

    @property
    def failures(self) -> list[Failure]:
        return self._failures

    def score(self, items: Sequence[Item]) -> list[float | None]:
        judge = self.judge
        judge.rate(self.column, items)
        values: list[float | None] = []
        self._failures, ratings = [], 0
        for item in items:
            scores: list[float | None] = []
            for asked in judge.asked(self.column, item):
                answer = judge.answers.get(asked.key)
                scores.append(None if answer is None else answer.score)
                if answer is None:
                    reason = judge.failed.get(asked.key, "not asked")
                    self._failures.append(Failure(item.id, self.name, asked.time, reason))
            ratings += len(scores)
            values.append(item_share(scores) if scores else None)
        if self._failures:
            named = "; ".join(map(str, self._failures[:NAMED]))
            more = f"; and {len(self._failures) - NAMED} more" if len(self._failures) > NAMED else ""
            judge.say(f"{self.name}: {len(self._failures)} of {ratings} ratings failed and count as 0: {named}{more}")
        return values
