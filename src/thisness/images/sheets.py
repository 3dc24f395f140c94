"""Contact sheets: rows of captioned tiles, the references in a block at the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PANEL, LINE = "#1d1d1f", "#6e6e73", "#f3f3f0", "#d8d8d4"
MAX_LINES = 4
ELLIPSIS = "..."  # the built-in font draws every letter of ASCII


class Tile(NamedTuple):
    """A picture and what is written under it."""

    image: Image.Image
    caption: str = ""


class _Style(NamedTuple):
    """Measures in pixels, all derived from the side of a tile."""

    tile: int
    gap: int
    margin: int
    text: ImageFont.FreeTypeFont | ImageFont.ImageFont
    head: ImageFont.FreeTypeFont | ImageFont.ImageFont
    line: int  # height of one line of text
    head_line: int


def grid(tiles: Sequence[Tile | Image.Image], columns: int) -> list[list[Tile | Image.Image]]:
    """Tiles in rows of `columns`; the last one may be shorter."""
    return [list(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]


def sheet(
    rows: Sequence[Sequence[Tile | Image.Image | tuple[Image.Image, str]]],
    *,
    references: Sequence[Tile | Image.Image | tuple[Image.Image, str]] = (),
    heading: str = "References",
    title: str = "",
    row_labels: Sequence[str] = (),
    tile: int = 192,
) -> Image.Image:
    """Many pictures on one white page that a stranger understands.

    Args:
        rows: pictures, or pictures with captions; `grid` makes rows of a plain list. Pictures of any size and shape
            are scaled to fit their tile, never cropped.
        references: shown in a block of their own at the left, under `heading`.
        heading: over the references.
        title: over everything.
        row_labels: one for each row, at the left of it.
        tile: side of a tile in pixels, at least 32.

    Returns:
        An RGB picture.

    Raises:
        ValueError: no picture at all, a tile too small, or labels for another number of rows.
    """
    lines = [[_as_tile(entry) for entry in row] for row in rows if row]
    left = [_as_tile(entry) for entry in references]
    if not lines and not left:
        raise ValueError("a sheet needs at least one picture")
    if tile < 32:
        raise ValueError(f"tile is {tile}: at least 32 pixels")
    if row_labels and len(row_labels) != len(lines):
        raise ValueError(f"{len(row_labels)} row labels for {len(lines)} rows")
    style = _style(tile)
    labels = _draw_labels(row_labels, style)
    body = _draw_rows(lines, labels, style)
    block = _draw_references(left, heading, body.height if body else 0, style)
    return _assemble(title, block, body, style)


def _as_tile(entry: Tile | Image.Image | tuple[Image.Image, str]) -> Tile:
    return Tile(entry) if isinstance(entry, Image.Image) else Tile(*entry)


def _style(tile: int) -> _Style:
    size = max(round(tile * 0.075), 12)
    text, head = ImageFont.load_default(size), ImageFont.load_default(round(size * 1.2))
    return _Style(tile, max(tile // 14, 6), max(tile // 8, 10), text, head, round(size * 1.35), round(size * 1.9))


def wrap(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, limit: int = MAX_LINES
) -> list[str]:
    """Lines of at most `width` pixels; words too long for one are broken, the rest after `limit` lines is cut (...)."""
    lines: list[str] = []
    current = ""
    for word in text.split():
        joined = f"{current} {word}".strip()
        if font.getlength(joined) <= width:
            current = joined
            continue
        if current:
            lines.append(current)
        while len(word) > 1 and font.getlength(word) > width:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        current = word
    if current:
        lines.append(current)
    if len(lines) > limit:
        last = lines[limit - 1]
        while last and font.getlength(last + ELLIPSIS) > width:
            last = last[:-1].rstrip()
        lines = [*lines[: limit - 1], last + ELLIPSIS]
    return lines


def _put_tile(canvas: Image.Image, tile: Tile, x: int, y: int, side: int, style: _Style) -> None:
    """A picture scaled into a square, in a thin frame, with its caption under it."""
    image = tile.image
    if image.mode != "RGB":
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    scale = side / max(image.size)
    width, height = (max(round(length * scale), 1) for length in image.size)
    whole = scale >= 2 and scale == int(scale)  # small pictures keep their pixels where they can
    image = image.resize((width, height), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
    at = (x + (side - width) // 2, y + (side - height) // 2)
    canvas.paste(image, at)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((at[0] - 1, at[1] - 1, at[0] + width, at[1] + height), outline=LINE)
    for row, line in enumerate(wrap(tile.caption, style.text, side)):
        draw.text((x, y + side + style.gap // 2 + row * style.line), line, font=style.text, fill=INK)


def _caption_height(tiles: Sequence[Tile], side: int, style: _Style) -> int:
    most = max((len(wrap(tile.caption, style.text, side)) for tile in tiles), default=0)
    return style.gap // 2 + most * style.line if most else 0


def _draw_labels(labels: Sequence[str], style: _Style) -> list[Image.Image]:
    """Each label as a picture, as wide as the widest, at most a tile wide."""
    if not any(labels):
        return []
    wrapped = [wrap(label, style.head, style.tile) for label in labels]
    width = round(max(style.head.getlength(line) for lines in wrapped for line in lines)) + style.gap
    drawn = []
    for lines in wrapped:
        picture = Image.new("RGB", (width, max(len(lines), 1) * style.head_line), "white")
        for row, line in enumerate(lines):
            ImageDraw.Draw(picture).text((0, row * style.head_line), line, font=style.head, fill=INK)
        drawn.append(picture)
    return drawn


def _draw_rows(rows: Sequence[Sequence[Tile]], labels: Sequence[Image.Image], style: _Style) -> Image.Image | None:
    if not rows:
        return None
    step = style.tile + style.gap
    indent = labels[0].width + style.gap if labels else 0
    heights = [style.tile + _caption_height(row, style.tile, style) + style.gap for row in rows]
    width = indent + max(len(row) for row in rows) * step - style.gap
    canvas = Image.new("RGB", (width + 2, sum(heights) - style.gap + 2), "white")
    y = 1
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if labels:
            canvas.paste(labels[number], (0, y + (style.tile - labels[number].height) // 2))
        for column, tile in enumerate(row):
            _put_tile(canvas, tile, 1 + indent + column * step, y, style.tile, style)
        y += height
    return canvas


def _draw_references(tiles: Sequence[Tile], heading: str, height: int, style: _Style) -> Image.Image | None:
    """The panel of references, about as high as the rows beside it."""
    if not tiles:
        return None
    pad = style.gap
    top = pad + (style.head_line if heading else 0)
    columns, side = _arrangement(tiles, height - top - pad, style)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [side + _caption_height(row, side, style) + style.gap for row in rows]
    title = wrap(heading, style.head, 10_000, 1)
    title_width = round(style.head.getlength(title[0])) if title else 0
    width = max(columns * (side + style.gap) - style.gap, title_width) + 2 * pad
    canvas = Image.new("RGB", (width, max(top + sum(heights) - style.gap + pad, height)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle((0, 0, canvas.width - 1, canvas.height - 1), radius=pad, fill=PANEL)
    if title:
        draw.text((pad, pad // 2), title[0], font=style.head, fill=INK)
    y = top
    for row, row_height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            _put_tile(canvas, tile, pad + column * (side + style.gap), y, side, style)
        y += row_height
    return canvas


def _arrangement(tiles: Sequence[Tile], height: int, style: _Style) -> tuple[int, int]:
    """Columns and side of the tiles that use a given height best: the largest tiles, then the fewest columns."""
    if height < style.tile:
        return min(len(tiles), 4), style.tile
    best = (1, 0)
    for columns in range(1, len(tiles) + 1):
        rows = -(-len(tiles) // columns)
        side = min((height + style.gap) // rows - style.gap, style.tile)
        while side > 16 and rows * (side + style.gap + _caption_height(tiles, side, style)) - style.gap > height:
            side -= 1
        wide = columns * (side + style.gap) > 2.2 * style.tile
        if side > best[1] and not (wide and best[1] >= style.tile // 3):
            best = (columns, side)
    return best


def _assemble(title: str, block: Image.Image | None, body: Image.Image | None, style: _Style) -> Image.Image:
    parts = [part for part in (block, body) if part is not None]
    width = sum(part.width for part in parts) + style.margin * (len(parts) - 1)
    title_lines = wrap(title, style.head, max(width, style.tile)) if title else []
    top = style.margin + (len(title_lines) * style.head_line + style.gap // 2 if title_lines else 0)
    size = (width + 2 * style.margin, top + max(part.height for part in parts) + style.margin)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(title_lines):
        draw.text((style.margin, style.margin + row * style.head_line), line, font=style.head, fill=INK)
    x = style.margin
    for part in parts:
        page.paste(part, (x, top))
        x += part.width + style.margin
    return page
