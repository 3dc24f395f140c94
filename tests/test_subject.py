"""Oracle: pictures and masks of a folder arrive as they are, or all that is wrong is said at once (SAFETY 6, 7, 8)."""

import numpy as np
import pytest
from PIL import Image

from thisness.errors import ImageError, UserError
from thisness.prompt import SlotWord
from thisness.subject import KEPT_SIDE, Subject, find_pictures


def noise(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def half_mask(size=(40, 30)):
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "My Rufus"
    folder.mkdir()
    for number, name in enumerate(["b.png", "a.webp", "c.JPG"]):
        noise(number).save(folder / name, **({"lossless": True} if name == "a.webp" else {}))
    half_mask().save(folder / "b_mask.png")
    cut = noise(3).convert("RGBA")
    cut.putalpha(half_mask())
    cut.save(folder / "d.png")
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".DS_Store").write_text("x")
    return folder


def test_pictures_masks_and_names(photos):
    subject = Subject.from_folder(photos, "dog")
    assert (subject.name, subject.noun) == ("my-rufus", "dog")
    assert subject.files == ("a.webp", "b.png", "c.JPG", "d.png")
    assert np.array_equal(subject.images[0], noise(1)) and np.array_equal(subject.images[1], noise(0))
    assert [mask is not None for mask in subject.masks] == [False, True, False, True]
    for mask in (subject.masks[1], subject.masks[3]):
        assert np.array_equal(mask, np.asarray(half_mask()) / 255)
    assert subject.word == SlotWord("dog", "dog")


def test_one_picture_with_its_mask(photos):
    subject = Subject.from_folder(photos / "b.png", "teddy  bear", "rufus")
    assert subject.files == ("b.png",) and subject.noun == "teddy bear" and subject.name == "rufus"
    assert np.array_equal(subject.masks[0], np.asarray(half_mask()) / 255)
    assert Subject.from_folder(photos / "c.JPG", "dog").name == "c"


def test_hash_is_of_pixels_and_masks(photos, tmp_path):
    subject = Subject.from_folder(photos, "dog")
    assert subject.hash == Subject.from_folder(photos, "cat", "tom").hash
    renamed = Subject("x", "dog", subject.images, subject.masks)
    assert renamed.hash == subject.hash
    assert Subject("x", "dog", subject.images).hash != subject.hash
    assert Subject("x", "dog", subject.images[::-1], subject.masks[::-1]).hash != subject.hash
    pixel = subject.images[0].copy()
    pixel.putpixel((0, 0), (1, 2, 3))
    assert Subject("x", "dog", (pixel, *subject.images[1:]), subject.masks).hash != subject.hash


def test_large_pictures_are_scaled_down_with_their_mask(tmp_path):
    size = (KEPT_SIDE * 2, 200)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    image.save(tmp_path / "a.png")
    half_mask(size).save(tmp_path / "a_mask.png")
    subject = Subject.from_folder(tmp_path, "car", "long")
    assert subject.images[0].size == (KEPT_SIDE, 100)
    assert np.abs(np.asarray(subject.images[0].convert("L")) / 255 - subject.masks[0]).max() < 0.3  # still on the thing


def test_mask_of_another_size(photos):
    half_mask((20, 16)).save(photos / "b_mask.png")
    with pytest.raises(ImageError, match="b_mask.png: the mask is 20x16 but the picture is 40x30: .*--resize-mask"):
        Subject.from_folder(photos, "dog")
    mask = Subject.from_folder(photos, "dog", resize_mask=True).masks[1]
    assert mask.shape == (30, 40) and mask[:, :18].min() == 1 and mask[:, 22:].max() == 0


def test_everything_wrong_is_said_at_once(photos):
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:300])
    Image.new("L", (40, 30)).save(photos / "c_mask.png")
    Image.new("RGB", (1, 9)).save(photos / "e.png")
    with pytest.raises(ImageError) as caught:
        Subject.from_folder(photos, "dog")
    message = str(caught.value)
    assert message.startswith("3 problems: ") and "\n" not in message
    for part in ("b.png is truncated", "c_mask.png: the mask is empty", "e.png is 1x9"):
        assert part in message


def test_folders_that_cannot_be_used(tmp_path):
    def refused(match):
        with pytest.raises(ImageError, match=match):
            find_pictures(tmp_path)

    refused("no PNG, JPEG or WebP picture is in it")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    refused("IMG_1.HEIC: not PNG, JPEG or WebP")
    (tmp_path / "IMG_1.HEIC").unlink()
    half_mask().save(tmp_path / "a_mask.png")
    refused("a_mask.png is a mask without its picture a.png")
    noise(0).save(tmp_path / "a.png")
    noise(0).save(tmp_path / "a.jpg")
    half_mask().save(tmp_path / "a_mask.webp")
    refused("2 problems: a: there in two formats.*; a has two masks")
    with pytest.raises(ImageError, match="is not there"):
        find_pictures(tmp_path / "none")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ImageError, match="is not a PNG, JPEG or WebP"):
        find_pictures(tmp_path / "a.txt")


def test_too_many_pictures_are_not_even_opened(tmp_path):
    for number in range(101):
        (tmp_path / f"{number}.png").write_text("not a picture")
    with pytest.raises(ImageError, match="101 pictures: at most 100"):
        Subject.from_folder(tmp_path, "dog")


def test_links_out_of_the_folder_are_refused(photos, tmp_path):
    noise(9).save(tmp_path / "secret.png")
    (photos / "inner.png").symlink_to(photos / "b.png")
    assert len(find_pictures(photos)) == 5
    (photos / "outer.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError, match="outer.png: links to files elsewhere"):
        find_pictures(photos)


@pytest.mark.parametrize("noun", ["", "  ", "{subject}", "<dog>", "a b c d e", "dog\n\x07", "x" * 65])
def test_nouns_that_are_none(photos, noun):
    with pytest.raises(UserError, match="must be one to four plain words"):
        Subject.from_folder(photos, noun)


def test_subjects_from_memory_are_checked_too():
    with pytest.raises(UserError, match="'Rufus' must be"):
        Subject("Rufus", "dog", (noise(0),))
    with pytest.raises(ImageError, match="0 pictures"):
        Subject("rufus", "dog", ())
    with pytest.raises(ImageError, match="picture 1 is L, not RGB"):
        Subject("rufus", "dog", (noise(0), half_mask()))
    with pytest.raises(ImageError, match="1 masks for 2 pictures"):
        Subject("rufus", "dog", (noise(0), noise(1)), (None,))
    with pytest.raises(ImageError, match="the mask of picture 0: the mask is 5x5"):
        Subject("rufus", "dog", (noise(0),), (np.ones((5, 5)),))
