"""Oracle: the subject is whole and undistorted in the square, and the mask still lies on it."""

import numpy as np
import pytest
from PIL import Image

from thisness.errors import ImageError
from thisness.images import fit_square


def scene(width, height, box):
    """A white thing on black, and its exact mask."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    return image, (np.asarray(image.convert("L")) > 0).astype(np.float32)


def test_a_square_of_the_right_size_is_left_alone():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    mask = np.random.default_rng(1).random((32, 32), np.float32)
    square, fitted = fit_square(noise, 32, mask)
    assert np.array_equal(square, noise) and np.array_equal(fitted, mask)


def test_the_middle_is_taken_without_a_mask():
    image = Image.new("RGB", (96, 32))
    image.paste((255, 255, 255), (32, 0, 64, 32))
    square, mask = fit_square(image, 32)
    assert mask is None and (np.asarray(square) == 255).all()


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (128, 128), (200, 61)])
@pytest.mark.parametrize("side", [16, 32, 96])
@pytest.mark.parametrize("corner", [0.0, 0.5, 1.0])
def test_the_subject_is_kept_whole_with_its_shape(size, side, corner):
    thing = 30
    left, top = (round(corner * (length - thing)) for length in size)
    image, mask = scene(*size, (left, top, left + thing, top + thing))
    square, fitted = fit_square(image, side, mask)
    assert square.size == (side, side) and fitted.shape == (side, side)
    scale = side / min(size)
    assert abs(fitted.sum() - (thing * scale) ** 2) < 0.02 * (thing * scale) ** 2 + 1  # all of it, at the right scale
    bright = np.asarray(square.convert("L"), np.float32) / 255
    assert np.abs(bright - fitted).mean() < 0.05  # the mask lies on the thing


@pytest.mark.parametrize("size, box", [((120, 40), (10, 5, 110, 35)), ((40, 120), (5, 10, 35, 110))])
def test_a_subject_longer_than_the_picture_is_high_is_not_cut(size, box):
    image, mask = scene(*size, box)
    square, fitted = fit_square(image, 50, mask)
    assert abs(fitted.sum() - mask.sum() / 4) < 7.5  # 100 pixels became 50
    assert np.abs(np.asarray(square.convert("L"), np.float32) / 255 - fitted).mean() < 0.05


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ImageError, match="the mask is 10x20 but the picture is 32x32"):
        fit_square(Image.new("RGB", (32, 32)), 16, np.ones((20, 10), np.float32))
