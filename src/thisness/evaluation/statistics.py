"""What a table of scored pictures says, and how sure that is.

A mean is the mean over subjects of each subject's mean over its pictures: every subject counts the same, and where no
value is missing it equals the mean over all pictures. Pictures of one subject resemble each other, so that what is
drawn again (bootstrap) or turned around (sign flips) is always a whole subject, never a picture.

A picture that could not be made, and a value that a metric could not give, have no number: they are left out of means,
and counted in every result beside them.

    mean, interval         estimate         percentile bootstrap over subjects
    difference             paired           the same (subject, case, seed) on both sides; sign-flip test over subjects
    many tests at once     holm             Holm (1979)
    who is not beaten      front            Pareto
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import UserError
from .items import Scored

RESAMPLES = 2000
CONFIDENCE = 0.95
FLIPS = 20_000
EXACT_UP_TO = 14  # subjects: all 2**14 sign patterns are gone through; above, FLIPS random ones

Unit = Callable[[Scored], str]
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Args:
        mean: None where no row has a value.
        low, high: ends of the interval; None with fewer than two subjects, which say nothing of how subjects differ.
        units: subjects that have a value.
        rows: pictures that have a value.
        missing: pictures that exist and have none.
        failed: pictures that could not be made.
    """

    mean: float | None
    low: float | None
    high: float | None
    units: int
    rows: int
    missing: int
    failed: int


@dataclass(frozen=True)
class Paired:
    """How much higher the first recipe is than the second, on the same (subject, case, seed).

    Args:
        difference: mean over subjects of (first - second); None without a shared row.
        low, high: ends of its interval; None with fewer than two subjects.
        wins, ties, losses: of the first, counted over pairs of pictures.
        p: two-sided, of the sign-flip test over subjects; None without a shared row.
        units, pairs: subjects and pairs of pictures that entered.
        alone: rows that either recipe has and that had no partner with a value.
    """

    difference: float | None
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    p: float | None
    units: int
    pairs: int
    alone: int


def subject_of(row: Scored) -> str:
    """What is drawn again as a whole: the subject; for a sentence without one, the case."""
    return row.subject or f"case {row.case}"


def value_of(row: Scored, metric: str) -> float | None:
    """The number of a row, or None: failed, not measured, or not finite."""
    value = row.values.get(metric)
    return float(value) if value is not None and not row.failure and math.isfinite(value) else None


def unit_means(rows: Iterable[Scored], metric: str, unit: Unit = subject_of) -> dict[str, float]:
    """The mean over its pictures of each subject that has a value, in alphabetical order."""
    return _means((unit(row), value) for row in rows if (value := value_of(row, metric)) is not None)


