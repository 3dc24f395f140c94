"""Oracles: the source's own pixels and latents; levels of the sampler; equal rows."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_ezigen import random_adapter, read, write_weights

import tiny
from thisness.conditioning import encode
from thisness.errors import ConfigurationError, ImageError
from thisness.methods.ezigen_editing import edit, exceptional, inverted, placed
from thisness.methods.ezigen_loops import encode_pictures
from thisness.sampling import SamplingOptions, make_scheduler, sample
from thisness.subject import Subject

OPTIONS = SamplingOptions(steps=5)


@pytest.fixture(scope="module")
def base():
    return tiny.base("v_prediction")


@pytest.fixture(scope="module")
def concept(base, tmp_path_factory):
    weights = write_weights(tmp_path_factory.mktemp("weights") / "w", base, random_adapter(base))
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    return read(Subject("rex", "dog", (picture,), (mask,)), base, weights, min_loops=1, max_loops=1)


def scene(width, height):
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8))


def region(width, height, left, top, right, bottom):
    mask = np.zeros((height, width), np.float32)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(
    ("size", "box"),
    [((16, 16), (4, 4, 12, 12)), ((70, 33), (50, 3, 68, 30)), ((21, 90), (2, 5, 20, 85)), ((40, 40), (1, 1, 3, 3))],
    ids=["square", "wide", "longer-than-the-short-side", "tiny"],
)
def test_pixels_outside_the_feathered_mask_are_the_sources(base, concept, size, box):
    """Oracle 9, for any size and aspect."""
    source, mask = scene(*size), region(*size, *box)
    made = edit(base, source, mask, concept, options=OPTIONS)
    before, after = np.asarray(source), np.asarray(made.images[0])
    soft = made.placement.feathered
    assert after.shape == before.shape
    assert (soft[mask > 0] == 1).all() and (soft == 0).any()
    assert np.array_equal(after[soft == 0], before[soft == 0])
    assert np.abs(after[mask > 0].astype(int) - before[mask > 0]).mean() > 5
    again = edit(base, source, mask, concept, options=OPTIONS)
    assert np.array_equal(np.asarray(again.images[0]), after)


def test_an_empty_mask_gives_the_source_back(base, concept):
    """Oracle 8: latents and pixels."""
    source = scene(50, 30)
    made = edit(base, source, np.zeros((30, 50), np.float32), concept, options=OPTIONS)
    assert torch.equal(made.latents, encode_pictures(base, [made.placement.square]))
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(source))


def test_a_full_mask_does_not_depend_on_the_background(base, concept, monkeypatch):
    """Oracle 8: other latents in the trajectory, the noisiest excepted, change nothing."""
    source, mask = scene(16, 16), np.ones((16, 16), np.float32)
    first = edit(base, source, mask, concept, options=OPTIONS)

    def other(*given):
        path = inverted(*given)
        return [torch.randn_like(each) for each in path[:-1]] + path[-1:]

    monkeypatch.setattr("thisness.methods.ezigen_editing.inverted", other)
    assert torch.equal(first.latents, edit(base, source, mask, concept, options=OPTIONS).latents)


def test_the_exceptional_prompt_has_equal_rows_and_leaves_the_encoder(base):
    """Oracle 18."""
    before = encode(base, "a dog").embeds
    read = exceptional(base)
    assert torch.allclose(read.embeds, read.embeds[:, :1].expand_as(read.embeds), atol=1e-5)
    assert torch.equal(encode(base, "a dog").embeds, before)
    wide = exceptional(tiny.base_xl())
    assert wide.pooled is not None and torch.allclose(wide.embeds[:, 0], wide.embeds[:, -1], atol=1e-5)


def test_inversion_ends_at_the_samplers_levels_and_sampling_leads_back(base):
    """Oracle 19: with DDIM under the same conditioning the better the more steps there are."""
    clean = encode_pictures(base, [scene(16, 16)])
    nothing, psnr = exceptional(base), []
    for steps in (10, 40, 160):
        options = SamplingOptions(steps=steps, guidance=1.0, scheduler="ddim")
        scheduler = make_scheduler(base, "ddim")
        scheduler.set_timesteps(steps)
        start = round(0.6 * steps)
        levels = scheduler.timesteps[start:].flip(0).tolist()
        path = inverted(base, clean, nothing, levels, order=1)
        assert len(path) == steps - start + 1
        back = sample(base, nothing, None, [0], options, latents=path[-1], start=start)
        psnr.append(float(10 * torch.log10(clean.square().max() / (back - clean).square().mean())))
    assert psnr[0] < psnr[1] < psnr[2]
    second = inverted(base, clean, nothing, levels, order=2)
    assert (second[-1] - path[-1]).abs().mean() < 0.05 * path[-1].std()


def test_the_levels_are_those_that_noise_would_have(base):
    """A denoiser that knows the answer: X_k = a_k x + s_k n with one n for all levels, whatever the order."""
    clean = torch.randn(1, *base.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
    alphas = base.scheduler.alphas_cumprod

    class Knows:
        scheduler, device, dtype = base.scheduler, base.device, base.dtype

        def predict(self, latents, t, read):
            return latents

        def predicted_clean(self, latents, prediction, t):
            return clean

    levels = [1, 201, 401, 601]
    for order in (1, 2):
        path = inverted(Knows(), clean, exceptional(base), levels, order)
        noises = [
            (x - alphas[t].sqrt() * clean) / (1 - alphas[t]).sqrt() for x, t in zip(path[1:], levels, strict=True)
        ]
        assert all(torch.allclose(noise, noises[0], atol=1e-3) for noise in noises)


def test_calls_and_bad_input(base, concept):
    calls = []
    handle = base.denoiser.register_forward_hook(lambda *_: calls.append(1))
    try:
        edit(base, scene(16, 16), region(16, 16, 4, 4, 12, 12), concept, options=OPTIONS)
        assert len(calls) == 2 * (2 + 2)  # two steps of five, inverted and drawn, twice
        calls.clear()
        edit(base, scene(16, 16), region(16, 16, 4, 4, 12, 12), concept, options=OPTIONS, reinvert=False)
        assert len(calls) == 2 + 2 + 2
    finally:
        handle.remove()
    with pytest.raises(ImageError, match="the mask is 16x16 but the scene is 30x20"):
        edit(base, scene(30, 20), np.ones((16, 16), np.float32), concept)
    with pytest.raises(ImageError, match="the scene is 30x5: the model works on 8x8 positions"):
        edit(base, scene(30, 5), np.ones((5, 30), np.float32), concept)
    with pytest.raises(ConfigurationError, match="'euler' scales latents in its own way"):
        edit(base, scene(16, 16), np.ones((16, 16), np.float32), concept, options=SamplingOptions(scheduler="euler"))


def test_the_square_holds_the_mask_and_comes_back_in_place():
    source, mask = scene(60, 40), region(60, 40, 50, 10, 60, 20)
    place = placed(source, mask, 32, context=2.0, feather=0.0)
    left, top, right, bottom = place.box
    assert right - left == bottom - top == 20 and left >= 0 and right <= 60
    assert place.region.shape == (32, 32) and abs(place.region.mean() - 0.25) < 0.02
    red = np.asarray(place.put_back(Image.new("RGB", (32, 32), "red")))
    assert (red[mask > 0] == (255, 0, 0)).all() and np.array_equal(red[mask == 0], np.asarray(source)[mask == 0])
