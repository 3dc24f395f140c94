"""The report as one HTML file: nothing is loaded from anywhere, nothing in it can run but its own sorting of tables."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from ..items import Scored
from ..statistics import Estimate
from . import words
from .content import Report
from .drawing import Drawing
from .figures import color
from .kinds import direction
from .text import escaped, escaped_block, number, p_text
from .thumbnails import Thumbnails

FAILURES_SHOWN = 500
LARGE, SMALL, GALLERY = 320, 160, 192  # pixels of the longer side, drawn somewhat smaller for sharp screens


def page(report: Report, headline: Drawing, families: Drawing | None, thumbnails: Thumbnails) -> str:
    """The whole file.

    Args:
        report: what to say.
        headline, families: the figures; None where there is one family only.
        thumbnails: where pictures come from.
    """
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hashed(style)}'; script-src '{_hashed(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escaped(words.title(report))
    parts = [
        _part(
            "what", "Identity against prompt following", words.HEADLINE, _figure(headline, "Headline") + _said(report)
        ),
        _part("table", "All recipes", words.TABLE, _table(report)),
        _part("families", "By family of sentences", words.FAMILIES, _families(report, families)),
        _part("differences", "Paired differences", words.PAIRS, _pairs(report)),
        _part("examples", "Best and worst", words.EXAMPLES, _examples(report, thumbnails)),
        _part("side", "Side by side", words.GALLERY, _gallery(report, thumbnails)),
        _part("failures", "Failures", words.FAILURES, _failures(report)),
        _part("metrics", "What was measured", words.IDENTITIES, _identities(report)),
        _part("making", "How this came about", words.MAKING, _making(report)),
    ]
    notes = list(report.notes)
    if thumbnails.left_out:
        notes.append(f"{thumbnails.left_out} pictures are left out of this page to keep it small; the run has them.")
    if thumbnails.unreadable:
        notes.append(f"{len(thumbnails.unreadable)} pictures could not be read; they are missing on this page.")
    listed = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    warned = f'<div class="notes"><strong>Before you read on</strong><ul>{listed}</ul></div>' if notes else ""
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in parts)
    body = "".join(text for _, _, text in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<h1>{title}</h1>\n<p class="faint">{escaped(words.size(report))}</p>\n'
        f'<p class="lead">{escaped(words.WHAT)}</p>\n<nav>{links}</nav>\n{warned}\n{body}\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _hashed(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _part(anchor: str, heading: str, explanation: str, body: str) -> tuple[str, str, str]:
    lead = escaped(words.filled(explanation))
    return anchor, heading, f'<section id="{anchor}"><h2>{heading}</h2>\n<p>{lead}</p>\n{body}</section>\n'


def _figure(drawing: Drawing, title: str) -> str:
    return f"<figure>{drawing.svg(title)}</figure>"


def _said(report: Report) -> str:
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in words.findings(report)) + "</ul>"


def _grid(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "data sortable") -> str:
    body = "\n".join("<tr>" + "".join(cells) + "</tr>" for cells in rows)
    top = "".join(head)
    table = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _head(text: str, numeric: bool = False) -> str:
    return f'<th scope="col"{" class=n" if numeric else ""}>{escaped(text)}</th>'


def _cell(text: str) -> str:
    return f'<td class="name" data-v="{escaped(text)}">{escaped(text)}</td>'


def _amount(text: str, value: float | None, more: str = "") -> str:
    below = f"<small>{escaped(more)}</small>" if more else ""
    return f'<td class="n" data-v="{"" if value is None else repr(float(value))}">{escaped(text)}{below}</td>'


def _estimate(found: Estimate) -> str:
    within = "" if found.low is None else f"{number(found.low)} to {number(found.high)}"
    missing = f"{found.missing} without" if found.missing else ""
    return _amount(number(found.mean), found.mean, "; ".join(part for part in (within, missing) if part))


def _recipe(name: str, place: int) -> str:
    """A recipe's name with its dot (drawn, as styles inside of elements are not allowed here)."""
    dot = Drawing(24, 24)
    dot.circle(12, 12, 10, color(place), color(place))
    dot.text(12, 12, str(place + 1), 12, "middle", "#ffffff")
    mark = dot.svg(str(place + 1)).replace('width="24" height="24"', 'width="18" height="18"', 1)
    return f'<td class="name" data-v="{escaped(name)}">{mark} {escaped(name)}</td>'


