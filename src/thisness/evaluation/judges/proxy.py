"""A metric's value as a judge's score: a monotone map from the one to 0 ... 4, fitted to ratings that somebody gave.

It says no more than the metric does. Its columns are called `proxy:...` and never stand for a judge's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtefactError, ConfigurationError, UserError
from ...files import read_json, sha256, write_json
from ..items import Item
from .agreement import kendall_tau
from .column import Column
from .protocol import COLUMNS, TOP

FORMAT = "thisness proxy 1"
FEWEST = 10  # pairs that a map may be fitted to


@dataclass(frozen=True)
class Settings:
    """map: file that `ProxyMap.save` wrote."""

    map: str


@dataclass(frozen=True)
class ProxyMap:
    """A non-decreasing map, linear between its points and constant outside.

    Args:
        metric: what `make_metrics` makes the metric from: its name, with settings where it has any.
        metric_identity: of the metric when the map was fitted.
        column: "cp" or "pf": what the ratings were of.
        values, scores: the points: metric's values, strictly increasing, and scores 0 ... 4, non-decreasing.
        pairs: how many ratings it was fitted to.
        tau: Kendall's tau-b of metric and ratings on those pairs: how little or much the metric knows.
    """

    metric: str
    metric_identity: dict[str, Any]
    column: str
    values: tuple[float, ...]
    scores: tuple[float, ...]
    pairs: int
    tau: float

    def __call__(self, value: float) -> float:
        """A score in [0, 4]."""
        return float(np.interp(value, self.values, self.scores))

    def save(self, path: str | Path) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> ProxyMap:
        """Raises ArtefactError: not readable, or not such a map."""
        data = read_json(path)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ArtefactError(f"{path} is not a proxy's map: expected a file that ProxyMap.save wrote")
        try:
            loaded = cls(**{**data, "values": tuple(data["values"]), "scores": tuple(data["scores"])})
            steps, rises = np.diff(loaded.values), np.diff(loaded.scores)
            whole = len(loaded.values) == len(loaded.scores) > 0 and loaded.column in COLUMNS
            finite = np.isfinite(loaded.values).all() and 0 <= min(loaded.scores) <= max(loaded.scores) <= TOP
            good = whole and finite and (steps > 0).all() and (rises >= 0).all() and isinstance(loaded.metric, str)
        except (TypeError, KeyError, ValueError):
            good = False
        if not good:
            raise ArtefactError(f"{path} is damaged: expected increasing values with non-decreasing scores 0 ... {TOP}")
        return loaded


def isotonic(values: Sequence[float], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The non-decreasing function that is nearest to given points in squared error, by pooling adjacent violators.

    Args:
        values, scores: (n,) each; equal values are pooled first.

    Returns:
        The distinct values, increasing, and the function there.

    Source: M. Ayer et al., An empirical distribution function for sampling with incomplete information (1955).
    """
    distinct, where, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    means = np.bincount(where, weights=np.asarray(scores, float)) / counts
    blocks: list[tuple[float, float, int]] = []  # mean, weight, number of values
    for mean, count in zip(means.tolist(), counts.tolist(), strict=True):
        block = (mean, float(count), 1)
        while blocks and blocks[-1][0] >= block[0]:
            last = blocks.pop()
            weight = last[1] + block[1]
            block = ((last[0] * last[1] + block[0] * block[1]) / weight, weight, last[2] + block[2])
        blocks.append(block)
    return distinct, np.repeat([block[0] for block in blocks], [block[2] for block in blocks])


def fit_proxy(
    metric: Any,
    values: Sequence[float | None],
    scores: Sequence[float | None],
    column: str,
    *,
    spec: str | None = None,
) -> ProxyMap:
    """Fit the map from a metric to a column of ratings.

    Args:
        metric: the metric; its name and identity go with the map.
        values: its values; pairs with None are left out.
        scores: ratings of the same pictures, 0 to 4.
        column: "cp" or "pf".
        spec: what `make_metrics` makes it from, where that is more than its name.

    Raises:
        UserError: fewer than 10 pairs, ratings outside of 0 ... 4, or nothing to rank (all equal).
    """
    if column not in COLUMNS:
        raise ConfigurationError(f"column is {column!r}: expected {' or '.join(COLUMNS)}")
    if len(values) != len(scores):
        raise UserError(f"{len(values)} values and {len(scores)} ratings: expected one rating for each value")
    pairs = [(v, s) for v, s in zip(values, scores, strict=True) if v is not None and s is not None]
    if len(pairs) < FEWEST:
        raise UserError(f"{len(pairs)} ratings with a value of {metric.name}: a proxy needs {FEWEST} or more")
    if not all(np.isfinite(value) and 0 <= score <= TOP for value, score in pairs):
        raise UserError(f"ratings must be 0 ... {TOP} and values finite")
    given, rated = zip(*pairs, strict=True)
    at, level = isotonic(given, rated)
    keep = _corners(level)
    return ProxyMap(
        spec or metric.name, _as_json(metric.identity), column,
        tuple(at[keep].tolist()), tuple(level[keep].tolist()), len(pairs), kendall_tau(given, rated),
    )  # fmt: skip


def make(settings: Settings, context: Any) -> list[Column]:
    """The one column of a map.

    Raises:
        ArtefactError: the map cannot be used.
        ConfigurationError: the metric is another than the map was fitted with.
    """
    from ..metrics import make_metrics

    fitted = ProxyMap.load(settings.map)
    metric = make_metrics([fitted.metric], device=context.device, cache=context.cache)[0]
    return [ProxyColumn(fitted, metric, sha256(Path(settings.map))[:16])]


class ProxyColumn(Column):
    """The mapped metric / 4."""

    def __init__(self, fitted: ProxyMap, metric: Any, file: str) -> None:
        now, then = _as_json(metric.identity), fitted.metric_identity
        if now != then:
            differ = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
            raise ConfigurationError(
                f"this proxy was fitted with another {fitted.metric} ({', '.join(differ)} differ): fit it anew"
            )
        self.fitted, self.metric = fitted, metric
        self.name = f"proxy:{fitted.column}:{metric.name}"
        self.identity = {
            "judge": "proxy", "column": fitted.column, "map": file, "pairs": fitted.pairs, "tau": fitted.tau,
            "metric": metric.identity,
        }  # fmt: skip

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [None if value is None else self.fitted(value) / TOP for value in self.metric.score(items)]


def _as_json(identity: Any) -> dict[str, Any]:
    """As it is after it was in a file: tuples are lists."""
    return dict(json.loads(json.dumps(identity)))


def _corners(levels: np.ndarray) -> np.ndarray:
    """Which points are needed: the ends, and both ends of each level."""
    same = np.concatenate([[False], np.diff(levels) == 0, [False]])
    return ~(same[:-1] & same[1:])
