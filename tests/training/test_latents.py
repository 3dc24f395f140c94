"""Oracles: the VAE itself, the sampler itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.conditioning import encode
from thisness.sampling import SamplingOptions, sample
from thisness.subject import Subject
from thisness.training import prior
from thisness.training.latents import encode_subject
from thisness.training.prior import class_latents


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def subject() -> Subject:
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2))
    mask = np.zeros((16, 16), np.float32)
    mask[4:8, 4:6] = 1
    return Subject("rufus", "dog", images, (mask, None))


@torch.no_grad()
def test_draws_are_the_posteriors_samples(base, subject):
    latents = encode_subject(base, subject, flip=True)
    pixels = torch.from_numpy(np.array(subject.images[1], np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    for row, view in ((2, pixels), (3, pixels.flip(-1))):
        posterior = base.vae.encode(view).latent_dist
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        expected = (posterior.mean + posterior.std * noise) * base.vae.config.scaling_factor
        drawn = latents.draw(torch.tensor([row]), torch.Generator().manual_seed(5))
        torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)
    assert latents.picture.tolist() == [0, 0, 1, 1]


def test_masks_are_area_means_and_mirror_with_the_picture(base, subject):
    mask = encode_subject(base, subject, flip=True).mask
    assert mask[0, 0].sum() == 2 and mask[0, 0, 2:4, 2].eq(1).all()
    assert torch.equal(mask[1], mask[0].flip(-1))
    assert mask[2].eq(1).all()  # no mask: subject all over
    assert encode_subject(base, Subject("x", "dog", subject.images)).mask is None


def test_crops_are_other_views_and_the_same_every_time(base, subject):
    one, two = (encode_subject(base, subject, crops=2, seed=1) for _ in range(2))
    assert torch.equal(one.mean, two.mean) and one.picture.tolist() == [0, 0, 0, 1, 1, 1]
    assert not torch.equal(one.mean[0], one.mean[1]) and not torch.equal(one.mean[1], one.mean[2])


def test_class_latents_are_the_samplers_and_are_made_once(base, tmp_path, monkeypatch):
    options = SamplingOptions(steps=2, guidance=2.0)
    made = class_latents(base, "a dog", 3, options, root=tmp_path, progress=False)
    seeds = [prior.FIRST_SEED + number for number in range(3)]
    assert torch.equal(made, sample(base, encode(base, "a dog"), None, seeds, options))
    more = class_latents(base, "a dog", 5, options, root=tmp_path, progress=False)  # three are kept, two made
    assert torch.equal(more[:3], made) and len(more) == 5

    def never(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(prior, "sample", never)
    assert torch.equal(class_latents(base, "a dog", 4, options, root=tmp_path, progress=False), more[:4])
    for other in (("a cat", options), ("a dog", SamplingOptions(steps=3, guidance=2.0))):
        with pytest.raises(AssertionError, match="made again"):
            class_latents(base, other[0], 1, other[1], root=tmp_path, progress=False)


def test_damaged_class_latents_are_made_anew(base, tmp_path):
    options = SamplingOptions(steps=1, guidance=1.0)
    made = class_latents(base, "a dog", 2, options, root=tmp_path, progress=False)
    (file,) = tmp_path.rglob("latents.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"\xff\xff\xff\x7f")
    assert torch.equal(class_latents(base, "a dog", 2, options, root=tmp_path, progress=False), made)
