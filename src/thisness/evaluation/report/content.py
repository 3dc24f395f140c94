"""What a report says, as plain data: the pages in HTML, Markdown and JSON only write it down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

from ...errors import ConfigurationError, UserError, nearest
from ..items import Scored
from ..statistics import Estimate, Paired, by_key, by_recipe, estimate, front, holm, paired, subject_of, value_of
from .kinds import axis, direction

LEVEL = 0.05
SHOWN = 3  # best and worst examples of each recipe
GALLERY = 160  # pictures side by side, at most
GALLERY_ROWS = 24


class RunLike(Protocol):
    """What a report needs of a run; `evaluation.results.Run` is one."""

    @property
    def benchmark(self) -> Mapping[str, Any]: ...
    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def base(self) -> Mapping[str, Any]: ...
    @property
    def scored(self) -> Sequence[Scored]: ...
    @property
    def identities(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...
    @property
    def command(self) -> str: ...
    @property
    def references(self) -> Mapping[str, Sequence[Path]]: ...
    @property
    def learning(self) -> Mapping[tuple[str, str], float]: ...
    @property
    def sizes(self) -> Mapping[tuple[str, str], int]: ...
    @property
    def planned(self) -> int: ...
    @property
    def damaged(self) -> int: ...


@dataclass(frozen=True)
class RecipeSummary:
    """One line of the table.

    Args:
        values: by metric.
        rows, failed: pictures asked for, and those that could not be made.
        seconds: median time that a picture took; None where nothing was made.
        learning: mean seconds that learning a subject took; None where nothing was learned.
        size: mean bytes of what was learned, alike.
        front: whether no other recipe beats it on the two axes.
    """

    recipe: str
    values: Mapping[str, Estimate]
    rows: int
    failed: int
    seconds: float | None
    learning: float | None
    size: float | None
    front: bool


@dataclass(frozen=True)
class Pair:
    """Two recipes on one metric; `corrected` is p after Holm over all pairs of this metric."""

    first: str
    second: str
    metric: str
    result: Paired
    corrected: float | None

    @property
    def higher(self) -> str:
        """The recipe that is shown to be higher, or ""."""
        if self.corrected is None or self.corrected > LEVEL or not self.result.difference:
            return ""
        return self.first if self.result.difference > 0 else self.second


@dataclass(frozen=True)
class Examples:
    """Rows of one recipe, from the best (worst) on."""

    recipe: str
    best: tuple[Scored, ...]
    worst: tuple[Scored, ...]


@dataclass(frozen=True)
class Report:
    """All of it.

    Args:
        x, y: the metrics of the headline picture: prompt following across, identity up.
        families: (family, for each recipe (estimate of x, estimate of y)) in the order of the benchmark.
        gallery: the same (subject, case, seed) by every recipe; None where a recipe has no such row.
        notes: what a reader must know before believing any of it.
    """

    benchmark: Mapping[str, Any]
    command: str
    base: Mapping[str, Any]
    environment: Mapping[str, Any]
    identities: Mapping[str, Mapping[str, Any]]
    definitions: Mapping[str, Mapping[str, Any]]
    x: str
    y: str
    subjects: int
    recipes: tuple[RecipeSummary, ...]
    families: tuple[tuple[str, tuple[tuple[Estimate, Estimate], ...]], ...]
    pairs: tuple[Pair, ...]
    examples: tuple[Examples, ...]
    gallery: tuple[tuple[Scored | None, ...], ...]
    failures: tuple[Scored, ...]
    notes: tuple[str, ...]
    references: Mapping[str, Sequence[Path]]

    @property
    def sides(self) -> tuple[tuple[str, int], ...]:
        """The metrics of the axes, identity first, with their places in `families`; one where both are the same."""
        return ((self.y, 1),) if self.x == self.y else ((self.y, 1), (self.x, 0))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The axes first, then the others in their order."""
        axes = [name for name, _ in self.sides]
        return (*axes, *(name for name in self.recipes[0].values if name not in axes))


