"""The report as JSON: every number of the pages, for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..items import Scored
from ..statistics import CONFIDENCE, EXACT_UP_TO, FLIPS, RESAMPLES
from .content import LEVEL, Report

FORMAT, VERSION = "thisness-report", 1


def data(report: Report) -> dict[str, Any]:
    """JSON data; names of pictures are relative to the run's folder, so that it can be moved."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "benchmark": dict(report.benchmark),
        "base": dict(report.base),
        "command": report.command,
        "environment": dict(report.environment),
        "metrics": {name: dict(identity) for name, identity in report.identities.items()},
        "definitions": {name: dict(each) for name, each in report.definitions.items()},
        "axes": {"x": report.x, "y": report.y},
        "statistics": {
            "mean": "over subjects of each subject's mean",
            "interval": f"percentile bootstrap over subjects, {RESAMPLES} resamples, {CONFIDENCE}",
            "p": f"two-sided sign flips over subjects, exact up to {EXACT_UP_TO}, above {FLIPS} random ones",
            "corrected": f"Holm over all pairs of one metric; level {LEVEL}",
            "failed": "left out of means, counted",
        },
        "subjects": report.subjects,
        "notes": list(report.notes),
        "recipes": [
            {**asdict(each), "values": {name: asdict(found) for name, found in each.values.items()}}
            for each in report.recipes
        ],
        "families": [
            {
                "family": family,
                "recipes": {
                    each.recipe: {"x": asdict(x), "y": asdict(y)}
                    for each, (x, y) in zip(report.recipes, found, strict=True)
                },
            }
            for family, found in report.families
        ],
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "metric": pair.metric,
                **asdict(pair.result),
                "p_corrected": pair.corrected,
                "higher": pair.higher,
            }
            for pair in report.pairs
        ],
        "examples": {
            each.recipe: {"best": [row.id for row in each.best], "worst": [row.id for row in each.worst]}
            for each in report.examples
        },
        "failures": [_failure(row) for row in report.failures],
    }


def _failure(row: Scored) -> dict[str, Any]:
    return {
        "id": row.id,
        "recipe": row.recipe,
        "subject": row.subject,
        "case": row.case,
        "seed": row.seed,
        "sentence": row.sentence,
        "failure": row.failure,
    }