def _table(report: Report) -> str:
    head = [_head("Recipe"), _head("Pictures", True), _head("Failed", True), _head("Front")]
    head += [_head(f"{name}{_axis_of(report, name)}", True) for name in report.metrics]
    head += [_head("Seconds a picture", True), _head("Seconds to learn", True), _head("Size, kB", True)]
    rows = []
    for place, each in enumerate(report.recipes):
        cells = [_recipe(each.recipe, place), _amount(str(each.rows - each.failed), each.rows - each.failed)]
        cells += [_amount(str(each.failed), each.failed), _cell("yes" if each.front else "")]
        cells += [_estimate(each.values[metric]) for metric in report.metrics]
        kilobytes = None if each.size is None else each.size / 1000
        for value, digits in ((each.seconds, 2), (each.learning, 0), (kilobytes, 0)):
            cells.append(_amount(number(value, digits), value))
        rows.append(cells)
    return _grid(head, rows) + f'<p class="faint">{escaped(words.METHOD)}</p>'


def _axis_of(report: Report, metric: str) -> str:
    place = "up" if metric == report.y else "across" if metric == report.x else ""
    lower = "lower is better" if direction(report.identities.get(metric, {})) < 0 else ""
    said = ", ".join(part for part in (place, lower) if part)
    return f" ({said})" if said else ""


def _families(report: Report, drawing: Drawing | None) -> str:
    names = [each.recipe for each in report.recipes]
    tables = []
    for metric, side in report.sides:
        head = [_head("Recipe"), *(_head(family or "no family", True) for family, _ in report.families)]
        rows = [
            [_recipe(name, place), *(_estimate(found[place][side]) for _, found in report.families)]
            for place, name in enumerate(names)
        ]
        tables.append(f"<h3>{escaped(metric)}</h3>" + _grid(head, rows))
    return (_figure(drawing, "By family") if drawing else "") + "".join(tables)


def _pairs(report: Report) -> str:
    if not report.pairs:
        return "<p>There is one recipe only.</p>"
    head = [_head("Metric"), _head("First"), _head("Second"), _head("First minus second", True)]
    head += [_head("First better / equal / worse"), _head("Pairs", True), _head("p", True), _head("p corrected", True)]
    head += [_head("Shown to be higher")]
    rows = []
    for pair in report.pairs:
        found = pair.result
        within = "" if found.low is None else f"{number(found.low)} to {number(found.high)}"
        rows.append(
            [
                _cell(pair.metric),
                _cell(pair.first),
                _cell(pair.second),
                _amount(number(found.difference), found.difference, within),
                _cell(f"{found.wins} / {found.ties} / {found.losses}"),
                _amount(str(found.pairs), found.pairs, f"{found.units} subjects"),
                _amount(p_text(found.p), found.p),
                _amount(p_text(pair.corrected), pair.corrected),
                f'<td class="name won" data-v="{escaped(pair.higher)}">{escaped(pair.higher)}</td>',
            ]
        )
    return _grid(head, rows)


def _picture(thumbnails: Thumbnails, row: Scored | None, side: int) -> str:
    """A row's picture, or what stands there instead."""
    if row is None:
        return '<div class="gone">not asked for</div>'
    if row.image is None:
        return f'<div class="gone">{"failed" if row.failure else "not made yet"}</div>'
    uri = thumbnails.uri(row.image, side)
    if not uri:
        return '<div class="gone">not shown</div>'
    return f'<img src="{uri}" alt="{escaped(f"{row.sentence}, by {row.recipe}, seed {row.seed}")}">'


