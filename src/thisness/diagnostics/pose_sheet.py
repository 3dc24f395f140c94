"""Pose bias on one page: the plane with its pictures and peaks, the numbers, and what lies at the peaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .drawing import BLUE, FAINT, GREEN, INK, LINE, ORANGE, VERMILION, Box, Canvas, place_labels, text_width
from .pose_bias import Kind, PoseBias

if TYPE_CHECKING:
    from .pose_experiment import PoseDiagnosis

WIDTH, MARGIN, PLOT = 1200, 30, 640
SIDE = 76  # of a thumbnail
SHOWN = 8  # references with a number and a thumbnail
PER_PEAK = 4
PEAKS = 4  # that get a letter
BANDS = (0.1, 0.4, 0.7)  # quantiles of the generated pictures' own density: 90, 60, 30 % of them lie within
TINTS = ((222, 235, 247), (178, 210, 236), (125, 178, 219))


def draw(found: PoseDiagnosis) -> Image.Image:
    """The page, as an RGB picture 1200 pixels wide."""
    strips = _strips(found)
    canvas = Canvas(WIDTH, 1400)
    y = canvas.paragraph(
        MARGIN, MARGIN - 6, f"{found.prompt}   ({found.subject.name})", WIDTH - 2 * MARGIN, 22, limit=2
    )
    y = canvas.paragraph(MARGIN, y + 2, found.bias.sentence, WIDTH - 2 * MARGIN, 15) + 10
    bottom = _draw_plane(canvas, found.bias, MARGIN, y)
    right = MARGIN + PLOT + 34
    panel = _draw_legend(canvas, found.bias, right, y)
    panel = _draw_numbers(canvas, found.bias, right, panel + 14)
    if found.bias.poses is not None:
        panel = _draw_poses(canvas, found.bias, right, panel + 16)
    bottom = _draw_strips(canvas, strips, max(bottom, panel) + 16)
    return canvas.finished().crop((0, 0, WIDTH, round(bottom)))


def _view(bias: PoseBias) -> tuple[np.ndarray, float]:
    """Lower left corner and side of the square of the plane that is drawn."""
    points = np.concatenate([bias.generated, bias.plain, bias.references])
    low, high = points.min(0), points.max(0)
    side = float((high - low).max()) * 1.16 or 1.0
    return (low + high) / 2 - side / 2, side


def _draw_plane(canvas: Canvas, bias: PoseBias, left: float, top: float) -> float:
    corner, side = _view(bias)

    def at(place: np.ndarray) -> tuple[float, float]:
        x, y = (place - corner) / side
        return left + float(x) * PLOT, top + (1 - float(y)) * PLOT

    canvas.pixels(left, top, _bands(bias, corner, side), PLOT, PLOT)
    canvas.box((left, top, left + PLOT, top + PLOT), outline=LINE)
    for place in bias.plain:
        canvas.diamond(*at(place), 4.5, ORANGE)
    for place in bias.generated:
        canvas.circle(*at(place), 4.2, BLUE, "white", 1)
    for place, tempting in zip(bias.references, bias.tempting, strict=True):
        canvas.star(*at(place), 12, VERMILION if tempting else GREEN)
    peaks = bias.peaks[:PEAKS]
    for each in peaks:
        x, y = at(np.array(each.peak.at))
        for colour, width in (("white", 5), (INK, 2)):
            canvas.line([(x - 6, y - 6), (x + 6, y + 6)], colour, width)
            canvas.line([(x - 6, y + 6), (x + 6, y - 6)], colour, width)
    names = [f"R{number + 1}" for number in range(min(len(bias.references), SHOWN))]
    anchors = [at(place) for place in bias.references[:SHOWN]] + [at(np.array(each.peak.at)) for each in peaks]
    names += [_letter(number) for number in range(len(peaks))]
    sizes = [(text_width(name, 15) + 10, 21.0) for name in names]
    within: Box = (left + 2, top + 2, left + PLOT - 2, top + PLOT - 2)
    for name, anchor, size, middle in zip(names, anchors, sizes, place_labels(anchors, sizes, within, 12), strict=True):
        canvas.line([anchor, middle], INK, 0.5)
        box = (middle[0] - size[0] / 2, middle[1] - size[1] / 2, middle[0] + size[0] / 2, middle[1] + size[1] / 2)
        canvas.box(box, "white", INK, 1, 4)
        canvas.text(middle[0], middle[1], name, 15, INK, "mm")
    across, up = bias.plane.explained
    canvas.text(left, top + PLOT + 5, f"across: first principal component, {across:.0%} of the variance", 12, FAINT)
    canvas.text(left + PLOT, top + PLOT + 5, f"up: second, {up:.0%}", 12, FAINT, "ra")
    length = bias.spread / side * PLOT
    if 16 < length < PLOT / 2:
        x, y = left + PLOT - 14, top + PLOT - 14
        label = text_width("one spread", 12) + 8
        canvas.box((x - max(length, label) - 6, y - 22, x + 6, y + 7), "white")
        canvas.line([(x - length, y), (x, y)], INK, 2)
        canvas.text(x, y - 6, "one spread", 12, INK, "rs")
    return top + PLOT + 22


def _bands(bias: PoseBias, corner: np.ndarray, side: float) -> Image.Image:
    """Regions within which 90, 60 and 30 % of the generated pictures lie, darker where they are denser."""
    levels = np.quantile(bias.density.at(bias.generated), BANDS)
    values = bias.density.grid(corner, corner + side, PLOT // 2)[::-1]
    smooth = Image.fromarray(values.astype(np.float32)).resize((2 * PLOT, 2 * PLOT), Image.Resampling.BICUBIC)
    band = np.digitize(np.asarray(smooth), levels)
    colours = np.array([(255, 255, 255), *TINTS], np.uint8)[band]
    edge = np.zeros(band.shape, bool)
    edge[:, 1:] |= band[:, 1:] != band[:, :-1]
    edge[1:] |= band[1:] != band[:-1]
    colours[edge] = (70, 130, 180)
    return Image.fromarray(colours)


def _draw_legend(canvas: Canvas, bias: PoseBias, x: float, y: float) -> float:
    entries = [("dot", f"{len(bias.generated)} pictures of the subject, and where they are dense")]
    entries += [("diamond", f"{len(bias.plain)} pictures of the plain base, the same sentence")]
    if any(bias.tempting):
        told = not all(bias.tempting) or bias.poses is not None
        entries += [("red", "reference in another pose" if told else "reference")]
    if not all(bias.tempting):
        entries += [("green", "reference in the asked pose")]
    entries += [("cross", "peak of the density")]
    for kind, text in entries:
        middle = y + 10
        if kind == "dot":
            canvas.circle(x + 10, middle, 4.2, BLUE, "white", 1)
        elif kind == "diamond":
            canvas.diamond(x + 10, middle, 4.5, ORANGE)
        elif kind == "cross":
            canvas.line([(x + 5, middle - 5), (x + 15, middle + 5)], INK, 2)
            canvas.line([(x + 5, middle + 5), (x + 15, middle - 5)], INK, 2)
        else:
            canvas.star(x + 10, middle, 10, VERMILION if kind == "red" else GREEN)
        canvas.text(x + 28, middle, text, 14, INK, "lm")
        y += 23
    return y


def _draw_numbers(canvas: Canvas, bias: PoseBias, x: float, y: float) -> float:
    width = WIDTH - MARGIN - x
    canvas.text(x, y, "Answer to the words", 15)
    y += 24
    if bias.answer is None:
        y = canvas.paragraph(x, y, "cannot be measured: the plain base itself hardly moves", width, 13, FAINT)
    else:
        low, high = min(0.0, bias.answer.low), max(1.0, bias.answer.high)

        def at(value: float) -> float:
            return x + 8 + (value - low) / (high - low) * (width - 16)

        canvas.line([(at(low), y + 9), (at(high), y + 9)], LINE, 2)
        for mark in (0.0, 1.0):
            canvas.line([(at(mark), y + 2), (at(mark), y + 16)], FAINT, 1)
        canvas.line([(at(bias.answer.low), y + 9), (at(bias.answer.high), y + 9)], BLUE, 4)
        canvas.circle(at(bias.answer.value), y + 9, 6, BLUE, "white", 1)
        nil, one = text_width("0: not at all", 12) / 2, text_width("1: as the plain base", 12) / 2
        canvas.text(min(max(at(0.0), x + nil), x + width - nil), y + 20, "0: not at all", 12, FAINT, "ma")
        canvas.text(min(at(1.0), x + width - one), y + 20, "1: as the plain base", 12, FAINT, "ma")
        y += 40
    if bias.nearness is not None and bias.plain_nearness is not None:
        y += 6
        canvas.text(x, y, "Nearest to a reference (wanted for identity, too)", 15)
        y += 24
        for name, value, colour in (("subject", bias.nearness, BLUE), ("plain base", bias.plain_nearness, ORANGE)):
            y = _bar(canvas, x, y, width, name, value, f"{value:.0%}", colour)
    y += 6
    canvas.text(x, y, "Peaks", 15)
    y += 22
    for number, each in enumerate(bias.peaks[:PEAKS]):
        target = f"R{each.reference + 1}" if each.reference < SHOWN else f"reference {each.reference + 1}"
        text = f"{_letter(number)}: {each.peak.share:.0%} of the pictures, {each.distance:.1f} spreads from {target}"
        canvas.text(x, y, text, 14)
        y += 20
    return y


def _draw_poses(canvas: Canvas, bias: PoseBias, x: float, y: float) -> float:
    poses = bias.poses
    assert poses is not None
    canvas.text(x, y, "Poses, read from the pictures", 15)
    y += 24
    shown = {poses.asked, *poses.references, *poses.generated, *poses.plain}
    names = sorted(shown, key=lambda name: (name != poses.asked, name not in poses.others, name))
    for name in names:
        mark = " (asked)" if name == poses.asked else " (reference)" if name in poses.others else ""
        asked_of: tuple[tuple[Kind, str, str], ...] = (("generated", name + mark, BLUE), ("plain", "", ORANGE))
        for which, label, colour in asked_of:
            value = poses.share(which, [name])
            y = _bar(canvas, x, y, WIDTH - MARGIN - x, label, value, f"{value:.0%}", colour, 12)
        y += 6
    if poses.neutral and poses.others:
        y += 8
        canvas.text(x, y, "A reference's pose without being asked", 15)
        y += 24
        unasked: tuple[tuple[Kind, str, str], ...] = (
            ("neutral", "subject", BLUE),
            ("plain_neutral", "plain base", ORANGE),
        )
        for which, name, colour in unasked:
            value = poses.share(which, poses.others)
            y = _bar(canvas, x, y, WIDTH - MARGIN - x, name, value, f"{value:.0%}", colour)
    return y


def _bar(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    name: str,
    value: float,
    text: str,
    colour: str,
    height: float = 16,
) -> float:
    start = x + 150
    length = (width - 150 - 44) * value
    canvas.text(x, y + height / 2, name, 13, INK, "lm")
    canvas.line([(start, y), (start, y + height)], FAINT, 1)
    if length > 0:
        canvas.box((start, y + 1, start + length, y + height - 1), colour)
    canvas.text(start + length + 6, y + height / 2, text, 12, INK, "lm")
    return y + height + (4 if height > 12 else 0)


Strip = tuple[str, str, list[tuple[Image.Image, str]]]
"""Heading, colour of the frames, pictures with captions."""


def _strips(found: PoseDiagnosis) -> list[Strip]:
    bias = found.bias
    poses = bias.poses.references if bias.poses is not None else ()
    references = [
        (image, f"R{number + 1} {poses[number] if poses else ''}".strip())
        for number, image in enumerate(found.subject.images[:SHOWN])
    ]
    strips: list[Strip] = [("References", VERMILION, references)]
    generated = found.sets["generated"]
    for number, each in enumerate(bias.peaks[:PEAKS]):
        members = [
            (generated.images[index], f"seed {generated.record['seeds'][index]}")
            for index in each.peak.members[:PER_PEAK]
        ]
        strips.append((f"At peak {_letter(number)}", BLUE, members))
    plain = found.sets["plain"]
    shown = [
        (image, f"seed {seed}") for image, seed in zip(plain.images[:PER_PEAK], plain.record["seeds"], strict=False)
    ]
    strips.append(("Plain base", ORANGE, shown))
    return strips


def _strip_width(strip: Strip) -> float:
    return len(strip[2]) * (SIDE + 8) + 16


def _draw_strips(canvas: Canvas, strips: list[Strip], y: float) -> float:
    """Side by side, in as many lines as they need."""
    x = float(MARGIN)
    height = SIDE + 48
    for strip in strips:
        heading, colour, pictures = strip
        if x > MARGIN and x + _strip_width(strip) - 24 > WIDTH - MARGIN:
            x, y = float(MARGIN), y + height
        canvas.text(x, y, heading, 14)
        for number, (image, caption) in enumerate(pictures):
            left = x + number * (SIDE + 8)
            canvas.thumbnail(left, y + 22, image, SIDE, colour)
            canvas.text(left + SIDE / 2, y + 25 + SIDE, caption, 11, FAINT, "ma")
        x += max(_strip_width(strip), text_width(heading, 14) + 16)
    return y + height + 6


def _letter(number: int) -> str:
    return "ABCDEFGH"[number]
