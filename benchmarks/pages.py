"""Cells of the pages that the experiments write: means over toys with their intervals, differences with their tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from thisness.evaluation.items import Scored


def _of(rows: Sequence[Scored], family: str | None) -> list[Scored]:
    return [row for row in rows if family is None or row.family == family]


def cell(rows: Sequence[Scored], family: str | None, metric: str) -> str:
    """ "0.83 (0.75-0.91)"; "-" where nothing has a value."""
    from thisness.evaluation.statistics import estimate

    found = estimate(_of(rows, family), metric)
    if found.mean is None:
        return "-"
    return f"{found.mean:.2f}" if found.low is None else f"{found.mean:.2f} ({found.low:.2f}-{found.high:.2f})"


def compared(one: Sequence[Scored], other: Sequence[Scored], family: str | None, metric: str) -> str:
    """How much higher the first is on the same cases and seeds: "+0.12 (p .03)"."""
    from thisness.evaluation.statistics import paired

    found = paired(_of(one, family), _of(other, family), metric)
    return "-" if found.difference is None else f"{found.difference:+.2f} (p {found.p:.2f})"


def save_figure(image: Image, path: str | Path) -> None:
    """Write a page's figure small, since git keeps its bytes for good.

    Args:
        image: of any mode.
        path: .png for 256 colours of its own, dithered: a third of the bytes, lines stay sharp; .webp for many pictures
            on one sheet: a third of that again, with a loss that is hardly seen.

    Raises:
        OSError: it cannot be written.
    """
    import io

    from PIL import Image as images

    from thisness.files import write_bytes

    whole = image.convert("RGB")
    if Path(path).suffix == ".webp":
        whole.save(buffer := io.BytesIO(), "WEBP", quality=80, method=6)
        write_bytes(path, buffer.getvalue())
        return
    few = whole.quantize(palette=whole.quantize(256), dither=images.Dither.FLOYDSTEINBERG)
    few.save(buffer := io.BytesIO(), "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
Lines = Mapping[str, Mapping[float, Sequence[float]]]
"""By name: at each x the values, whose order is the same everywhere."""


def curves(panels: Mapping[str, Lines], figure: Path, title: str, across: str = "step") -> None:
    """Draw panels beside each other: thin lines for each value, thick ones for their mean."""
    from thisness.evaluation.report.drawing import FAINT, GRID, Drawing

    wide, tall, left, top, gap = 250, 170, 58, 76, 78
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    drawing = Drawing(left + len(panels) * (wide + gap), top + tall + 56)
    drawing.text(left, 24, title, 16)
    for number, name in enumerate(names):
        drawing.text(left + 190 * number, 48, name, 13, color=COLOURS[number % len(COLOURS)])
    for number, (panel, lines) in enumerate(panels.items()):
        x0 = left + number * (wide + gap)
        xs = [x for by in lines.values() for x in by]
        values = [value for by in lines.values() for at in by.values() for value in at]
        low, high, first, last = min(values), max(values), min(xs), max(xs)

        def at(x: float, y: float, x0=x0, low=low, high=high, first=first, last=last) -> tuple[float, float]:
            across = (x - first) / ((last - first) or 1)
            return x0 + across * wide, top + tall - (y - low) / ((high - low) or 1) * tall

        for value in (low, (low + high) / 2, high):
            drawing.line([at(first, value), at(last, value)], GRID)
            drawing.text(x0 - 6, at(first, value)[1] + 4, f"{value:.2f}", 11, "end", FAINT)
        for x in (first, last):
            drawing.text(at(x, low)[0], top + tall + 18, f"{x:g}", 11, "middle", FAINT)
        drawing.text(x0, top - 10, panel, 12)
        drawing.text(x0 + wide / 2, top + tall + 36, across, 11, "middle", FAINT)
        for name, by in lines.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            for one in range(min(len(each) for each in by.values())):
                drawing.line([at(x, by[x][one]) for x in sorted(by)], colour, 0.5)
            drawing.line([at(x, fmean(by[x])) for x in sorted(by)], colour, 3)
    save_figure(drawing.image(), figure)
