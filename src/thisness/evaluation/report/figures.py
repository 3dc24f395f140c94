"""The picture that decides: one measure against another, with intervals and the front; and its parts by family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..statistics import Estimate
from .drawing import FAINT, GRID, INK, Drawing, text_width
from .text import plain

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5fc0", "#8a6d3b", "#444444", "#b3202c")
# Okabe and Ito's, told apart with any colour vision; the numbers in the dots say the same
LEGEND_LIMIT = 46  # letters
PLOT = 430


class Mark(NamedTuple):
    """One recipe (or one value of a knob) in the picture."""

    name: str
    x: Estimate
    y: Estimate
    front: bool = False
    failed: int = 0


def color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def scatter(marks: Sequence[Mark], x_label: str, y_label: str, *, path: bool = False, stairs: bool = True) -> Drawing:
    """y against x, a numbered dot for each mark, intervals as bars, the front as a dashed staircase.

    Args:
        marks: in the order of their numbers; those without a value are in the legend only.
        x_label, y_label: names of the axes.
        path: join the dots in their order: the values of one knob.
        stairs: draw the front; only where higher is better on both axes.
    """
    shown = [(n, mark) for n, mark in enumerate(marks) if mark.x.mean is not None and mark.y.mean is not None]
    names = [_legend(mark, n) for n, mark in enumerate(marks)]
    legend = max((text_width(name, 13) for name in names), default=0)
    left, top, bottom = 62, 44, 52
    height = top + max(PLOT, 26 * len(marks) + 60) + bottom
    drawing = Drawing(round(left + PLOT + 40 + 30 + 1.12 * legend + 20), height)
    box = (left, top, left + PLOT, height - bottom)
    across = _Scale([mark.x for _, mark in shown], box[0], box[2])
    up = _Scale([mark.y for _, mark in shown], box[3], box[1])
    _axes(drawing, box, across, up, x_label, y_label)
    if path:
        drawing.line([(across(m.x.mean), up(m.y.mean)) for _, m in shown], FAINT, 1.5)
    elif stairs and any(mark.front for _, mark in shown):
        drawing.line(_staircase([m for _, m in shown if m.front], across, up, box), FAINT, 1.5, dash=6)
    for n, mark in shown:
        _bars(drawing, mark, across, up, color(n))
    for n, mark in shown:
        _dot(drawing, across(mark.x.mean), up(mark.y.mean), n, mark.front or path)
    for n, name in enumerate(names):
        y = top + 12 + 26 * n
        _dot(drawing, box[2] + 48, y, n, marks[n].front or path)
        drawing.text(box[2] + 66, y, name)
    if not path:
        y = top + 12 + 26 * len(names) + 8
        drawing.text(box[2] + 40, y, "filled: on the front" + " (dashed)" * stairs, 11, color=FAINT)
    return drawing


def dots(rows: Sequence[str], panels: Sequence[str], values: Sequence[Sequence[Sequence[Estimate]]]) -> Drawing:
    """Families from top to bottom, a panel for each measure, a numbered dot for each recipe.

    Args:
        rows: names of the families.
        panels: name of each panel.
        values: [panel][family][recipe].
    """
    recipes = max((len(row) for panel in values for row in panel), default=0)
    step = max(15 * recipes + 14, 34)
    left = round(max((text_width(plain(name), 13) for name in rows), default=40)) + 30
    width, gap, top = 330, 46, 52
    drawing = Drawing(left + len(panels) * (width + gap), top + step * len(rows) + 40)
    for panel, title in enumerate(panels):
        start = left + panel * (width + gap)
        scale = _Scale([each for row in values[panel] for each in row], start, start + width)
        drawing.text(start, 20, plain(title), 14)
        for tick in scale.ticks:
            drawing.line([(scale(tick), top - 8), (scale(tick), top + step * len(rows))], GRID)
            drawing.text(scale(tick), top + step * len(rows) + 14, scale.said(tick), 11, "middle", FAINT)
        for number, name in enumerate(rows):
            y = top + step * number
            drawing.line([(start, y - 6), (start + width, y - 6)], GRID)
            if panel == 0:
                drawing.text(left - 16, y + step / 2 - 6, plain(name), 13, "end")
            for recipe, found in enumerate(values[panel][number]):
                if found.mean is None:
                    continue
                at = y + 8 + 15 * recipe
                if found.low is not None and found.high is not None:
                    drawing.line([(scale(found.low), at), (scale(found.high), at)], color(recipe), 2)
                _dot(drawing, scale(found.mean), at, recipe, True, 7)
    return drawing


class _Scale:
    """Numbers to pixels along one axis, and where its lines are."""

    def __init__(self, found: Sequence[Estimate], start: float, end: float) -> None:
        values = [v for each in found for v in (each.mean, each.low, each.high) if v is not None] or [0.0, 1.0]
        low, high = min(values), max(values)
        pad = (high - low) * 0.08 or max(abs(high) * 0.05, 0.01)
        self.low, self.high, self.start, self.end = low - pad, high + pad, start, end
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        self.step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / self.step)
        self.ticks = [n * self.step for n in range(first, math.floor(self.high / self.step) + 1)]

    def __call__(self, value: float | None) -> float:
        assert value is not None
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def said(self, tick: float) -> str:
        digits = next((d for d in range(12) if abs(round(self.step, d) - self.step) < self.step * 1e-6), 12)
        return f"{tick if abs(tick) > self.step / 2 else 0.0:.{digits}f}"


def _axes(
    drawing: Drawing, box: tuple[float, float, float, float], across: _Scale, up: _Scale, x_label: str, y_label: str
) -> None:
    left, top, right, bottom = box
    for tick in across.ticks:
        drawing.line([(across(tick), top), (across(tick), bottom)], GRID)
        drawing.text(across(tick), bottom + 14, across.said(tick), 12, "middle", FAINT)
    for tick in up.ticks:
        drawing.line([(left, up(tick)), (right, up(tick))], GRID)
        drawing.text(left - 8, up(tick), up.said(tick), 12, "end", FAINT)
    drawing.line([(left, top), (left, bottom), (right, bottom)], FAINT)
    drawing.text(left, top - 20, plain(y_label), 14)
    drawing.text(right, bottom + 36, plain(x_label), 14, "end")


def _dot(drawing: Drawing, x: float, y: float, number: int, filled: bool, radius: float = 10) -> None:
    drawing.circle(x, y, radius, color(number) if filled else "#ffffff", color(number), 2)
    size = round(radius * (1.2 if number < 9 else 1.0))
    drawing.text(x, y, str(number + 1), size, "middle", "#ffffff" if filled else INK)


def _bars(drawing: Drawing, mark: Mark, across: _Scale, up: _Scale, shade: str) -> None:
    x, y = across(mark.x.mean), up(mark.y.mean)
    if mark.x.low is not None and mark.x.high is not None:
        drawing.line([(across(mark.x.low), y), (across(mark.x.high), y)], shade, 1.5)
    if mark.y.low is not None and mark.y.high is not None:
        drawing.line([(x, up(mark.y.low)), (x, up(mark.y.high))], shade, 1.5)


def _staircase(
    marks: Sequence[Mark], across: _Scale, up: _Scale, box: tuple[float, float, float, float]
) -> list[tuple[float, float]]:
    """The border of what the front beats, from the left edge of the box to its lower edge."""
    places = sorted((across(mark.x.mean), up(mark.y.mean)) for mark in marks)  # to the right, and further down
    points = [(box[0], places[0][1])]
    for x, y in places:
        points += [(points[-1][0], y), (x, y)]
    points.append((places[-1][0], box[3]))
    return points


def _legend(mark: Mark, number: int) -> str:
    name = plain(mark.name)
    name = name if len(name) <= LEGEND_LIMIT else name[: LEGEND_LIMIT - 3] + "..."
    if mark.x.mean is None or mark.y.mean is None:
        name += " (no value)"
    return name + (f" ({mark.failed} failed)" if mark.failed else "")
