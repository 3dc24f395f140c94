"""Semantic collapse on one page: what happened to the word's row, and to the sentences with the word."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..evaluation.report.drawing import FAINT, GRID, INK, Drawing, text_width
from ..evaluation.report.text import escaped
from .collapse import HIGH_NORM, LOW_COSINE, ORDER, Value

if TYPE_CHECKING:
    from .collapse_experiment import CollapseDiagnosis

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
SHADES = (BLUE, "#56b4e9", "#7f5fc0", "#cc79a7")
WIDTH, PANEL, TALL, GAP, LEFT = 1180, 300, 190, 80, 62
ROWS_SHOWN = 4
BINS = 200  # of the histogram of norms
VERDICTS = {"collapsed": ORANGE, "not collapsed": GREEN, "cannot tell": FAINT}


class Line(NamedTuple):
    """Values over x, with their intervals."""

    x: list[float]
    values: list[Value]
    color: str
    name: str = ""


class Level(NamedTuple):
    """A line across the panel that something is compared with."""

    value: float
    name: str


def draw(found: CollapseDiagnosis) -> Drawing:
    """The page without its tables."""
    sentences = [_wrapped(text, 15 if n == 0 else 13, WIDTH - 40) for n, text in enumerate(found.sentences)]
    top = 66 + sum(len(lines) * (21 if n == 0 else 18) + 6 for n, lines in enumerate(sentences))
    drawing = Drawing(WIDTH, top + 2 * (TALL + 118))
    word = found.verdicts[0].word if found.touched else "not collapsed"
    drawing.text(20, 26, f"{found.concept['name']}, learned by {found.concept['method']}: ", 20)
    start = 20 + text_width(f"{found.concept['name']}, learned by {found.concept['method']}:  ", 20)
    drawing.text(start, 26, word, 20, color=VERDICTS[word])
    y = 58.0
    for n, lines in enumerate(sentences):
        for text in lines:
            drawing.text(20, y, text, 15 if n == 0 else 13, color=INK if n == 0 else FAINT)
            y += 21 if n == 0 else 18
        y += 6
    panels = [*_row_panels(found), *_set_panels(found)]
    for number, panel in enumerate(panels):
        x = LEFT + (number % 3) * (PANEL + GAP)
        panel(drawing, x, top + 34 + (number // 3) * (TALL + 118))
    return drawing


Panel = Callable[[Drawing, float, float], None]


def _row_panels(found: CollapseDiagnosis) -> list[Panel]:
    """Norm and angle of the rows, over the steps if they were recorded, and the vocabulary's norms."""
    if not found.rows:
        return [_said("The word has no row of its own", "Nothing was learned in the vocabulary: there", "is no norm or "
                      "angle to look at. What counts", "is how sentences are encoded: see below.")] * 1 + [
            _empty, _empty
        ]  # fmt: skip
    encoder = next(iter(found.rows))
    known, rows = found.known[encoder], found.rows[encoder]
    low, high = (float(known.norms.quantile(share)) for share in (0.01, 0.99))
    away = torch.rad2deg(known.cosines.clamp(-1, 1).acos())
    middle = float(away.median())
    steps = [step for step, each in found.row_times.items() if encoder in each]
    count = min(len(rows.norm), ROWS_SHOWN)

    def over(pick: Callable[[str, int], list[float]], what: str) -> list[Line]:
        return [
            Line([float(step) for step in steps], [Value(v) for v in pick(what, n)], SHADES[n],
                 f"row {n + 1}" if count > 1 else "")
            for n in range(count)
        ]  # fmt: skip

    def pick(what: str, n: int) -> list[float]:
        return [getattr(found.row_times[step][encoder], what)[n] for step in steps]

    noun = _short(found.anchor)
    histogram = _histogram_panel(found, encoder)
    if not steps:
        lines = [Line([float(n)], [Value(rows.angle[n])], SHADES[n % 4], f"row {n + 1}") for n in range(count)]
        return [
            histogram,
            _curve_panel(
                "Angle to the class word (dashed: all words)", lines, [Level(middle, "median"), Level(0, noun)], ""
            ),
            _empty,
        ]
    return [
        _curve_panel("Norm of the word (dashed: of all words)", over(pick, "norm"),
                     [Level(known.anchor_norm, noun), Level(high, "99 %"), Level(low, "1 %")]),
        _curve_panel("Angle to the class word (dashed: all words)", over(pick, "angle"),
                     [Level(middle, "median"), Level(0, noun)]),
        histogram,
    ]  # fmt: skip