def estimate(
    rows: Iterable[Scored],
    metric: str,
    *,
    unit: Unit = subject_of,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """The mean of one recipe's rows with its bootstrap interval.

    Args:
        rows: of one recipe (or a part of them: a family).
        metric: name of the value.
        unit: what is drawn again as a whole; rows of the same text belong together.
        resamples: how many times.
        confidence: of the interval, between 0 and 1.
        seed: of the draws: the same rows give the same interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13 (percentile interval); Davison and
    Hinkley, Bootstrap Methods (1997), 3.8 (clusters). With few subjects the interval is somewhat too narrow (for ten
    it covers about 90 of 100 instead of 95).
    """
    rows = list(rows)
    means = unit_means(rows, metric, unit)
    failed = sum(bool(row.failure) for row in rows)
    counted = sum(value_of(row, metric) is not None for row in rows)
    low, high = interval(list(means.values()), resamples=resamples, confidence=confidence, seed=seed)
    mean = float(np.mean(list(means.values()))) if means else None
    return Estimate(mean, low, high, len(means), counted, len(rows) - counted - failed, failed)


def interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of the mean of independent values; (None, None) for fewer than two."""
    if len(values) < 2:
        return None, None
    means = np.asarray(values, dtype=np.float64)[_draws(len(values), resamples, seed)].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired(
    first: Iterable[Scored],
    second: Iterable[Scored],
    metric: str,
    *,
    unit: Unit = subject_of,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Paired:
    """Two recipes compared where both have a value for the same (subject, case, seed).

    Args:
        first, second: rows of one recipe each.
        metric, unit, resamples, confidence, seed: as in `estimate`.

    Raises:
        UserError: a recipe has two rows for the same (subject, case, seed).
    """
    left, right = by_key(first), by_key(second)
    differences: list[tuple[str, float]] = []
    for key in sorted(left.keys() & right.keys()):
        ours, theirs = value_of(left[key], metric), value_of(right[key], metric)
        if ours is not None and theirs is not None:
            differences.append((unit(left[key]), ours - theirs))
    means = list(_means(differences).values())
    low, high = interval(means, resamples=resamples, confidence=confidence, seed=seed)
    signs = [np.sign(difference) for _, difference in differences]
    return Paired(
        difference=float(np.mean(means)) if means else None,
        low=low,
        high=high,
        wins=signs.count(1),
        ties=signs.count(0),
        losses=signs.count(-1),
        p=sign_flip(means, seed=seed) if means else None,
        units=len(means),
        pairs=len(differences),
        alone=len(left.keys() | right.keys()) - len(differences),
    )


def sign_flip(differences: Sequence[float], *, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p of "the differences are as often positive as negative, of any size".

    Each subject's difference is turned around or left; p is the share of patterns whose mean lies at least as far from
    zero as the one observed. With n subjects it cannot be below 2 / 2**n. Exact up to 14 subjects, above by random
    patterns, with the observed one among them.

    Args:
        differences: one for each subject, at least one.
        flips: random patterns where there are too many to go through.
        seed: of the random patterns.

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    values = np.asarray(differences, dtype=np.float64)
    observed = abs(values.sum())
    enough = observed - 1e-9 * np.abs(values).sum()  # sums of the same numbers in another order are equal to rounding
    if len(values) <= EXACT_UP_TO:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ values) >= enough))
    signs = np.random.default_rng(seed).integers(0, 2, (flips, len(values)), dtype=np.int8)
    reached = int(np.sum(np.abs((1.0 - 2 * signs) @ values) >= enough))
    return (reached + 1) / (flips + 1)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values of one table, corrected for their number; None stays None and does not count.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(value * (len(known) - rank), 1.0))
        corrected[place] = highest
    return corrected


def front(points: Mapping[str, tuple[float | None, float | None]]) -> list[str]:
    """Names of the points that no other one beats: at least as high in both numbers, and higher in one.

    Args:
        points: two numbers by name, higher is better; points without one of them are left out.

    Returns:
        From the highest first number down; points that are equal are both on it.
    """
    known = [(x, y, name) for name, (x, y) in points.items() if x is not None and y is not None]
    kept: list[str] = []
    best = -math.inf
    for x in sorted({point[0] for point in known}, reverse=True):
        here = [point for point in known if point[0] == x]
        highest = max(point[1] for point in here)
        if highest > best:
            kept += [point[2] for point in here if point[1] == highest]
            best = highest
    return kept


def by_recipe(rows: Iterable[Scored]) -> dict[str, list[Scored]]:
    """Rows by recipe, both in the order in which they come."""
    found: dict[str, list[Scored]] = {}
    for row in rows:
        found.setdefault(row.recipe, []).append(row)
    return found


def by_key(rows: Iterable[Scored]) -> dict[Key, Scored]:
    """Rows of one recipe by (subject, case, seed).

    Raises:
        UserError: two rows for the same.
    """
    found: dict[Key, Scored] = {}
    for row in rows:
        key = (row.subject, row.case, row.seed)
        if key in found:
            raise UserError(
                f"{row.recipe}: two rows for subject {row.subject!r}, case {row.case!r}, seed {row.seed}: "
                "a run has one of each; remove the doubled line"
            )
        found[key] = row
    return found


def _means(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Means by name, names in order, so that the order of rows changes nothing."""
    found: dict[str, list[float]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: math.fsum(found[name]) / len(found[name]) for name in sorted(found)}


@lru_cache(maxsize=16)
def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
    """Which values enter each resample: (resamples, count). The same for all metrics and recipes of a report."""
    return np.random.default_rng(seed).integers(0, count, (resamples, count))