def _reference(report: Report, thumbnails: Thumbnails, subject: str) -> str:
    paths = report.references.get(subject) or ()
    uri = thumbnails.uri(paths[0], SMALL) if paths else ""
    if not uri:
        return '<div class="gone">no reference</div>'
    return f'<img src="{uri}" alt="{escaped(f"reference of {subject}")}">'


def _examples(report: Report, thumbnails: Thumbnails) -> str:
    parts = []
    for place, each in enumerate(report.examples):
        for what, rows in (("best", each.best), ("worst", each.worst)):
            if rows:
                shown = "".join(_example(report, thumbnails, row) for row in rows)
                parts.append(f'<h3>{place + 1}. {escaped(each.recipe)}: {what}</h3><div class="examples">{shown}</div>')
    return "".join(parts) or "<p>No picture has both values.</p>"


def _example(report: Report, thumbnails: Thumbnails, row: Scored) -> str:
    numbers = ", ".join(f"{name} {number(row.values.get(name))}" for name, _ in report.sides)
    about = f"({row.family}, seed {row.seed})"
    return (
        '<div class="example"><div class="pair">'
        f'<figure class="small">{_reference(report, thumbnails, row.subject)}'
        f"<figcaption>{escaped(row.subject or 'no subject')}</figcaption></figure>"
        f'<figure class="large">{_picture(thumbnails, row, LARGE)}<figcaption>{escaped(numbers)}</figcaption></figure>'
        f'</div><p>{escaped(row.sentence)} <span class="faint">{escaped(about)}</span></p></div>'
    )


def _gallery(report: Report, thumbnails: Thumbnails) -> str:
    if not report.gallery:
        return "<p>There are no pictures.</p>"
    head = [
        _head("Sentence"),
        _head("Reference"),
        *(_head(f"{n + 1}. {e.recipe}") for n, e in enumerate(report.recipes)),
    ]
    rows = []
    for line in report.gallery:
        row = next(each for each in line if each is not None)
        about = f"{row.subject or 'no subject'}, {row.family}, seed {row.seed}"
        cells = [f'<td class="name">{escaped(row.sentence)}<br><span class="faint">{escaped(about)}</span></td>']
        cells.append(f"<td>{_reference(report, thumbnails, row.subject)}</td>")
        cells += [f"<td>{_picture(thumbnails, each, GALLERY)}</td>" for each in line]
        rows.append(cells)
    return _grid(head, rows, "gallery")


def _failures(report: Report) -> str:
    if not report.failures:
        return "<p>None.</p>"
    head = [_head(text) for text in ("Recipe", "Subject", "Sentence", "Seed", "Why")]
    rows = [
        [
            _cell(row.recipe),
            _cell(row.subject),
            _cell(row.sentence),
            _amount(str(row.seed), row.seed),
            _cell(row.failure),
        ]
        for row in report.failures[:FAILURES_SHOWN]
    ]
    more = len(report.failures) - FAILURES_SHOWN
    rest = f"<p>And {more} more; report.json has all of them.</p>" if more > 0 else ""
    return f"<details open><summary>{len(report.failures)} failed</summary>{_grid(head, rows)}{rest}</details>"


def _identities(report: Report) -> str:
    return "".join(
        f"<details><summary>{escaped(name)}</summary>{_json(report.identities.get(name, {}))}</details>"
        for name in report.metrics
    )


def _making(report: Report) -> str:
    benchmark = {key: value for key, value in report.benchmark.items() if key != "subjects"}
    parts: Sequence[tuple[str, Any]] = (
        ("Benchmark", {**benchmark, "subjects": list(report.benchmark.get("subjects") or ())}),
        ("Base model", report.base),
        ("Recipes, with every setting", report.definitions),
        ("Environment", report.environment),
    )
    command = f"<h3>Command</h3><pre>{escaped_block(report.command or 'called from Python')}</pre>"
    return command + "".join(f"<details><summary>{name}</summary>{_json(data)}</details>" for name, data in parts)


def _json(data: Any) -> str:
    return f"<pre>{escaped_block(json.dumps(data, indent=2, ensure_ascii=False, default=str))}</pre>"