def gather(run: RunLike, x: str | None = None, y: str | None = None) -> Report:
    """Everything that the report of a run says.

    Args:
        run: what `read_run` gives.
        x, y: metrics of the headline picture; by default the first of prompt following and the first of identity.

    Raises:
        UserError: the run has no rows, or no values.
        ConfigurationError: a metric that the run does not have.
    """
    rows = list(run.scored)
    if not rows:
        raise UserError("the run has no results yet: start it with `thisness bench run`, then report")
    names = list(run.identities) + [name for row in rows for name in row.values]
    metrics = [name for name in dict.fromkeys(names) if any(name in row.values for row in rows)]
    if not metrics:
        raise UserError("no picture of the run has been scored: run `thisness bench run` again to score them")
    across = _chosen(x, "x", "prompt", metrics, run.identities)
    up = _chosen(y, "y", "identity", metrics, run.identities)
    grouped = by_recipe(rows)
    for found in grouped.values():
        by_key(found)  # one row for each subject, case, seed
    values = {name: {metric: estimate(found, metric) for metric in metrics} for name, found in grouped.items()}
    turn = {metric: direction(run.identities.get(metric, {})) for metric in metrics}
    on_front = front(
        {name: (_turned(found[across], turn[across]), _turned(found[up], turn[up])) for name, found in values.items()}
    )
    summaries = tuple(
        RecipeSummary(
            name,
            values[name],
            len(found),
            sum(bool(row.failure) for row in found),
            _over(median, (row.seconds for row in found if row.image and row.seconds > 0)),
            _over(fmean, (seconds for (recipe, _), seconds in run.learning.items() if recipe == name)),
            _over(fmean, (size for (recipe, _), size in run.sizes.items() if recipe == name)),
            name in on_front,
        )
        for name, found in grouped.items()
    )
    subjects = len({row.subject for row in rows if row.subject} or {subject_of(row) for row in rows})
    return Report(
        benchmark=run.benchmark,
        command=run.command,
        base=run.base,
        environment=run.environment,
        identities=run.identities,
        definitions=run.recipes,
        x=across,
        y=up,
        subjects=subjects,
        recipes=summaries,
        families=_families(rows, grouped, across, up),
        pairs=_pairs(grouped, across, up),
        examples=tuple(_examples(name, found, {across: turn[across], up: turn[up]}) for name, found in grouped.items()),
        gallery=_gallery(grouped),
        failures=tuple(row for row in rows if row.failure),
        notes=tuple(_run_notes(run) + _asked_notes(grouped) + _notes(summaries, subjects, across, up)),
        references=run.references,
    )


def _chosen(
    given: str | None, option: str, kind: str, metrics: Sequence[str], identities: Mapping[str, Mapping[str, Any]]
) -> str:
    if given is None:
        return axis(kind, metrics, identities)
    if given not in metrics:
        raise ConfigurationError(
            f"--{option} {given!r}: the run has no such metric{nearest(given, metrics)}: it has {', '.join(metrics)}"
        )
    return given


def _over(function: Callable[[list[float]], float], values: Iterable[float]) -> float | None:
    found = list(values)
    return function(found) if found else None


def _turned(found: Estimate, turn: int) -> float | None:
    """A mean of which higher is better."""
    return None if found.mean is None else turn * found.mean


def _families(
    rows: Sequence[Scored], grouped: Mapping[str, Sequence[Scored]], x: str, y: str
) -> tuple[tuple[str, tuple[tuple[Estimate, Estimate], ...]], ...]:
    names = list(dict.fromkeys(row.family for row in rows))
    table = []
    for family in names:
        parts = [[row for row in found if row.family == family] for found in grouped.values()]
        table.append((family, tuple((estimate(part, x), estimate(part, y)) for part in parts)))
    return tuple(table)


def _pairs(grouped: Mapping[str, Sequence[Scored]], x: str, y: str) -> tuple[Pair, ...]:
    """Every two recipes on both axes; a correction over all pairs of one metric."""
    pairs: list[Pair] = []
    for metric in dict.fromkeys((y, x)):
        asked = list(itertools.combinations(grouped, 2))
        results = [paired(grouped[first], grouped[second], metric) for first, second in asked]
        corrected = holm([result.p for result in results])
        pairs += [Pair(*names, metric, each, p) for names, each, p in zip(asked, results, corrected, strict=True)]
    return tuple(pairs)


def _examples(recipe: str, rows: Sequence[Scored], turns: Mapping[str, int]) -> Examples:
    """Ordered by the sum of a picture's ranks in the two metrics, within its recipe; at most one of each case."""
    full = [row for row in rows if row.image and all(value_of(row, metric) is not None for metric in turns)]
    ranks: dict[str, int] = dict.fromkeys((row.id for row in full), 0)
    for metric, turn in turns.items():
        values = {row.id: turn * (value_of(row, metric) or 0.0) for row in full}
        for place, name in enumerate(sorted(values, key=lambda name: (values[name], name))):
            ranks[name] += place
    ordered = sorted(full, key=lambda row: (-ranks[row.id], row.id))
    best = _varied(ordered, SHOWN)
    return Examples(recipe, best, _varied([row for row in reversed(ordered) if row not in best], SHOWN))


