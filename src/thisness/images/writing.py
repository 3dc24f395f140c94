"""Pictures to disk, with the record that replays them; never with anybody's metadata."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..errors import ImageError, ThisnessError
from ..files import write_bytes
from .reading import MAX_BYTES, plain_copy

RECORD_KEY = "thisness"
MAX_RECORD_BYTES = PngImagePlugin.MAX_TEXT_CHUNK // 2  # what any reader built on PIL still takes


def save_png(image: Image.Image, path: str | Path, record: dict[str, Any] | None = None) -> None:
    """Write a PNG atomically: the pixels, the record, nothing else (no EXIF, no GPS, whatever the image carries).

    Args:
        image: of mode L, RGB or RGBA; other modes become RGB.
        path: ends in .png.
        record: JSON data, kept in the text chunk "thisness".

    Raises:
        ImageError: `path` does not end in .png.
        ThisnessError: the record has over half a MiB.
        OSError: it cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise ImageError(f"{path}: pictures are written as PNG: name a file that ends in .png")
    write_bytes(path, png_bytes(image, record, name=str(path)))


def png_bytes(image: Image.Image, record: dict[str, Any] | None = None, name: str = "a picture") -> bytes:
    """What `save_png` writes. Raises ThisnessError where the record has over half a MiB."""
    info = PngImagePlugin.PngInfo()
    if record is not None:
        text = json.dumps(record, ensure_ascii=True, allow_nan=False)
        if len(text) > MAX_RECORD_BYTES:
            raise ThisnessError(f"the record of {name} has {len(text)} bytes: a PNG takes {MAX_RECORD_BYTES}")
        info.add_text(RECORD_KEY, text)
    pixels = plain_copy(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record that `save_png` put into a picture; None where there is none, also in other formats.

    Raises:
        ImageError: not there, too large, not a picture, or its record is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path} is not there" if not path.exists() else f"{path} is not a file")
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(f"{path} has more than {MAX_BYTES // 2**20} MiB: not a picture of thisness")
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            text = picture.info.get(RECORD_KEY) if picture.format == "PNG" else None
    except Exception as error:
        raise ImageError(f"{path} is not a readable picture ({type(error).__name__})") from error
    if text is None:
        return None
    try:
        record = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ImageError(f"the record in {path} is damaged: the picture cannot be replayed")
    return record
