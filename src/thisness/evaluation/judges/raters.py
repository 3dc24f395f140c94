"""Who rated a run's pictures: its own judges, and files of ratings; and which metric of it a proxy can stand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigurationError, UserError, nearest
from .agreement import krippendorff_alpha, rank_agreement
from .arithmetic import protocol_table, read_recorded
from .protocol import TOP
from .proxy import ProxyMap, fit_proxy

if TYPE_CHECKING:
    from ..results import Run


@dataclass(frozen=True)
class Rater:
    """Scores 0 to 4 by the picture's id; those that it says nothing about are not there."""

    name: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """How far raters agree.

    Attributes:
        pictures: by rater, how many of the run's it rated.
        alpha: Krippendorff's, interval data, over the pictures that two or more rated.
        shared: how many those are.
        ranks: of each two raters Kendall's tau-b of the recipes' means over the pictures that both rated, and how many
            recipes; None where there is no ranking (fewer than two recipes, or all alike).
    """

    pictures: Mapping[str, int]
    alpha: float
    shared: int
    ranks: Mapping[tuple[str, str], tuple[float | None, int]]


def judge_of(run: Run, name: str) -> Rater:
    """A judge's column of a run.

    Raises:
        ConfigurationError: it has none of this name.
    """
    judged = [each for each, identity in run.identities.items() if "judge" in identity]
    if name not in judged:
        has = f"it has {', '.join(judged)}" if judged else "it has none: bench run --judge makes them"
        raise ConfigurationError(f"{run.folder} has no judge's column {name!r}{nearest(name, judged)}: {has}")
    values = {row.id: row.values.get(name) for row in run.scored}
    return Rater(name, {at: TOP * value for at, value in values.items() if value is not None})


def file_of(run: Run, path: Path, column: str) -> Rater:
    """A file of ratings of a run's pictures; each picture's mean over the passes, those that failed as 0.

    Raises:
        ArtefactError: it cannot be used.
        UserError: it rates none of this run's pictures in that column.
    """
    rated = read_recorded(path)
    protocol_table(rated)  # checks scores and columns
    known = {row.id for row in run.scored}
    scores = {
        row.id: sum(score or 0.0 for score in row.passes) / len(row.passes)
        for row in rated
        if row.column == column and row.id in known
    }
    if not scores:
        held = sorted({row.column for row in rated})
        raise UserError(
            f"{path} rates none of the pictures of {run.folder} in column {column!r} (it has {', '.join(held)}): each "
            "id must be a picture's, as in images/ID.png"
        )
    return Rater(f"{path.name}:{column}", scores)


def agreement(run: Run, raters: Sequence[Rater]) -> Agreement:
    """How far raters of one run agree.

    Raises:
        UserError: fewer than two raters, two of one name, no picture in common, or all ratings equal.
    """
    names = [rater.name for rater in raters]
    if len(raters) < 2:
        raise UserError("agreement needs two raters: name columns (--judge) and files (--ratings), two in all")
    if len(set(names)) < len(names):
        raise UserError(f"two raters are called alike ({', '.join(names)}): give files different names")
    ids = [row.id for row in run.scored]
    table = [[rater.scores.get(at) for at in ids] for rater in raters]
    shared = sum(sum(row[at] is not None for row in table) >= 2 for at in range(len(ids)))
    recipe = {row.id: row.recipe for row in run.scored}
    ranks: dict[tuple[str, str], tuple[float | None, int]] = {}
    for one, other in combinations(raters, 2):
        both = [at for at in ids if at in one.scores and at in other.scores]
        means = [_means(each, both, recipe) for each in (one, other)]
        ranks[one.name, other.name] = (_tau(*means), len(means[0]))
    counts = {rater.name: len(rater.scores.keys() & set(ids)) for rater in raters}
    return Agreement(counts, krippendorff_alpha(table), shared, ranks)


def _means(rater: Rater, ids: Sequence[str], recipe: Mapping[str, str]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for at in ids:
        groups.setdefault(recipe[at], []).append(rater.scores[at])
    return {name: float(np.mean(values)) for name, values in groups.items()}


def _tau(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    try:
        return rank_agreement(one, other)
    except UserError:
        return None


def fitted(run: Run, name: str, rater: Rater, column: str) -> ProxyMap:
    """A proxy's map from a metric of a run to a rater's scores of the same pictures.

    Raises:
        ConfigurationError: the run has no such metric, or none that can be opened again is like it.
        UserError: too few pairs, or nothing to rank.
    """
    metrics = [each for each, identity in run.identities.items() if "metric" in identity]
    if name not in metrics:
        raise ConfigurationError(
            f"{run.folder} has no metric {name!r}{nearest(name, metrics)}: it has {', '.join(metrics) or 'none'}"
        )
    rows = [row for row in run.scored if row.id in rater.scores]
    metric = _Noted(name, run.identities[name])
    scores = [rater.scores[row.id] for row in rows]
    return fit_proxy(metric, [row.values.get(name) for row in rows], scores, column, spec=_spec(run, name))


@dataclass(frozen=True)
class _Noted:
    """A metric as a run notes it."""

    name: str
    identity: Mapping[str, Any]


def _spec(run: Run, name: str) -> str:
    """What makes the metric again: its own name, or the column of that name in a preset. The one whose identity is the
    run's."""
    from ..metrics import PRESETS, make_metrics

    own = PRESETS.get(str(run.benchmark.get("preset")), ())
    of_name = name.rpartition("/")[2] if name.rpartition("/")[0] in PRESETS else name
    columns = [*own, *(each for preset in PRESETS.values() for each in preset)]
    texts = dict.fromkeys([str(each.spec) for each in columns if each.name == of_name] + [name])
    for text in texts:
        try:
            (made,) = make_metrics([text])
        except UserError:
            continue  # an encoder that is not here
        if _same(made.identity, run.identities[name]):
            return text
    raise ConfigurationError(
        f"{name} of {run.folder} cannot be made again here as it was (its encoder is not here, or it had a masker): "
        f"tried {', '.join(texts)}"
    )


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    from ..results import canonical

    return canonical(one) == canonical(other)