def _varied(rows: Sequence[Scored], count: int) -> tuple[Scored, ...]:
    """The first few, no two of the same subject and case."""
    kept = {(row.subject, row.case): row for row in reversed(rows)}  # the first of each stays
    first = [row for row in rows if kept[row.subject, row.case] is row]
    return tuple(first[:count])


def _gallery(grouped: Mapping[str, Sequence[Scored]]) -> tuple[tuple[Scored | None, ...], ...]:
    """A few of each family, the first seed, another subject in each where there are several."""
    tables = [by_key(rows) for rows in grouped.values()]
    every = list(dict.fromkeys(key for table in tables for key in table))
    families: dict[str, list[tuple[str, str, int]]] = {}
    for key in every:
        row = next(table[key] for table in tables if key in table)
        families.setdefault(row.family, []).append(key)
    limit = max(min(GALLERY // max(len(tables), 1), GALLERY_ROWS), 4)
    each = max(limit // max(len(families), 1), 1)
    chosen: list[tuple[str, str, int]] = []
    for number, keys in enumerate(families.values()):
        subjects = list(dict.fromkeys(key[0] for key in keys))
        turned = subjects[number % len(subjects) :] + subjects[: number % len(subjects)]
        queues = {subject: [key for key in keys if key[0] == subject] for subject in turned}
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues.values()))
        chosen += [key for key in itertools.islice((key for key in rounds if key), each)]
    return tuple(tuple(table.get(key) for table in tables) for key in chosen[:limit])


def _needed(tests: int) -> int:
    """The fewest subjects with which one of so many differences can be significant."""
    return next(count for count in itertools.count(2) if 2 / 2**count * tests <= LEVEL)


def _run_notes(run: RunLike) -> list[str]:
    notes = []
    if (absent := run.planned - len(run.scored)) > 0:
        notes.append(
            f"The run is not finished: {absent} of {run.planned} pictures are not there yet. The same command goes on."
        )
    if run.damaged:
        notes.append(f"{run.damaged} lines of the results were damaged and are left out; the same command redoes them.")
    said = run.benchmark.get("notes") or ()
    return notes + [str(each) for each in (said if isinstance(said, list | tuple) else [said])]


def _asked_notes(grouped: Mapping[str, Sequence[Scored]]) -> list[str]:
    """Whether the recipes were asked the same."""
    cases = {name: {row.case for row in rows} for name, rows in grouped.items()}
    every = set().union(*cases.values())
    fewer = [f"{name} {len(asked)}" for name, asked in cases.items() if asked != every]
    if not fewer:
        return []
    return [
        f"Not all recipes were asked the same: of {len(every)} sentences {', '.join(fewer)}. Means over all pictures, "
        "the headline and who is best then compare different sentences; families and paired differences do not."
    ]


def _notes(recipes: Sequence[RecipeSummary], subjects: int, x: str, y: str) -> list[str]:
    notes = []
    if subjects < 2:
        notes.append(
            "One subject only: how results differ between subjects cannot be told, so there are no intervals, and no "
            "difference can be significant."
        )
    elif (least := 2 / 2**subjects * (tests := len(recipes) * (len(recipes) - 1) // 2)) > LEVEL:
        notes.append(
            f"{subjects} subjects and {tests} comparison{'s' * (tests != 1)} in each metric: no difference can be "
            f"significant, as the smallest possible corrected p is {min(least, 1.0):.2g}. Read the differences and how "
            f"often they are won, or measure more subjects (at least {_needed(tests)})."
        )
    for each in recipes:
        if each.failed:
            notes.append(
                f"{each.recipe}: {each.failed} of {each.rows} pictures could not be made. They have no values, so its "
                "means are over the others and may flatter it; paired differences use shared rows only."
            )
    for metric in dict.fromkeys((x, y)):
        alike: dict[int, list[str]] = {}
        for each in recipes:
            alike.setdefault(each.values[metric].missing, []).append(each.recipe)
        for missing, names in alike.items():
            if missing:
                who = f"each of {len(names)} recipes" if len(names) > 3 else ", ".join(names)
                notes.append(f"{who}: {missing} pictures have no value of {metric}; means leave them out.")
    if x == y:
        notes.append(f"The run has metrics of one kind only: {x} is on both axes.")
    if len(recipes) == 1:
        notes.append("One recipe only: there is nothing to compare it with.")
    return notes