def _set_panels(found: CollapseDiagnosis) -> list[Panel]:
    """The three numbers of the verdict: over the steps, else beside the class word."""
    name, noun = found.concept["name"], f'"{found.anchor}"'
    titles = {
        ("between", "paired"): f"Away from sentences with {noun}",
        ("within", "l2"): "Variety: how far sentences lie apart",
        ("to_simple", "l2"): f"Distance to sentences that only show {name}",
    }
    classes = {"between": None, "within": ("class_within", "l2"), "to_simple": ("class_to_simple", "l2")}
    panels: list[Panel] = []
    for (pair, distance), title in titles.items():
        reference = classes[pair]
        if found.times:
            steps = sorted(found.times)
            line = Line([float(step) for step in steps], [found.times[step][pair][distance] for step in steps], BLUE)
            first = found.times[steps[0]]
            levels = [Level(first[reference[0]][reference[1]].value if reference else 0, _short(found.anchor))]
            panels.append(_curve_panel(title, [line], levels))
        else:
            ours = found.distances[pair][distance]
            theirs = found.distances[reference[0]][reference[1]] if reference else Value(0.0)
            lines = [Line([0.0], [theirs], FAINT, found.anchor), Line([1.0], [ours], BLUE, name)]
            panels.append(_curve_panel(title, lines, [], ""))
    return panels


def _curve_panel(title: str, lines: Sequence[Line], levels: Sequence[Level], across: str = "step") -> Panel:
    def panel(drawing: Drawing, left: float, top: float) -> None:
        ends = [v for line in lines for each in line.values for v in (each.value, each.low, each.high) if v is not None]
        ends += [level.value for level in levels]
        xs = [x for line in lines for x in line.x]
        low, high = min(ends), max(ends)
        pad = (high - low) * 0.08 or max(abs(high) * 0.1, 0.01)
        low, high = low - pad, high + pad
        first, last = min(xs), max(xs)
        space = 0.0 if across else 0.6
        first, last = first - space, (last if last > first else first + 1) + space

        def at(x: float, y: float) -> tuple[float, float]:
            return left + (x - first) / (last - first) * PANEL, top + TALL - (y - low) / (high - low) * TALL

        drawing.text(left - 40, top - 18, title, 14)
        for tick, said in _ticks(low, high):
            drawing.line([at(first, tick), at(last, tick)], GRID)
            drawing.text(left - 8, at(first, tick)[1], said, 11, "end", FAINT)
        taken: list[float] = []
        for level in sorted(levels, key=lambda each: each.value):
            spot = at(first, level.value)[1]
            drawing.line([at(first, level.value), at(last, level.value)], FAINT, 1.2, dash=5)
            while any(abs(spot - other) < 12 for other in taken):
                spot -= 4
            taken.append(spot)
            drawing.text(left + PANEL + 4, spot, level.name, 11, "start", FAINT)
        for line in lines:
            points = [at(x, each.value) for x, each in zip(line.x, line.values, strict=True)]
            for x, each in zip(line.x, line.values, strict=True):
                if each.low is not None and each.high is not None:
                    drawing.line([at(x, each.low), at(x, each.high)], line.color, 1)
            if len(points) > 1:
                drawing.line(points, line.color, 2)
            for point in points:
                drawing.circle(*point, 3 if len(points) > 1 else 5, line.color, "#ffffff", 1)
        drawing.line([(left, top), (left, top + TALL), (left + PANEL, top + TALL)], FAINT)
        if across:
            for tick, said in _ticks(first, last):
                drawing.text(at(tick, low)[0], top + TALL + 14, said, 11, "middle", FAINT)
            drawing.text(left + PANEL, top + TALL + 32, across, 12, "end", FAINT)
            named = [line for line in lines if line.name]
            for n, line in enumerate(named):
                drawing.circle(left + 4 + 70 * n, top + TALL + 32, 4, line.color, line.color)
                drawing.text(left + 13 + 70 * n, top + TALL + 32, line.name, 12)
        else:
            for line in lines:
                drawing.text(at(line.x[0], low)[0], top + TALL + 16, line.name, 12, "middle")

    return panel


