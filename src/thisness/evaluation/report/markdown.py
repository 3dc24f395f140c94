"""The report as Markdown, for a repository: figures lie beside it as PNG."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ...images import Tile, sheet
from ..items import Scored
from ..statistics import Estimate
from . import words
from .content import Report
from .kinds import direction
from .text import escaped_markdown, fenced, number, p_text, plain
from .thumbnails import Thumbnails, missing

FAILURES_SHOWN = 50
TILE = 176


def text(report: Report, figures: Sequence[str]) -> str:
    """The whole file.

    Args:
        report: what to say.
        figures: names of those that lie beside it: "headline.png", "families.png", "examples.png", "side-by-side.png".
    """

    def figure(name: str, what: str) -> str:
        return f"![{what}]({name})" if name in figures else ""

    notes = "\n".join(f"> - {escaped_markdown(note)}" for note in report.notes)
    parts = [
        f"# {escaped_markdown(words.title(report))}",
        escaped_markdown(words.size(report)),
        words.WHAT,
        f"> **Before you read on**\n>\n{notes}" if notes else "",
        "## Identity against prompt following",
        words.filled(words.HEADLINE),
        figure("headline.png", "Identity against prompt following"),
        "\n".join(f"- {escaped_markdown(line)}" for line in words.findings(report)),
        "## All recipes",
        words.filled(words.TABLE),
        _recipes(report),
        words.METHOD,
        "## By family of sentences",
        words.FAMILIES,
        figure("families.png", "Both measures by family"),
        _families(report),
        "## Paired differences",
        words.filled(words.PAIRS),
        _pairs(report),
        "## Best and worst",
        words.EXAMPLES,
        figure("examples.png", "Best and worst pictures of each recipe"),
        "## Side by side",
        words.GALLERY,
        figure("side-by-side.png", "The same subject, sentence and seed by every recipe"),
        "## Failures",
        words.FAILURES,
        _failures(report),
        "## What was measured",
        words.IDENTITIES,
        fenced(_json({name: report.identities.get(name, {}) for name in report.metrics})),
        "## How this came about",
        words.MAKING,
        fenced(report.command or "called from Python"),
        fenced(_json({"base": report.base, "environment": report.environment, "recipes": report.definitions})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def example_sheet(report: Report, thumbnails: Thumbnails) -> Any:
    """A row for each recipe's best and worst, every picture beside its reference; None without pictures."""
    rows, labels = [], []
    for place, each in enumerate(report.examples):
        for what, chosen in (("best", each.best), ("worst", each.worst)):
            if chosen:
                tiles = [tile for row in chosen for tile in _beside_reference(report, thumbnails, row)]
                rows.append(tiles)
                labels.append(f"{place + 1}. {plain(each.recipe)}: {what}")
    return sheet(rows, row_labels=labels, tile=TILE) if rows else None


def gallery_sheet(report: Report, thumbnails: Thumbnails, limit: int = 12) -> Any:
    """The same subject, sentence and seed by every recipe, a row each; None without pictures."""
    rows, labels = [], []
    for line in report.gallery[:limit]:
        first = next(row for row in line if row is not None)
        tiles = [_reference(report, thumbnails, first.subject)]
        tiles += [_tile(thumbnails, row, f"{n + 1}. {plain(report.recipes[n].recipe)}") for n, row in enumerate(line)]
        rows.append(tiles)
        labels.append(plain(first.sentence))
    return sheet(rows, row_labels=labels, tile=TILE) if rows else None


def _beside_reference(report: Report, thumbnails: Thumbnails, row: Scored) -> list[Tile]:
    numbers = ", ".join(f"{name} {number(row.values.get(name))}" for name, _ in report.sides)
    caption = f"{plain(row.sentence)}. {numbers}".replace("\u2212", "-")
    return [_reference(report, thumbnails, row.subject), _tile(thumbnails, row, caption)]


def _reference(report: Report, thumbnails: Thumbnails, subject: str) -> Tile:
    paths = report.references.get(subject) or ()
    image = thumbnails.image(paths[0], TILE) if paths else None
    return Tile(image or missing(TILE), f"reference: {plain(subject)}" if image else "no reference")


def _tile(thumbnails: Thumbnails, row: Scored | None, caption: str) -> Tile:
    image = thumbnails.image(row.image, TILE) if row is not None and row.image is not None else None
    return Tile(image or missing(TILE), caption if image else f"{caption} (no picture)")


def _lines(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    body = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(body)


def _estimate(found: Estimate) -> str:
    if found.mean is None or found.low is None:
        return number(found.mean)
    return f"{number(found.mean)} ({number(found.low)} to {number(found.high)})"


def _metric(report: Report, name: str) -> str:
    lower = direction(report.identities.get(name, {})) < 0
    return escaped_markdown(name) + (" (lower is better)" if lower else "")


def _recipes(report: Report) -> str:
    head = ["", "recipe", "pictures", "failed", "front", *(_metric(report, name) for name in report.metrics)]
    rows = [
        [
            str(place + 1),
            escaped_markdown(each.recipe),
            str(each.rows - each.failed),
            str(each.failed),
            "yes" if each.front else "",
            *(_estimate(each.values[metric]) for metric in report.metrics),
            number(each.seconds, 2),
            number(each.learning, 0),
            number(None if each.size is None else each.size / 1000, 0),
        ]
        for place, each in enumerate(report.recipes)
    ]
    return _lines([*head, "seconds a picture", "seconds to learn", "size, kB"], rows)


def _families(report: Report) -> str:
    tables = []
    for metric, side in report.sides:
        head = [escaped_markdown(metric), *(escaped_markdown(family or "no family") for family, _ in report.families)]
        rows = [
            [f"{place + 1}. {escaped_markdown(each.recipe)}", *(_estimate(f[place][side]) for _, f in report.families)]
            for place, each in enumerate(report.recipes)
        ]
        tables.append(_lines(head, rows))
    return "\n\n".join(tables)


def _pairs(report: Report) -> str:
    if not report.pairs:
        return "There is one recipe only."
    head = ["metric", "first", "second", "first minus second", "better / equal / worse", "pairs", "p", "p corrected",
            "shown to be higher"]  # fmt: skip
    rows = []
    for pair in report.pairs:
        found = pair.result
        within = "" if found.low is None else f" ({number(found.low)} to {number(found.high)})"
        rows.append(
            [
                escaped_markdown(pair.metric),
                escaped_markdown(pair.first),
                escaped_markdown(pair.second),
                number(found.difference) + within,
                f"{found.wins} / {found.ties} / {found.losses}",
                str(found.pairs),
                p_text(found.p).replace("<", "&lt;"),
                p_text(pair.corrected).replace("<", "&lt;"),
                escaped_markdown(pair.higher),
            ]
        )
    return _lines(head, rows)


def _failures(report: Report) -> str:
    if not report.failures:
        return "None."
    rows = [
        [escaped_markdown(part) for part in (row.recipe, row.subject, row.sentence, row.seed, row.failure)]
        for row in report.failures[:FAILURES_SHOWN]
    ]
    more = len(report.failures) - FAILURES_SHOWN
    return _lines(["recipe", "subject", "sentence", "seed", "why"], rows) + (
        f"\n\nAnd {more} more." if more > 0 else ""
    )


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, default=str)
