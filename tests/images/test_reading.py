"""Oracle: every kind of strange picture gives the right pixels, or one line (SAFETY 7, 8); metadata stay behind."""

import io
import os
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from thisness.errors import ImageError
from thisness.images import MAX_BYTES, check_mask, load_image, load_mask, load_with_alpha


def gradient(width=40, height=24):
    """RGB picture whose pixels all differ."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 6, y * 10, x + y], -1).astype(np.uint8))


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width, height, depth=8, colour=2, chunks=()):
    """A PNG that claims a size and holds next to nothing."""
    data = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data


def refused(source, match, load=load_image):
    with pytest.raises(ImageError, match=match) as caught:
        load(source)
    assert "\n" not in str(caught.value)


# --- formats ---


@pytest.mark.parametrize("format, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_are_exact(tmp_path, format, options):
    path = tmp_path / "a"
    path.write_bytes(encoded(gradient(), format, **options))
    loaded = load_image(path)
    assert loaded.mode == "RGB" and np.array_equal(loaded, gradient())


def test_jpeg_is_close():
    loaded = load_image(encoded(gradient(), "JPEG", quality=95, subsampling=0))
    assert np.abs(np.asarray(loaded, float) - np.asarray(gradient(), float)).mean() < 3


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, format):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(gradient(), format))
    refused(path, "not a readable PNG, JPEG or WebP picture")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture(data):
    refused(data, "not a readable PNG|damaged")


def test_what_is_no_file(tmp_path):
    refused(tmp_path, "is not a file")
    refused(tmp_path / "none.png", "is not there")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "is not a file")  # and does not wait for ever


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated(format, part):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, format)
    refused(data[: int(len(data) * part)], "truncated or damaged|damaged|not a readable")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animated(format):
    frames = [gradient(), Image.new("RGB", (40, 24), "red")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    refused(data, "an animation of 2 frames")


def test_phones_put_several_pictures_into_a_jpeg():
    data = encoded(gradient(), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24), "red")], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.abs(np.asarray(load_image(data), float) - np.asarray(gradient(), float)).mean() < 8


# --- caps ---


@pytest.mark.parametrize("side", [8_000, 10_000, 20_000, 60_000])
def test_decompression_bombs_cost_nothing(side, recwarn):
    data = png(side, side)
    tracemalloc.start()
    started = time.perf_counter()
    refused(data, "million pixels")
    assert time.perf_counter() - started < 0.5
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert not recwarn.list  # an error, not a warning


def test_compressed_text_bombs():
    bomb = b"Comment\0\0" + zlib.compress(b"a" * 50_000_000)
    refused(png(64, 64, chunks=[(b"zTXt", bomb)]), "damaged")


@pytest.mark.parametrize("size", [(20_000, 16), (16, 20_000)])
def test_long_sides(size):
    refused(encoded(Image.new("L", size)), f"{size[0]}x{size[1]}: a side has at most 16384 pixels")


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 15)])
def test_short_sides(size):
    refused(encoded(Image.new("RGB", size)), f"{size[0]}x{size[1]}: a side has at least 16 pixels")


def test_too_many_bytes(tmp_path):
    refused(b"\0" * (MAX_BYTES + 1), "has 64 MiB: at most 64")
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(10 * MAX_BYTES)  # sparse: takes no room
    refused(tmp_path / "a.png", "has 640 MiB")


# --- modes ---


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.repeat(np.linspace(0, 65535, 256)[None], 16, 0).astype(np.uint16)
    loaded = np.asarray(load_image(encoded(Image.fromarray(values))))
    assert np.array_equal(loaded, np.repeat(np.repeat(np.arange(256, dtype=np.uint8)[None], 16, 0)[..., None], 3, 2))


def test_sixteen_bits_in_colour():
    row = b"\0" + struct.pack(">3H", 65535, 32896, 257) * 16
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 16)),
        (b"IEND", b""),
    ):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    assert load_image(data).getpixel((3, 3)) == (255, 128, 1)


def test_palette_and_bilevel_and_grey():
    colours = Image.new("RGB", (32, 16), (10, 200, 30))
    colours.paste((250, 0, 90), (0, 0, 16, 16))
    palette = encoded(colours.quantize(2))
    assert Image.open(io.BytesIO(palette)).mode == "P"
    assert np.array_equal(load_image(palette), colours)
    assert load_image(encoded(Image.new("1", (16, 16), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(Image.new("L", (16, 16), 77))).getpixel((0, 0)) == (77, 77, 77)


def test_cmyk():
    loaded = load_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    red, green, blue = loaded.getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15


def test_transparency_goes_over_white_and_becomes_a_mask():
    image = gradient().convert("RGBA")
    alpha = np.zeros((24, 40), np.uint8)
    alpha[4:20, 10:30] = 255
    alpha[0, 0] = 51
    image.putalpha(Image.fromarray(alpha))
    loaded, mask = load_with_alpha(encoded(image))
    pixels = np.asarray(loaded)
    assert np.array_equal(pixels[4:20, 10:30], np.asarray(gradient())[4:20, 10:30])
    assert (pixels[alpha == 0] == 255).all()
    assert np.abs(pixels[0, 0] - (0.8 * 255)).max() <= 1  # one fifth of black over white
    assert np.array_equal(mask, (alpha / 255).astype(np.float32))
    opaque = gradient().convert("RGBA")
    assert load_with_alpha(encoded(opaque))[1] is None


def test_transparency_in_a_palette_and_in_grey():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 8, 16))
    loaded, mask = load_with_alpha(encoded(image, transparency=0))
    assert loaded.getpixel((0, 0)) == (200, 100, 50) and loaded.getpixel((12, 0)) == (255, 255, 255)
    assert mask[0, 0] == 1 and mask[0, 12] == 0
    loaded, mask = load_with_alpha(
        encoded(Image.merge("LA", (Image.new("L", (16, 16), 9), Image.new("L", (16, 16), 0))))
    )
    assert loaded.getpixel((0, 0)) == (255, 255, 255) and (mask == 0).all()


# --- metadata ---


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_by_exif_is_applied(orientation):
    upright = gradient()
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera held that way stores
    stored = upright.transpose(Image.Transpose(inverse[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_image(encoded(stored, exif=exif)), upright)


def private(format="JPEG"):
    """A picture with a camera's name, a comment and a position in it."""
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    exif.get_ifd(0x8825)[2] = (51.0, 28.0, 38.0)
    exif.get_ifd(0x8825)[0x1D] = "SECRETDATE"
    return encoded(gradient(), format, exif=exif, comment="SECRETCOMMENT", quality=95)