def _histogram_panel(found: CollapseDiagnosis, encoder: str) -> Panel:
    known, rows = found.known[encoder], found.rows[encoder]

    def panel(drawing: Drawing, left: float, top: float) -> None:
        marked = {**{said: value for said, value in known.marks.items()}, found.anchor: known.anchor_norm}
        own = rows.norm[:ROWS_SHOWN]
        high = max(float(known.norms.max()), *marked.values(), *own) * 1.03
        low = min(float(known.norms.min()), *own) * 0.97
        counts = torch.histc(known.norms, BINS, low, high)
        tallest = float(counts.max().clamp(min=1)) ** 0.5

        def at(x: float) -> float:
            return left + (x - low) / max(high - low, 1e-9) * PANEL

        drawing.text(left - 40, top - 18, f"Norms of the {len(known.norms)} words that the encoder knows", 14)
        for n, value in enumerate(counts.tolist()):
            if value:
                x = left + (n + 0.5) / BINS * PANEL
                tall = math.sqrt(value) / tallest * TALL * 0.55  # square root: a few odd words must be seen, too
                drawing.line([(x, top + TALL), (x, top + TALL - tall)], "#b9c4cc", PANEL / BINS)
        drawing.line([(left, top + TALL), (left + PANEL, top + TALL)], FAINT)
        for tick, said in _ticks(low, high):
            drawing.text(at(tick), top + TALL + 14, said, 11, "middle", FAINT)
        entries = [(at(value), said, FAINT) for said, value in marked.items()]
        entries += [(at(v), found.concept["name"] + (f" {n + 1}" if len(own) > 1 else ""), SHADES[n])
                    for n, v in enumerate(own)]  # fmt: skip
        lanes: list[float] = []
        for x, said, color in sorted(entries, key=lambda entry: entry[0]):
            width = text_width(said, 11) + 8
            start = min(max(x - width / 2, left - 20), left + PANEL + 30 - width)
            lane = next((n for n, end in enumerate(lanes) if end <= start), len(lanes))
            lanes[lane:] = [start + width]
            y = top + 4 + 13 * lane
            drawing.line([(x, y + 7), (x, top + TALL)], color, 1.6 if color != FAINT else 0.8)
            drawing.text(start + 4, y, said, 11, "start", INK if color == FAINT else color)
        drawing.text(left + PANEL, top + TALL + 32, "norm; heights: square root of the number", 12, "end", FAINT)

    return panel


def _short(word: str) -> str:
    """Fits beside a panel."""
    return f'"{word}"' if len(word) <= 6 else f"{word[:6]}\u2026"


def _said(title: str, *lines: str) -> Panel:
    def panel(drawing: Drawing, left: float, top: float) -> None:
        drawing.text(left - 40, top - 18, title, 14)
        for n, text in enumerate(lines):
            drawing.text(left - 40, top + 14 + 20 * n, text, 13, color=FAINT)

    return panel


def _empty(drawing: Drawing, left: float, top: float) -> None:
    pass


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    digits = next((n for n in range(12) if abs(round(step, n) - step) < step * 1e-6), 12)
    numbers = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(tick, f"{tick if abs(tick) > step / 2 else 0.0:.{digits}f}") for tick in numbers]


