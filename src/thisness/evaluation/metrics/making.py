"""From what the user asks for to metrics that are ready."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigurationError, ThisnessError, nearest, raise_all
from ...recipe import Spec, build_settings, parse_spec, settings_problems
from ..cache import FeatureCache
from .base import METRICS, Masker, Metric, Tools


class Column(NamedTuple):
    """A column's name and the metric behind it."""

    name: str
    spec: Spec


def _read() -> tuple[dict[str, tuple[Column, ...]], dict[str, str]]:
    said = json.loads(resources.files(__package__).joinpath("presets.json").read_text(encoding="utf-8"))
    columns = {
        preset: tuple(Column(name, parse_spec(spec, "metric")) for name, spec in facts["columns"].items())
        for preset, facts in said.items()
    }
    return columns, {preset: facts["about"] for preset, facts in said.items()}


PRESETS, PRESET_NOTES = _read()
"""Columns of each preset; and in a sentence whose protocol it is, and where it had to assume something."""


def make_metrics(
    names: str | Sequence[str], *, device: str = "cpu", cache: FeatureCache | str | Path | None = None,
    masker: Masker | None = None, batch_size: int = 16,
) -> list[Metric]:  # fmt: skip
    """Metrics by name, by preset, or both. Their encoders are opened here, so that what is missing is known at once.

    Args:
        names: a preset ("thisness"), a metric ("dino-i"), a metric with settings
            ("dino-i:encoder=dinov2-base,pooling=mean"); or several. Columns that are the same in all that decides
            them are there once; where two presets use one name for different things, the later becomes "PRESET/NAME".
        device: where encoders run.
        cache: vectors that were computed before; or a folder for them; None keeps them in memory.
        masker: finds the subject in made pictures that have no mask.
        batch_size: pictures encoded at once.

    Returns:
        Metrics in the order asked for.

    Raises:
        ConfigurationError: unknown names (with the nearest), settings that do not fit: all at once.
        UserError: an encoder cannot be had.
    """
    given = [names] if isinstance(names, str) else list(names)
    columns = _columns(given)
    tools = Tools(device, cache if isinstance(cache, FeatureCache) else FeatureCache(cache), masker, batch_size)
    metrics: dict[str, Metric] = {}
    for preset, (name, spec) in columns:
        kind = METRICS[spec.name]
        metric = kind(name, build_settings(spec.values, kind.Settings, spec.name), tools)
        if name in metrics and metrics[name].identity != metric.identity:
            metric.name = f"{preset}/{name}" if preset else str(spec)
        metrics.setdefault(metric.name, metric)
    return list(metrics.values())


def _columns(given: Sequence[str]) -> list[tuple[str, Column]]:
    """Preset ("" for none) and column of everything asked for."""
    columns: list[tuple[str, Column]] = []
    problems = [] if given else ["no metric is asked for: name a preset or a metric"]
    for text in given:
        if text in PRESETS:
            columns += [(text, column) for column in PRESETS[text]]
            continue
        try:
            spec = parse_spec(text, "metric")
        except ThisnessError as error:
            problems.append(str(error))
            continue
        if spec.name not in METRICS:
            known = [*METRICS, *PRESETS]
            problems.append(
                f"unknown metric {spec.name!r}{nearest(spec.name, known)}: "
                f"metrics are {', '.join(METRICS)}; presets are {', '.join(PRESETS)}"
            )
            continue
        if wrong := settings_problems(spec.values, METRICS[spec.name].Settings, spec.name):
            problems += wrong
        columns.append(("", Column(str(spec), spec)))
    raise_all(problems, ConfigurationError)
    return columns
