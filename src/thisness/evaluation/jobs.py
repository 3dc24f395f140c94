"""What workers are told and what they answer: plain data that goes to other processes."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ThisnessError
from .items import Benchmark
from .plan import Row, Settled

Thing = TypeVar("Thing")
DISK_FULL = "the disk is full: free some space, then run the same command again (what was written before is whole)"


@dataclass(frozen=True)
class Setup:
    """All that a worker needs to know; goes to other processes.

    Args:
        base: a name, a folder or a hub id; an opened base only where everything happens in one process.
        signature: of the base that the plan was made for.
        device: torch's name; workers share several accelerators out among themselves where it is only "cuda".
        dtype: "float32" ...
        threads: of torch on the CPU: they decide the last bits, so all workers have the same number.
        folder: of the run.
        benchmark: subjects and cases.
        recipes: by label.
        metrics: a preset's or metrics' names, or objects with `name`, `identity` and `score`.
        judges: likewise.
        masker: what finds the subject in made pictures, as `open_masker` takes it; "" for nothing.
    """

    base: Any
    signature: str
    device: str
    dtype: str
    threads: int
    folder: Path
    benchmark: Benchmark
    recipes: Mapping[str, Settled]
    metrics: tuple[Any, ...] = ()
    judges: tuple[Any, ...] = ()
    masker: str = ""


@dataclass(frozen=True)
class Job:
    """A piece of work. Of those with the same `key` only one is in work at any time, in their order."""

    key: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Share(Job):
    """What several subjects of a recipe share, as class pictures."""

    recipe: str
    subject: str


@dataclass(frozen=True)
class Learn(Job):
    """A recipe gets to know a subject."""

    recipe: str
    subject: str
    stop_at: float | None = None  # of `time.time`

    def __str__(self) -> str:
        return f"learning {self.subject} by {self.recipe}"


@dataclass(frozen=True)
class Make(Job):
    """The pictures of one batch of the plan. `owner` is the recipe that learned what this one uses."""

    rows: tuple[Row, ...]
    owner: str

    def __str__(self) -> str:
        return f"{self.rows[0].recipe}, {self.rows[0].subject or 'no subject'}, {self.rows[0].case}"


@dataclass(frozen=True)
class Score(Job):
    """Values for all pictures of one recipe and one subject.

    Args:
        rows: those that have a picture.
        metrics: names of those that are wanted.
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]

    def __str__(self) -> str:
        return f"scoring {self.rows[0].recipe}, {self.rows[0].subject or 'no subject'}"


@dataclass(frozen=True)
class Identify(Job):
    """The identities of all metrics."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        result: of a job that was done.
        failure: one line that says why it was not; "".
        kind: "done"; "failed" (this job's matter: the others go on), "stopped" (the job goes on another time), "fatal"
            (nothing can go on).
        exit_code: of what ends the run.
    """

    result: Any = None
    failure: str = ""
    kind: str = "done"
    exit_code: int = 1


def portable(benchmark: Benchmark) -> Benchmark:
    """The same with plain dicts, which can go to another process."""
    return replace(
        benchmark,
        cases=tuple(replace(case, expected=dict(case.expected)) for case in benchmark.cases),
        subjects=tuple(
            replace(each, truths=tuple(dict(truth) for truth in each.truths)) for each in benchmark.subjects
        ),
    )


def concept_folder(folder: Path, recipe: str, subject: str) -> Path:
    return folder / "concepts" / recipe / subject


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that nothing more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in str(error):
            return True
        error = error.__cause__
    return False


def one_line(error: BaseException) -> str:
    """An error as one line; those that are not ours with their type."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ThisnessError) and text else f"{type(error).__name__}: {text}"


def keep(kept: OrderedDict[Any, Thing], key: Any, value: Thing, limit: int) -> None:
    """Remember a value; the oldest of more than `limit` are forgotten."""
    kept[key] = value
    while len(kept) > limit:
        kept.popitem(last=False)
