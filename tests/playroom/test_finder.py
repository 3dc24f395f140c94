"""The finder of toys. Oracles: exact masks of the renderer; least squares by torch; a map that is known beforehand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.errors import ArtefactError
from thisness.playroom import finder
from thisness.playroom.finder import PlayroomMasker, overlap, save_finder, states
from thisness.playroom.recipes.finder import fitted
from thisness.playroom.render import render
from thisness.playroom.world import random_scene


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def test_the_fit_is_least_squares_and_finds_a_map_that_is_there() -> None:
    torch.manual_seed(0)
    found = torch.randn(6, 5, 4, 4) * torch.tensor([1.0, 9, 0.1, 2, 3]).view(1, 5, 1, 1) + 2
    true = torch.tensor([0.1, -0.02, 1.0, 0.05, 0.0])
    shares = torch.einsum("nchw,c->nhw", found, true)[:, None] + 0.3
    masks = torch.nn.functional.interpolate(shares, (16, 16), mode="nearest")  # each place's mean is its share
    weight = fitted(found, masks, ridge=1e-9)
    torch.testing.assert_close(weight, torch.cat([true, torch.tensor([0.3])]).double(), rtol=1e-4, atol=1e-5)
    noisy = masks + torch.randn(6, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    rows = torch.cat([found.movedim(1, -1).flatten(0, 2), torch.ones(96, 1)], 1).double()
    wanted = torch.nn.functional.adaptive_avg_pool2d(noisy, 4).flatten().double()
    expected = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(fitted(found, noisy, ridge=1e-9), expected, rtol=1e-4, atol=1e-5)
    assert fitted(found, noisy, ridge=1e9)[:-1].abs().max() < 1e-4  # all penalty: the mean alone


def test_states_do_not_depend_on_the_batch_and_leave_nothing_behind(base) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hooks = [len(each._forward_hooks) for each in base.denoiser.modules()]
    together, alone = states(base, images, batch_size=2), states(base, images[2:])
    assert together.shape[-2:] == base.encode_images(images[:1]).shape[-2:]
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-5)
    assert [len(each._forward_hooks) for each in base.denoiser.modules()] == hooks


def test_a_mask_is_where_the_map_says_half_and_of_the_pictures_size(base, tmp_path: Path, monkeypatch) -> None:
    save_finder(torch.tensor([2.0, 0.25]), base, 1, tmp_path)
    told = torch.zeros(1, 1, 4, 4)
    told[..., 2:] = 0.5  # 2 x 0.5 + 0.25 is inside, 0.25 is not
    monkeypatch.setattr(finder, "states", lambda base, images: told)
    mask = PlayroomMasker(tmp_path, base)(Image.new("RGB", (32, 24)), "dog")
    assert mask is not None and mask.shape == (24, 32) and mask.dtype == np.float32
    assert not mask[:, :12].any() and mask[:, 20:].all()
    told.zero_()
    assert PlayroomMasker(tmp_path, base)(Image.new("RGB", (32, 24)), "dog") is None


def test_a_readout_of_another_base_is_refused(base, tmp_path: Path) -> None:
    save_finder(torch.zeros(3), base, 1, tmp_path)
    assert PlayroomMasker(tmp_path, base).identity["base"] == base.signature
    with pytest.raises(ArtefactError, match="reads another base"):
        PlayroomMasker(tmp_path, SimpleNamespace(name="other", signature="other"))
    with pytest.raises(ArtefactError, match="holds no finder"):
        PlayroomMasker(tmp_path / "none", base)


def test_overlap_is_intersection_over_union() -> None:
    one, other = np.array([[1.0, 1, 0, 0]]), np.array([[0, 1.0, 1, 0.4]])
    assert overlap(one, other) == pytest.approx(1 / 3)
    assert overlap(one, one) == 1 and overlap(0 * one, 0 * one) == 1 and overlap(one, 0 * one) == 0


def test_the_shipped_one_finds_held_out_toys() -> None:
    made = render([random_scene(20_000_000 + 4 * i, "held-out", companion=0, styled=0) for i in range(8)])
    found = PlayroomMasker().found(made.images.float() / 127.5 - 1)
    exact = made.masks[:, 0].numpy() / 255
    each = [0.0 if mask is None else overlap(mask, true) for mask, true in zip(found, exact, strict=True)]
    assert np.mean(each) > 0.7
    assert np.mean([overlap(a, b) for a, b in zip(found, np.roll(exact, 1, 0), strict=True)]) < 0.6  # not any place