def _wrapped(text: str, size: int, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


# --- the page ---

WHAT = (
    "A learned word has collapsed when a sentence with it says little more than the word alone: the other words are no "
    "longer read. Three things tell of it. The sentences leave those with the class word; they lie closer together, "
    "whatever they say; and they come nearer to sentences that only show the subject. All are distances between "
    "sentences as the text encoder gives them to the denoiser, and the verdict gives them in shares of the distance at "
    "which the sentences lie apart with the class word. "
    "Collapsed: all three are surely there. Not collapsed: one surely is not. Bars are 95 % intervals over sentences."
)
NAMES = {
    "between": "word and class word", "within": "within the word's", "to_simple": "word and its simple sentences",
    "simple_to_class": "simple sentences and class word", "class_within": "within the class word's",
    "class_to_simple": "class word and its simple sentences",
}  # fmt: skip
DISTANCES = {
    "l2": "L2, all pairs", "l2_with_itself": "L2, as the official code", "hausdorff": "Hausdorff",
    "mahalanobis": "Mahalanobis", "kl": "KL of cosines", "paired": "L2, sentence by sentence",
    "paired_cosine": "cosine, sentence by sentence", "spread_of_cosines": "spread of cosines",
}  # fmt: skip


def page(found: CollapseDiagnosis, drawing: Drawing) -> str:
    """One HTML file that loads nothing and runs nothing."""
    style = files("thisness.evaluation.report").joinpath("page.css").read_text(encoding="utf-8")
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{hashed}'; base-uri 'none'; form-action 'none'"
    title = escaped(f"Semantic collapse of {found.concept['name']}")
    notes = "".join(f"<li>{escaped(note)}</li>" for note in found.notes)
    warned = f'<div class="notes"><strong>Notes</strong><ul>{notes}</ul></div>' if notes else ""
    said = "".join(f'<p class="lead">{escaped(text)}</p>' for text in (found.conclusion, *found.sentences))
    shown = "".join(f"<li>{escaped(text)}</li>" for kind in ("context", "simple") for text in found.prompts[kind][:8])
    how = "; ".join(f"{key} {value}" for key, value in found.settings.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{said}{warned}\n"
        f"<p>{escaped(WHAT)}</p>\n<figure>{drawing.svg('Semantic collapse')}</figure>\n"
        f"<h2>Distances between sets of sentences</h2>\n{_distances(found)}\n"
        f"<h2>The word's rows</h2>\n{_rows(found)}\n<h2>Position by position</h2>\n{_drift(found)}\n"
        f"<h2>How it was measured</h2>\n<p>{escaped(how)}. Base: {escaped(found.base['name'])}, "
        f"{escaped(found.base['signature'])}. Some of the sentences:</p>\n<ul>{shown}</ul>\n</body>\n</html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escaped(text)}</th>' for text in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="data"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: Value | None) -> str:
    if value is None:
        return "n/a"
    within = "" if value.low is None else f"<small>{value.low:.4g} to {value.high:.4g}</small>"
    return f"{value.value:.4g} {within}"


def _distances(found: CollapseDiagnosis) -> str:
    steps = sorted(found.times)
    moments = (
        [(f"step {steps[0]}", found.times[steps[0]]), (f"step {steps[-1]}", found.times[steps[-1]])] if steps else []
    )
    rows = []
    for pair, group in found.distances.items():
        for name, value in group.items():
            cells = [_number(times[pair].get(name)) for _, times in moments]
            rows.append([escaped(NAMES[pair]), escaped(DISTANCES[name]), *cells, _number(value)])
    order = "; ".join(f"{NAMES[pair]}: d({a}, {b})" for pair, (a, b) in ORDER.items())
    head = ["between", "distance", *(f"{name}, recorded sentences" for name, _ in moments), "finished, all sentences"]
    return (
        f"{_table(head, rows)}<p>Order of arguments, which matters for Mahalanobis and KL: {escaped(order)}. Numbers "
        "of different sets of sentences (recorded, all) cannot be compared with each other.</p>"
    )


def _rows(found: CollapseDiagnosis) -> str:
    if not found.rows:
        return "<p>The word has no row of its own in the vocabulary.</p>"
    rows = [
        [escaped(name), str(n + 1), f"{own.norm[n]:.4g}", f"{own.percentile[n]:.1f} %", f"{own.angle[n]:.1f}",
         f"{own.cosine[n]:.3f}", f"{own.log_ratio[n]:+.3f}"]
        for name, own in found.rows.items() for n in range(len(own.norm))
    ]  # fmt: skip
    head = ["encoder", "row", "norm", "larger than", "angle to class word", "cosine", "log of norm / class word's"]
    return (
        _table(head, rows) + f"<p>Of note: above {HIGH_NORM} % of the vocabulary, or a cosine below {LOW_COSINE}.</p>"
    )


def _drift(found: CollapseDiagnosis) -> str:
    rows = []
    for said, group in (("word beside class word", found.concept_gap), ("encoder as learned beside untouched",
                                                                        found.encoder_drift or {})):  # fmt: skip
        for place, own in group.items():
            rows.append([escaped(said), place, f"{own['l2']:.4g}", f"{own['cosine']:.4f}", f"{own['norm_ratio']:.4f}"])
    note = "" if found.encoder_drift is not None else "<p>Weights of the text encoder were not learned.</p>"
    return _table(["which", "place", "L2", "cosine", "ratio of norms"], rows) + note
