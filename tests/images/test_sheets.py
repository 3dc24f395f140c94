"""Oracle: each picture stands whole in its place, each caption is legible under it and says all it can."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from thisness.images import Tile, grid, sheet
from thisness.images.sheets import wrap

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200))


def plain(number, size=(64, 64)):
    return Image.new("RGB", size, COLOURS[number])


def where(page, number):
    """Bounds (left, top, right, bottom) of a colour, and how many pixels have it."""
    found = (np.asarray(page) == COLOURS[number]).all(-1)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), int(found.sum())


def test_every_tile_is_there_in_its_row_and_column():
    page = sheet([[plain(0), plain(1)], [plain(2)]], tile=128)
    (l0, t0, r0, b0), area = where(page, 0)
    assert (r0 - l0, b0 - t0, area) == (128, 128, 128 * 128)  # covered by nothing
    (l1, t1, _, _), _ = where(page, 1)
    (l2, t2, _, _), _ = where(page, 2)
    assert t1 == t0 and l1 >= r0 and l2 == l0 and t2 >= b0


def test_small_pictures_keep_their_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    page = np.asarray(sheet([[Image.fromarray(noise)]], tile=128))
    twice = noise.repeat(2, 0).repeat(2, 1)
    windows = np.lib.stride_tricks.sliding_window_view(page, (128, 128, 3))[:, :, 0]
    assert any((windows[y, x] == twice).all() for y in range(windows.shape[0]) for x in range(windows.shape[1]))


def test_other_shapes_are_not_cropped_nor_distorted():
    (left, top, right, bottom), area = where(sheet([[plain(0, (100, 25))]], tile=128), 0)
    assert (right - left, bottom - top, area) == (128, 32, 128 * 32)


def test_captions_stand_under_their_tile_and_nowhere_else():
    images = [plain(0), plain(1)]
    without = sheet([images], tile=128)
    caption = "a toy dog sleeping on the beach in the evening"
    page = sheet([[Tile(images[0], caption), Tile(images[1])]], tile=128)
    (left, _, right, bottom), area = where(page, 0)
    assert area == 128 * 128
    dark = (np.asarray(page.convert("L")) < 100) & ~(np.asarray(page) == COLOURS[2]).all(-1)
    dark[:bottom] = False
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    assert rows.size and rows[0] >= bottom and rows[-1] < page.height
    assert left <= columns[0] and columns[-1] < right
    assert page.height > without.height and page.width == without.width


def test_references_stand_at_the_left_under_their_heading():
    rows = grid([plain(n) for n in range(4)], 2)
    page = sheet(rows, references=[plain(4), plain(5)], heading="Rufus", tile=128)
    (_, top, right, _), _ = where(page, 4)
    (left, row_top, _, _), area = where(page, 0)
    assert right < left and top > row_top and area == 128 * 128
    for number in (4, 5):
        (start, high, end, low), area = where(page, number)
        assert area == (end - start) * (low - high) and end - start == low - high >= 64
    without = sheet(rows, references=[plain(4), plain(5)], heading="", tile=128)
    assert not np.array_equal(np.asarray(page)[: top - 2, : left - 2], np.asarray(without)[: top - 2, : left - 2])


@pytest.mark.parametrize("references", range(1, 7))
@pytest.mark.parametrize("rows", [1, 2])
def test_any_number_of_references_is_shown_whole(references, rows):
    page = sheet(
        [[Image.new("RGB", (32, 32), "black")] * 3] * rows,
        references=[(plain(n), "side") for n in range(references)],
        tile=96,
    )
    for number in range(references):
        (left, top, right, bottom), area = where(page, number)
        assert area == (right - left) * (bottom - top) and right - left == bottom - top > 24


def test_labels_and_title_are_drawn():
    rows = [[plain(0)], [plain(1)]]
    page = sheet(rows, row_labels=["TEA", "DETEX"], title="One toy", tile=128)
    (left, top, _, _), _ = where(page, 0)
    grey = np.asarray(page.convert("L"))
    assert (grey[:top] < 100).any() and (grey[top : top + 128, : left - 2] < 100).any()
    with pytest.raises(ValueError, match="1 row labels for 2 rows"):
        sheet(rows, row_labels=["x"])


def test_nothing_to_show_is_an_error():
    for empty in ([], [[]]):
        with pytest.raises(ValueError, match="at least one picture"):
            sheet(empty)
    assert where(sheet([], references=[plain(0)]), 0)[1] > 1000


FONT = ImageFont.load_default(14)


@pytest.mark.parametrize("width", [40, 90, 200])
@pytest.mark.parametrize(
    "text", ["a toy dog sleeping on the beach", "Donaudampfschifffahrtsgesellschaft x", "", "i " * 60]
)
def test_wrapping_keeps_every_letter_and_the_width(width, text):
    lines = wrap(text, FONT, width, limit=1000)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(FONT.getlength(line) <= width for line in lines)


def test_what_does_not_fit_is_marked():
    lines = wrap("word " * 50, FONT, 100, limit=3)
    assert len(lines) == 3 and lines[-1].endswith("...") and FONT.getlength(lines[-1]) <= 100
