"""Lines, dots and words, kept as a list and written out twice: as SVG for a page, as pixels for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .text import escaped

INK, FAINT, GRID = "#1d1d1f", "#6e6e73", "#e4e4e0"
SUPERSAMPLING = 2  # PIL does not smooth edges: drawn larger, then scaled down

Point = tuple[float, float]


def text_width(text: str, size: int) -> float:
    """In pixels, as it is drawn into a picture; a browser's font is about as wide."""
    return ImageFont.load_default(size).getlength(text)


@dataclass
class Drawing:
    """A white page of `width` x `height` pixels; (0, 0) is the upper left corner."""

    width: int
    height: int
    parts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def line(self, points: Sequence[Point], color: str = INK, width: float = 1.0, dash: float = 0.0) -> None:
        """Through all points; dash: length of its pieces in pixels, 0 for a whole line."""
        self.parts.append(("line", {"points": list(points), "color": color, "width": width, "dash": dash}))

    def circle(self, x: float, y: float, radius: float, fill: str, stroke: str = INK, width: float = 1.5) -> None:
        circle = {"x": x, "y": y, "radius": radius, "fill": fill, "stroke": stroke, "width": width}
        self.parts.append(("circle", circle))

    def text(self, x: float, y: float, text: str, size: int = 13, anchor: str = "start", color: str = INK) -> None:
        """y is the middle of the letters; anchor: "start", "middle" or "end" of the text lies at x."""
        self.parts.append(("text", {"x": x, "y": y, "text": text, "size": size, "anchor": anchor, "color": color}))

    def svg(self, title: str = "") -> str:
        """An <svg> element without scripts, styles or links; all text escaped."""
        body = "".join(_SVG[kind](**part) for kind, part in self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="sans-serif"><title>{escaped(title)}</title>{body}</svg>'
        )

    def image(self, scale: int = 2) -> Image.Image:
        """The same as an RGB picture of `scale` times the size."""
        factor = scale * SUPERSAMPLING
        page = Image.new("RGB", (self.width * factor, self.height * factor), "white")
        draw = ImageDraw.Draw(page)
        for kind, part in self.parts:
            _PIXELS[kind](draw, factor, **part)
        return page.resize((self.width * scale, self.height * scale), Image.Resampling.BOX)


def _svg_line(points: Sequence[Point], color: str, width: float, dash: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash:g}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashes}/>'


def _svg_circle(x: float, y: float, radius: float, fill: str, stroke: str, width: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{stroke}" stroke-width="{width:g}"/>'
    )


def _svg_text(x: float, y: float, text: str, size: int, anchor: str, color: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y + size * 0.35:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{color}">{escaped(text)}</text>'
    )


def _draw_line(
    draw: ImageDraw.ImageDraw, factor: int, points: Sequence[Point], color: str, width: float, dash: float
) -> None:
    thick = max(round(width * factor), 1)
    scaled = [(x * factor, y * factor) for x, y in points]
    if not dash:
        draw.line(scaled, fill=color, width=thick, joint="curve")
        return
    for (x, y), (right, low) in zip(scaled, scaled[1:], strict=False):
        length = max(((right - x) ** 2 + (low - y) ** 2) ** 0.5, 1e-9)
        step, position = dash * factor, 0.0
        while position < length:
            ends = [position / length, min((position + step) / length, 1.0)]
            draw.line([(x + t * (right - x), y + t * (low - y)) for t in ends], fill=color, width=thick)
            position += 2 * step


def _draw_circle(
    draw: ImageDraw.ImageDraw, factor: int, x: float, y: float, radius: float, fill: str, stroke: str, width: float
) -> None:
    box = [(value * factor) for value in (x - radius, y - radius, x + radius, y + radius)]
    draw.ellipse(box, fill=fill, outline=stroke, width=max(round(width * factor), 1))


def _draw_text(
    draw: ImageDraw.ImageDraw, factor: int, x: float, y: float, text: str, size: int, anchor: str, color: str
) -> None:
    where = {"start": "l", "middle": "m", "end": "r"}[anchor] + "m"
    draw.text((x * factor, y * factor), text, fill=color, font=ImageFont.load_default(size * factor), anchor=where)


_SVG: dict[str, Any] = {"line": _svg_line, "circle": _svg_circle, "text": _svg_text}
_PIXELS: dict[str, Any] = {"line": _draw_line, "circle": _draw_circle, "text": _draw_text}
