"""Pictures and masks from strangers' files: an allow-list of formats, caps before decoding, one known mode after it.

What comes in, and what becomes of it:

    PNG, JPEG (also the multi-picture JPEG of phones: its first picture), WebP; any other format is refused
    over 64 MiB, over 50 million pixels, a side over 16,384 or under 16 pixels: refused before it is decoded
    truncated, damaged, animated: refused
    16 bits a channel, palette, grey, CMYK: to 8-bit RGB; a colour profile is applied (to sRGB), then dropped
    transparency: over white for the picture, and as a mask where a mask is asked for
    EXIF rotation: applied; then all metadata (EXIF, GPS, comments) are left behind
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384
MIN_SIDE = 16
INSIDE = 0.5  # a pixel of a mask from here on belongs to the subject


def load_image(source: str | Path | bytes) -> Image.Image:
    """A picture as 8-bit RGB, upright, without metadata, transparency laid over white.

    Args:
        source: a file, or the content of one.

    Raises:
        ImageError: one line; see the table at the top of this file.
    """
    return load_with_alpha(source)[0]


def load_with_alpha(source: str | Path | bytes) -> tuple[Image.Image, np.ndarray | None]:
    """As `load_image`, and the transparency.

    Returns:
        The picture, and its opacity (H, W) float32 in [0, 1], None where it is opaque everywhere.
    """
    picture = _decoded(source)
    alpha = _alpha(picture)
    rgb = _to_rgb(picture)
    if alpha is not None:
        white = Image.new("RGB", rgb.size, "white")
        rgb = Image.composite(rgb, white, Image.fromarray(np.round(alpha * 255).astype(np.uint8)))
    return plain_copy(rgb), alpha


def load_mask(source: str | Path | bytes, size: tuple[int, int], *, resize: bool = False) -> np.ndarray:
    """A mask: 1 the subject, 0 the rest. Grey is kept as it is (a soft edge); what is transparent is outside.

    Args:
        source: a file, or the content of one. Its brightness is the mask.
        size: (width, height) of the picture that it belongs to.
        resize: bring a mask of another size to that of the picture, instead of refusing it.

    Returns:
        (H, W) float32 in [0, 1]. A mask that is white everywhere is allowed: the whole picture is the subject.

    Raises:
        ImageError: of another size; or empty, that is no pixel reaches half brightness; or as `load_image`.
    """
    picture = _decoded(source)
    alpha = _alpha(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        picture = _eight_bits(picture)
    mask = np.asarray(picture.convert("RGB").convert("L"), np.float32) / 255
    if alpha is not None:
        mask = mask * alpha
    return check_mask(mask, size, resize=resize, name=_name(source))


def check_mask(mask: np.ndarray, size: tuple[int, int], *, resize: bool = False, name: str = "mask") -> np.ndarray:
    """A mask that fits its picture and is not empty. Arguments, return and errors as `load_mask`.

    Args:
        mask: (H, W), values in [0, 1] or booleans.
    """
    mask = np.asarray(mask, np.float32)
    if mask.ndim != 2 or mask.size == 0:
        raise ImageError(f"{name}: a mask has two axes (height, width), not the shape {mask.shape}")
    if not np.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
        raise ImageError(f"{name}: the values of a mask lie between 0 and 1")
    found = (mask.shape[1], mask.shape[0])
    if found != tuple(size):
        if not resize:
            raise ImageError(
                f"{name}: the mask is {found[0]}x{found[1]} but the picture is {size[0]}x{size[1]}: "
                "pass a mask of the picture's size, or --resize-mask (resize_mask=True)"
            )
        resized = Image.fromarray(mask).resize((size[0], size[1]), Image.Resampling.BILINEAR)
        mask = np.clip(np.asarray(resized, np.float32), 0, 1)
    if not (mask >= INSIDE).any():
        raise ImageError(f"{name}: the mask is empty (nothing in it is white): paint the subject white, or remove it")
    return mask


def plain_copy(image: Image.Image) -> Image.Image:
    """The pixels and nothing else: no EXIF, no comments, no profile, no file behind it."""
    return Image.frombytes(image.mode, image.size, image.tobytes())


def _name(source: str | Path | bytes) -> str:
    return "the picture" if isinstance(source, bytes) else str(source)


def _decoded(source: str | Path | bytes) -> Image.Image:
    """Checked, decoded and upright, in whatever mode the file has."""
    name = _name(source)
    data = source if isinstance(source, bytes) else _content(Path(source))
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"{name} has {len(data) / 2**20:.0f} MiB: at most {MAX_BYTES // 2**20} are read; make it smaller"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken metadata, which are dropped anyway
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = _opened(data, name)
        try:
            picture.load()
        except Exception as error:
            raise ImageError(f"{name} is truncated or damaged ({error}): copy or export it again") from error
        try:
            return ImageOps.exif_transpose(picture)
        except Exception:  # unreadable EXIF data do not make the pixels unusable
            return picture


def _opened(data: bytes, name: str) -> Image.Image:
    """Identified by its header and within the caps, not yet decoded."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels: make it smaller") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a readable PNG, JPEG or WebP picture: save it as one of these") from None
    except Exception as error:  # whatever a decoder throws at hostile bytes is a bad picture
        raise ImageError(f"{name} is damaged ({error}): export it again") from error
    _check_size(picture.size, name)
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{name} is an animation of {frames} frames: save the one that you want as a picture")
    return picture


def _content(path: Path) -> bytes:
    """The bytes of a file, at most one more than are allowed."""
    if not path.is_file():
        raise ImageError(f"{path} is not there" if not path.exists() else f"{path} is not a file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(
                f"{path} has {size / 2**20:.0f} MiB: at most {MAX_BYTES // 2**20} are read; make it smaller"
            )
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror})") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} is {width}x{height}: more than {MAX_PIXELS // 10**6} million pixels; make it smaller")
    if max(size) > MAX_SIDE:
        raise ImageError(f"{name} is {width}x{height}: a side has at most {MAX_SIDE} pixels; make it smaller")
    if min(size) < MIN_SIDE:
        raise ImageError(f"{name} is {width}x{height}: a side has at least {MIN_SIDE} pixels; use a larger picture")


def _alpha(picture: Image.Image) -> np.ndarray | None:
    """Opacity (H, W) in [0, 1], or None where nothing is transparent."""
    if not picture.has_transparency_data:
        return None
    if picture.mode.startswith("I;16"):  # grey of 16 bits with one transparent value
        values = np.asarray(picture)
        opaque = values != picture.info["transparency"]
        return None if opaque.all() else opaque.astype(np.float32)
    bands = picture.convert("RGBA").getchannel("A")
    alpha = np.asarray(bands, np.float32) / 255
    return None if alpha.min() == 1 else alpha


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _eight_bits(picture).convert("RGB")
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("RGB", "RGBA", "L", "CMYK"):
        try:
            return _to_srgb(picture.convert("RGB") if picture.mode == "RGBA" else picture, profile)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile: the numbers are taken as sRGB, as other programs do
    return picture.convert("RGBA").convert("RGB") if picture.has_transparency_data else picture.convert("RGB")


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "sRGB" in (ImageCms.getProfileDescription(source) or "") and picture.mode == "RGB":
        return picture
    converted: Any = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return converted


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, of the range 0 to 65535, to 8-bit grey: scaled, where PIL would clip."""
    values = np.asarray(picture).astype(np.float32)
    return Image.fromarray(np.round(np.clip(values, 0, 65535) / 257).astype(np.uint8))
