"""Attention maps beside their pictures on one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .drawing import FAINT, INK, LINE, SKY, Canvas, heat, text_width

if TYPE_CHECKING:
    from .attention_maps import AttentionMaps, PictureMaps

TILE, GAP, MARGIN, TOP = 176, 14, 28, 30
LABEL = 74  # width of the seeds' column
ACROSS = 6  # maps in a line
MOST = 12  # pictures on the page
GLOW = 0.75  # of the map over the greyed picture


def draw(found: AttentionMaps) -> Image.Image:
    """Each picture, its mask, and for each word a map as multiples of its own mean, all on one scale: a word that is
    read everywhere alike is of one colour, however faintly its map varies."""
    words = [word.text for word in found.words]
    across = min(len(words), ACROSS)
    lines = -(-len(words) // ACROSS)
    width = max(2 * MARGIN + LABEL + (across + 2) * (TILE + GAP) - GAP, 640)
    row_height = lines * (TILE + 44)
    pictures = found.pictures[:MOST]
    canvas = Canvas(width, 220 + len(pictures) * row_height)
    first, last, count = found.steps
    y = canvas.paragraph(
        MARGIN, MARGIN - 8, f"Where each word is read: {found.generation.record['sentence']}", width - 2 * MARGIN, 20
    )
    side = found.pictures[0].maps.shape[1]
    told = (
        f"Cross-attention of {len(found.sites)} layers, brought to {side}x{side}; "
        f"steps {first} to {last} of 0 to {count - 1}. "
        "Each map is drawn as multiples of its own mean. In the subject: share of the map inside the mask; "
        "x: that share over the mask's share of the picture, 1 for a map that knows nothing of it. "
        f"Mask: {_mask_text(found)}."
    )
    y = canvas.paragraph(MARGIN, y + 2, told, width - 2 * MARGIN, 13, FAINT) + 10
    top = _top(found)
    _draw_scale(canvas, MARGIN, y, top)
    y += 34
    for number, each in enumerate(pictures):
        _draw_row(canvas, found, number, each, words, y, top)
        y += row_height
    if len(found.pictures) > MOST:
        canvas.text(MARGIN, y, f"and {len(found.pictures) - MOST} more: attention.json", 13, FAINT)
        y += 20
    return canvas.finished().crop((0, 0, width, round(y + MARGIN - 20)))


def _mask_text(found: AttentionMaps) -> str:
    kinds = {each.mask_from for each in found.pictures}
    if "given" in kinds:
        return "the file that was given"
    if "otsu" in kinds:
        return "the subject's own map, thresholded (Otsu): for the subject's words the numbers are high by construction"
    return "none"


def _top(found: AttentionMaps) -> float:
    """Multiple of a map's mean that is drawn brightest: nearly the largest on the page."""
    multiples = [values / values.mean() for each in found.pictures for values in each.maps]
    return max(float(np.quantile(np.stack(multiples), 0.98)), 2.0)


def _draw_scale(canvas: Canvas, x: float, y: float, top: float) -> None:
    ramp = Image.fromarray(heat(np.tile(np.linspace(0, 1, 128), (4, 1))).astype(np.uint8))
    canvas.text(x, y + 8, "not read", 12, FAINT, "lm")
    start = x + text_width("not read", 12) + 8
    canvas.pixels(start, y + 1, ramp, 150, 14)
    canvas.box((start, y + 1, start + 150, y + 15), outline=LINE)
    canvas.text(start + 158, y + 8, f"{top:.1f} x the mean, or more", 12, FAINT, "lm")


def _draw_row(
    canvas: Canvas, found: AttentionMaps, number: int, each: PictureMaps, words: list[str], y: float, top: float
) -> None:
    picture = found.generation.images[number]
    canvas.text(MARGIN, y + TILE / 2, f"seed {each.seed}", 14, INK, "lm")
    left = MARGIN + LABEL
    canvas.pixels(left, y, picture, TILE, TILE)
    canvas.text(left + TILE / 2, y + TILE + 3, "picture", 15, INK, "ma")
    left += TILE + GAP
    if each.mask is not None:
        canvas.pixels(left, y, _masked(picture, each.mask), TILE, TILE)
        canvas.text(left + TILE / 2, y + TILE + 3, "mask", 15, INK, "ma")
        canvas.text(left + TILE / 2, y + TILE + 21, f"{each.mask.mean():.0%} of the picture", 12, FAINT, "ma")
    else:
        canvas.box((left, y, left + TILE, y + TILE), outline=LINE)
        canvas.text(left + TILE / 2, y + TILE / 2, "no mask", 13, FAINT, "mm")
    left += TILE + GAP
    for index, (word, values, numbers) in enumerate(zip(words, each.maps, each.numbers, strict=True)):
        x, above = left + index % ACROSS * (TILE + GAP), y + index // ACROSS * (TILE + 44)
        canvas.pixels(x, above, _overlay(picture, values, top), TILE, TILE)
        canvas.text(x + TILE / 2, above + TILE + 3, _fitted(word, TILE), 15, INK, "ma")
        if numbers.inside is not None:
            said = f"{numbers.inside:.0%} in the subject, x {numbers.ratio:.1f}"
            canvas.text(x + TILE / 2, above + TILE + 21, said, 12, FAINT, "ma")


def _overlay(picture: Image.Image, values: np.ndarray, top: float) -> Image.Image:
    """A map over its picture in grey. top: the multiple of its mean that is brightest."""
    size = (2 * TILE, 2 * TILE)
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.LANCZOS), float)[..., None]
    relative = values / values.mean() / top
    large = Image.fromarray(relative.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    colours = heat(np.clip(np.asarray(large), 0, 1))
    return Image.fromarray((GLOW * colours + (1 - GLOW) * grey).round().astype(np.uint8))


def _masked(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture, pale outside the mask, with the mask's edge drawn."""
    size = (2 * TILE, 2 * TILE)
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), float)
    inside = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.NEAREST))[..., None]
    pixels = pixels * (0.25 + 0.75 * inside) + 255 * 0.75 * (1 - inside)
    hard = inside[..., 0] >= 0.5
    edge = np.zeros(hard.shape, bool)
    edge[:, 2:] |= hard[:, 2:] != hard[:, :-2]
    edge[2:] |= hard[2:] != hard[:-2]
    pixels[edge] = tuple(int(SKY[at : at + 2], 16) for at in (1, 3, 5))
    return Image.fromarray(pixels.round().astype(np.uint8))


def _fitted(text: str, width: float) -> str:
    while len(text) > 4 and text_width(text, 15) > width:
        text = text[:-4] + "..."
    return text
