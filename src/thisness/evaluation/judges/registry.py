"""Which judges there are, and the one call that makes their columns from text."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, nearest, raise_all
from ...recipe import Spec, build_settings, parse_spec
from ..items import Item
from .answers import Answers
from .column import Column
from .rating import RatingColumn, tell

JUDGES = {
    "oracle": "oracle",
    "transformers": "vision_language",
    "openai": "openai",
    "proxy": "proxy",
    "recorded": "recorded",
    "constant": "constant",
}
"""By name the file here that holds its `Settings` and `make(settings, context) -> columns`."""


@dataclass
class Context:
    """What a judge is made with besides its settings.

    Args:
        device: where models run.
        cache: features of metrics, for those who use metrics.
        answers: file of answers; None: `answers.jsonl` in the cache folder.
        max_calls: the most requests of each judge that makes any; None leaves it to its settings.
        say: told what is asked and what failed.
    """

    device: str = "cpu"
    cache: Any = None
    answers: Path | None = None
    max_calls: int | None = None
    say: Callable[[str], None] = tell

    def open_answers(self) -> Answers:
        """The answers kept so far."""
        if self.answers is None:
            from ...training.prior import cache_root

            return Answers(cache_root() / "judges" / "answers.jsonl")
        return Answers(self.answers)


def make_judge(
    text: str | Spec,
    *,
    device: str = "cpu",
    cache: Any = None,
    answers: str | Path | None = None,
    max_calls: int | None = None,
    say: Callable[[str], None] = tell,
) -> list[Column]:
    """The columns of a judge; they share its work, and are used as metrics are.

    Args:
        text: "oracle", "oracle:follow+pose" (columns), "openai:model=gpt-4o,columns=pf", or a `Spec`.
        device: where models run.
        cache: features of metrics, for judges that use metrics.
        answers: file where paid answers are kept; by default `judges/answers.jsonl` in the cache folder.
        max_calls: the most requests that each judge may make.
        say: told what is asked and what failed; stderr by default.

    Raises:
        ConfigurationError: an unknown judge, setting or column, with the nearest name; settings that do not fit.
    """
    spec = text if isinstance(text, Spec) else _parse(text)
    if spec.name not in JUDGES:
        raise ConfigurationError(f"no judge {spec.name!r}{nearest(spec.name, JUDGES)}: known are {', '.join(JUDGES)}")
    module = importlib.import_module(f".{JUDGES[spec.name]}", __package__)
    settings = build_settings(spec.values, module.Settings, spec.name)
    return module.make(settings, Context(device, cache, Path(answers) if answers else None, max_calls, say))


def make_judges(texts: Iterable[str | Spec], **options: Any) -> list[Column]:
    """The columns of several judges. Options as for `make_judge`.

    Raises:
        ConfigurationError: as `make_judge`, or two columns would have one name.
    """
    columns = [column for text in texts for column in make_judge(text, **options)]
    names = [column.name for column in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    raise_all([f"two columns are called {name!r}: give one judge label=NAME" for name in twice], ConfigurationError)
    return columns


def announce(columns: Sequence[Any], items: Sequence[Item] | int) -> int:
    """Say how many requests rating all these items takes, before the first is made.

    Args:
        columns: of judges and metrics; those that make no requests are passed over.
        items: all of a run, or how many there will be: then each is taken to have all the references that are asked
            about, and nothing to be answered yet.

    Returns:
        The number of requests, without retries.

    Raises:
        ConfigurationError: over a judge's limit.
    """
    judges = {id(column.judge): column.judge for column in columns if isinstance(column, RatingColumn)}
    return sum(judge.announce(items) for judge in judges.values())


def _parse(text: str) -> Spec:
    """ "name", "name:key=value,...", or "name:column+column"."""
    name, colon, rest = text.strip().partition(":")
    if colon and rest.strip() and "=" not in rest:
        columns = [piece.strip() for piece in rest.replace(",", "+").split("+") if piece.strip()]
        return Spec.of(name.strip(), columns=columns)
    return parse_spec(text, "judge")
