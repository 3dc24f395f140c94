"""Safe pictures in, pictures with their record out, and sheets that show many at once."""

from .reading import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    MIN_SIDE,
    check_mask,
    load_image,
    load_mask,
    load_with_alpha,
    plain_copy,
)
from .shaping import fit_square
from .sheets import Tile, grid, sheet
from .writing import RECORD_KEY, png_bytes, read_record, save_png

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MIN_SIDE",
    "RECORD_KEY",
    "Tile",
    "check_mask",
    "fit_square",
    "grid",
    "load_image",
    "load_mask",
    "load_with_alpha",
    "plain_copy",
    "png_bytes",
    "read_record",
    "save_png",
    "sheet",
]
