"""Oracle: a folder with one known fault gets that finding; a good one gets none; the machine is described truly."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from thisness import doctor
from thisness.doctor import Finding, blur, check_machine, check_pictures, worst
from thisness.errors import ImageError
from thisness.subject import Subject

SIDE = 96


def scene(seed, side=SIDE):
    """A sharp picture with shapes and fine texture, its thing, and the mask of that."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(int(c) for c in rng.integers(60, 200, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y = rng.integers(0, side - 12, 2)
        draw.rectangle(
            (x, y, x + rng.integers(3, 12), y + rng.integers(3, 12)), tuple(int(c) for c in rng.integers(30, 220, 3))
        )
    mask = Image.new("L", (side, side))
    box = (side // 4, side // 4, 3 * side // 4, 3 * side // 4)
    draw.ellipse(box, (200, 120, 40), "black")
    for x in range(box[0] + 8, box[2] - 8, 6):
        draw.line((x, side * 0.4, x, side * 0.6), "black", 2)
    ImageDraw.Draw(mask).ellipse(box, 255)
    return image, mask


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        image, mask = scene(number)
        image.save(tmp_path / f"{number}.png")
        mask.save(tmp_path / f"{number}_mask.png")
    return tmp_path


def bad(folder):
    return {finding.topic: finding for finding in check_pictures(folder, resolution=SIDE) if finding.level != "good"}


def replaced(folder, change, number=1):
    change(Image.open(folder / f"{number}.png")).save(folder / f"{number}.png")


def test_a_good_folder(folder):
    findings = check_pictures(folder, resolution=SIDE)
    assert worst(findings) == "good"
    assert {finding.topic for finding in findings} == {"number", "size", "sharpness", "light", "duplicates", "masks"}
    assert all("\n" not in finding.text for finding in findings)


def only(folder, topic, level, *parts):
    findings = bad(folder)
    assert set(findings) == {topic} and findings[topic].level == level
    for part in parts:
        assert part in findings[topic].text


def test_blurred(folder):
    replaced(folder, lambda image: image.filter(ImageFilter.GaussianBlur(2.5)))
    only(folder, "sharpness", "warning", "1.png (0.", "blurred")


def test_only_the_thing_has_to_be_sharp(folder):
    image, mask = scene(1)
    Image.composite(image, image.filter(ImageFilter.GaussianBlur(4)), mask).save(folder / "1.png")
    assert bad(folder) == {}


def test_too_dark_and_too_bright(folder):
    replaced(folder, lambda image: image.point(lambda value: value // 6))
    only(folder, "light", "warning", "1.png: very dark")
    shutil.copy(folder / "2.png", folder / "1.png")
    replaced(folder, lambda image: scene(1)[0].point(lambda value: 240 + value // 17))
    only(folder, "light", "warning", "1.png: nearly white")


def test_a_white_background_is_not_overexposed(folder):
    image, mask = scene(1)
    Image.composite(image, Image.new("RGB", image.size, "white"), mask).save(folder / "1.png")
    assert bad(folder) == {}


def test_duplicates_also_in_another_size_and_format(folder):
    image = Image.open(folder / "1.png").resize((150, 150), Image.Resampling.LANCZOS)
    image.save(folder / "copy.jpg", quality=90)
    Image.open(folder / "1_mask.png").resize((150, 150)).save(folder / "copy_mask.png")
    only(folder, "duplicates", "warning", "1.png = copy.jpg", "same picture twice")


def test_pictures_that_hardly_differ(folder):
    for number in range(4):
        image, mask = scene(0)
        ImageDraw.Draw(image).rectangle((24 * number, 0, 24 * number + 17, 17), (20, 20, 20))
        image.save(folder / f"{number}.png")
        mask.save(folder / f"{number}_mask.png")
    only(folder, "duplicates", "warning", "hardly differ")


def test_sizes(folder):
    findings = {f.topic: f for f in check_pictures(folder, resolution=512)}
    assert findings["size"].level == "warning" and "0.png 96x96" in findings["size"].text
    scene(9, 300)[0].crop((0, 0, 300, 100)).save(folder / "9.png")
    scene(9, 300)[1].crop((0, 50, 300, 150)).save(folder / "9_mask.png")
    only(folder, "size", "note", "9.png 300x100", "twice as long as wide")


@pytest.mark.parametrize("count, level", [(1, "warning"), (2, "note"), (3, "good"), (21, "note")])
def test_number(tmp_path, count, level):
    for number in range(count):
        scene(number)[0].save(tmp_path / f"{number}.png")
    (finding,) = [f for f in check_pictures(tmp_path, resolution=SIDE) if f.topic == "number"]
    assert finding.level == level and str(count) in finding.text


def test_masks(folder):
    def with_mask(mask):
        mask.save(folder / "1_mask.png")
        return bad(folder)["masks"]

    assert with_mask(Image.new("L", (SIDE, SIDE), 255)).text.startswith("1.png: the mask covers all of it")
    grey = scene(1)[1].point(lambda value: value * 150 // 255)
    assert with_mask(grey).text.startswith("1.png: the mask is mostly grey")
    tiny = Image.new("L", (SIDE, SIDE))
    tiny.paste(255, (40, 40, 50, 50))
    assert "1.png (1.1%): the thing is tiny" in with_mask(tiny).text
    (folder / "1_mask.png").unlink()
    only(folder, "masks", "warning", "1.png: without a mask while others have one")
    for number in (0, 2, 3):
        (folder / f"{number}_mask.png").unlink()
    only(folder, "masks", "note", "none: the background is learned with the thing")


def test_errors_are_those_of_the_subject(folder, tmp_path_factory):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    Image.new("L", (SIDE, SIDE)).save(folder / "2_mask.png")
    errors = [finding.text for finding in check_pictures(folder) if finding.level == "error"]
    with pytest.raises(ImageError) as caught:
        Subject.from_folder(folder, "dog")
    assert len(errors) == 2 and all(error in str(caught.value) for error in errors)
    empty = check_pictures(tmp_path_factory.mktemp("empty"))
    assert worst(empty) == "error" and "no PNG, JPEG or WebP" in empty[0].text


def test_blur_grows_with_blur():
    image = scene(0)[0].convert("L")
    values = [blur(np.asarray(image.filter(ImageFilter.GaussianBlur(r)), np.float32) / 255) for r in (0, 1, 2, 4)]
    assert values == sorted(values) and values[0] < 0.4 < 0.62 < values[3]
    assert blur(np.zeros((50, 50), np.float32)) == 1.0  # nothing to see


def test_blur_is_that_of_the_paper():
    """Equations 1 to 6 once more, one pixel at a time."""
    grey = np.random.default_rng(0).random((14, 17)).astype(np.float32)

    def by_hand(picture):
        high, wide = picture.shape
        again = np.zeros_like(picture, float)
        for y in range(high):
            for x in range(wide):
                again[y, x] = sum(float(picture[min(max(y + k, 0), high - 1), x]) for k in range(-4, 5)) / 9
        total = lost = 0.0
        for y in range(1, high):
            for x in range(wide):
                step, step_again = abs(picture[y, x] - picture[y - 1, x]), abs(again[y, x] - again[y - 1, x])
                total, lost = total + step, lost + max(0.0, step - step_again)
        return (total - lost) / total

    assert blur(grey) == pytest.approx(max(by_hand(grey), by_hand(grey.T)), abs=1e-5)


def test_this_machine():
    findings = check_machine()
    by_topic = {finding.topic: finding for finding in findings}
    assert {"python", "cores", "memory", "disk", "libraries", "torch", "accelerator"} <= set(by_topic)
    assert str(len(os.sched_getaffinity(0))) in by_topic["cores"].text
    import torch

    assert torch.__version__ in by_topic["torch"].text
    assert all("\n" not in finding.text for finding in findings)


@pytest.mark.parametrize("free, level", [(1, "error"), (4, "note"), (30, "good")])
def test_memory(monkeypatch, free, level):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (64 * 2**30, free * 2**30))
    assert {f.topic: f.level for f in check_machine()}["memory"] == level


def test_memory_is_that_of_the_system():
    total, free = doctor.memory_bytes()
    assert 0 < free <= total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 1.01


@pytest.mark.parametrize("free, level", [(0.1, "error"), (5, "note"), (100, "good")])
def test_disk(monkeypatch, tmp_path, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, int(free * 2**30)))
    findings = {f.topic: f for f in check_machine(tmp_path / "not" / "yet")}
    assert findings["disk"].level == level and str(tmp_path) in findings["disk"].text


def test_worst():
    assert worst([]) == "good"
    assert worst([Finding("note", "a", ""), Finding("error", "b", ""), Finding("warning", "c", "")]) == "error"
