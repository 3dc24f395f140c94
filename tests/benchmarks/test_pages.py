"""Figures of pages: small, and what they show is still there."""

from __future__ import annotations

import numpy as np
import pytest
from pages import save_figure
from PIL import Image

from thisness.images import save_png


@pytest.mark.parametrize(("name", "share"), [("figure.png", 0.5), ("figure.webp", 0.1)])
def test_figures_are_smaller_and_no_region_changes_its_colour(tmp_path, name, share):
    across, down = np.meshgrid(np.linspace(0, 255, 256), np.linspace(0, 255, 256))
    noise = np.random.default_rng(0).normal(0, 2, (256, 256, 3))
    picture = Image.fromarray((np.stack([across, down, 255 - across], -1) + noise).clip(0, 255).astype(np.uint8))
    save_png(picture, tmp_path / "whole.png")
    save_figure(picture, tmp_path / name)
    assert (tmp_path / name).stat().st_size < share * (tmp_path / "whole.png").stat().st_size
    with Image.open(tmp_path / name) as file:
        shown = np.asarray(file.convert("RGB"), np.float64)
    before = np.asarray(picture, np.float64)
    blocks = (each.reshape(16, 16, 16, 16, 3).mean((1, 3)) for each in (shown, before))
    assert np.abs(next(blocks) - next(blocks)).max() < 8  # of 255: the palette lies inside of the extremes