def test_metadata_are_left_behind():
    assert private().count(b"SECRET") == 3
    loaded = load_image(private())
    assert loaded.info == {} and not loaded.getexif()
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        assert b"SECRET" not in encoded(loaded, format)


def test_broken_exif_does_not_make_a_picture_unusable(recwarn):
    assert np.array_equal(load_image(encoded(gradient(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), gradient())
    assert not recwarn.list


def swapped_profile():
    """The profile of sRGB with red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    at = {bytes(data[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    description = struct.unpack_from(">II", data, at[b"desc"] + 4)
    body = slice(description[0], sum(description))
    data[body] = data[body].replace(b"s\0R\0G\0B", b"t\0B\0G\0R").replace(b"sRGB", b"tBGR")
    return bytes(data)


def test_colour_profile_is_applied():
    red = load_image(encoded(Image.new("RGB", (16, 16), (0, 0, 255)), icc_profile=swapped_profile()))
    assert np.abs(np.asarray(red, int)[0, 0] - [255, 0, 0]).max() <= 2
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(load_image(encoded(gradient(), icc_profile=srgb)), gradient())
    assert np.array_equal(load_image(encoded(gradient(), icc_profile=b"garbage")), gradient())


# --- masks ---


def mask_file(values):
    return encoded(Image.fromarray(np.asarray(values, np.uint8)))


def test_grey_mask_is_kept_as_it_is():
    values = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (16, 1))
    mask = load_mask(mask_file(values), (values.shape[1], 16))
    assert mask.dtype == np.float32 and np.abs(mask - values / 255).max() < 1e-6


def test_full_mask_is_allowed_and_empty_ones_are_not():
    assert (load_mask(mask_file(np.full((16, 16), 255)), (16, 16)) == 1).all()
    for value in (0, 127):
        refused(mask_file(np.full((16, 16), value)), "the mask is empty", lambda data: load_mask(data, (16, 16)))


def test_mask_of_another_size():
    values = np.zeros((16, 32))
    values[:, 16:] = 255
    refused(
        mask_file(values),
        r"the mask is 32x16 but the picture is 64x32: .*--resize-mask",
        lambda d: load_mask(d, (64, 32)),
    )
    mask = load_mask(mask_file(values), (64, 32), resize=True)
    assert mask.shape == (32, 64) and (mask[:, :30] == 0).all() and (mask[:, 34:] == 1).all()


def test_masks_in_colour_with_transparency_or_sixteen_bits():
    white = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    white.paste((255, 255, 255, 255), (0, 0, 8, 16))
    assert np.array_equal(load_mask(encoded(white), (16, 16)), np.repeat([[1.0] * 8 + [0.0] * 8], 16, 0))
    deep = np.full((16, 16), 65535, np.uint16)
    deep[:, 8:] = 32896
    mask = load_mask(encoded(Image.fromarray(deep)), (16, 16))
    assert mask[0, 0] == 1 and abs(mask[0, 8] - 128 / 255) < 1e-6


def test_masks_from_arrays():
    assert check_mask(np.ones((4, 6), bool), (6, 4)).dtype == np.float32
    for bad in (
        np.ones((4, 6, 1)),
        np.full((4, 6), 2.0),
        np.full((4, 6), np.nan),
        np.full((4, 6), -0.1),
        np.ones((0, 6)),
    ):
        with pytest.raises(ImageError, match="mask"):
            check_mask(bad, (6, 4))
