"""Oracle: the record comes back as it went in, the pixels too, and nothing else is in the file."""

import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from thisness.errors import ImageError, ThisnessError
from thisness.images import load_image, read_record, save_png

RECORD = {"prompt": "ein Bär <b>&\n\u2603", "seeds": [0, 2**62], "guidance": 7.5, "nested": {"none": None}}


def noise(mode="RGB"):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, *channels), np.uint8))


def chunks(path):
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        found.append(kind.decode())
        at += 12 + length
    return found


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pixels_and_record_come_back(tmp_path, mode):
    path = tmp_path / "a.png"
    save_png(noise(mode), path, RECORD)
    assert np.array_equal(Image.open(path), noise(mode))
    assert read_record(path) == RECORD
    assert set(chunks(path)) == {"IHDR", "tEXt", "IDAT", "IEND"}
    save_png(noise(mode), path)
    assert read_record(path) is None and set(chunks(path)) == {"IHDR", "IDAT", "IEND"}


def test_what_a_picture_carries_is_not_written(tmp_path):
    image = noise()
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    image.info.update(exif=exif.tobytes(), icc_profile=b"SECRET", comment=b"SECRET", dpi=(72, 72), xmp=b"SECRET")
    image.encoderinfo = {"exif": exif.tobytes()}
    save_png(image, tmp_path / "a.png", {"seed": 1})
    assert b"SECRET" not in (tmp_path / "a.png").read_bytes()
    assert set(chunks(tmp_path / "a.png")) == {"IHDR", "tEXt", "IDAT", "IEND"}


def test_record_is_not_a_fault_of_a_picture_that_is_used_again(tmp_path):
    save_png(noise(), tmp_path / "a.png", RECORD)
    save_png(load_image(tmp_path / "a.png"), tmp_path / "b.png")
    assert read_record(tmp_path / "b.png") is None


def test_bounds(tmp_path):
    with pytest.raises(ImageError, match="ends in .png"):
        save_png(noise(), tmp_path / "a.jpg")
    with pytest.raises(ThisnessError, match="bytes: a PNG takes"):
        save_png(noise(), tmp_path / "a.png", {"a": "x" * 600_000})
    with pytest.raises(ValueError):
        save_png(noise(), tmp_path / "a.png", {"loss": float("inf")})
    assert not (tmp_path / "a.png").exists()
    save_png(noise(), tmp_path / "a.png", {"a": "x" * 500_000})
    assert len(read_record(tmp_path / "a.png")["a"]) == 500_000


def test_pictures_of_others(tmp_path):
    noise().save(tmp_path / "a.jpg")
    assert read_record(tmp_path / "a.jpg") is None
    with pytest.raises(ImageError, match="is not there"):
        read_record(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match="not a readable picture"):
        read_record(tmp_path / "text.png")
    for text in ("{", "[1]", "[" * 100_000):
        info = PngImagePlugin.PngInfo()
        info.add_text("thisness", text)
        noise().save(tmp_path / "b.png", pnginfo=info)
        with pytest.raises(ImageError, match="is damaged"):
            read_record(tmp_path / "b.png")
