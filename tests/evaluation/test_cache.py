"""The cache of vectors. Oracle: the encoder without it; what was on disk before a kill."""

import multiprocessing

import evaluation.rulers as rulers
import numpy as np
import pytest
import torch
from evaluation.rulers import left_half, noise

from thisness.evaluation import cache as module
from thisness.evaluation.cache import FeatureCache
from thisness.evaluation.encoders import fingerprint, open_encoder
from thisness.evaluation.items import Picture
from thisness.evaluation.metrics import View


class Plain:
    """Stands in for an encoder: a picture's vector is its mean colour, its patches are its four quarters."""

    def __init__(self, name="plain"):
        self.identity, self.asked, self.passes = {"model": name}, [], 0

    def identity_of(self, what):
        return {**self.identity, "what": what}

    def images(self, pictures):
        return self.images_and_patches(pictures)[0]

    def images_and_patches(self, pictures):
        self.asked += pictures
        self.passes += 1
        quarters = torch.stack([torch.tensor(np.array(each.resize((2, 2)))).float().reshape(4, 3) for each in pictures])
        return quarters.mean(1), quarters

    def text(self, sentences):
        self.asked += sentences
        return torch.tensor([[float(len(each)), 1.0] for each in sentences])


def pictures(*seeds):
    return [Picture(noise(seed)) for seed in seeds]


def test_cached_is_what_the_encoder_gives(tmp_path):
    """To the bit, from memory and from disk, in the order asked for, repeated as asked for."""
    encoder = open_encoder(rulers.save_clip(tmp_path / "tiny-clip"))
    asked = pictures(3, 1, 2, 1)
    direct = encoder.images([each.image for each in asked])
    sentences = ["a dog", "a red hat", "a dog"]
    for cache in (FeatureCache(), FeatureCache(tmp_path / "c"), FeatureCache(tmp_path / "c")):
        assert torch.allclose(cache.get(encoder, asked), direct, atol=1e-6)
        assert torch.allclose(cache.get(encoder, sentences, "text"), encoder.text(sentences), atol=1e-6)
        patches = encoder.patches([each.image for each in asked])[0]
        assert torch.allclose(cache.get(encoder, asked, "patches"), patches, atol=1e-6)
    assert torch.equal(
        FeatureCache(tmp_path / "c").get(encoder, asked), FeatureCache(tmp_path / "c").get(encoder, asked)
    )


def test_each_picture_is_encoded_once_also_by_the_next_process(tmp_path):
    first, cache = Plain(), FeatureCache(tmp_path)
    cache.get(first, pictures(1, 2, 1))
    cache.get(first, pictures(2, 3))
    cache.get(first, ["a", "b", "a"], "text")
    assert len(first.asked) == 3 + 2 and cache.computed == 5
    second = Plain()
    again = FeatureCache(tmp_path)
    assert torch.equal(again.get(second, pictures(3, 1)), cache.get(first, pictures(3, 1)))
    assert torch.equal(again.get(second, ["b"], "text"), torch.tensor([[1.0, 1.0]]))
    assert second.asked == [] and again.computed == 0


def test_another_encoder_another_mask_or_another_pixel_is_another_vector(tmp_path):
    cache, one, two = FeatureCache(tmp_path), Plain("one"), Plain("two")
    cache.get(one, pictures(1))
    cache.get(two, pictures(1))
    assert len(two.asked) == 1
    changed = noise(1)
    changed.putpixel((0, 0), (1, 2, 3))
    picture = Picture(noise(1), left_half())
    other_mask = Picture(noise(1), 1 - left_half())
    views = [
        Picture(changed),
        View(picture, "subject"),
        View(picture, "background"),
        View(picture, "subject", "black"),
        View(other_mask, "subject"),
    ]
    assert len({each.hash for each in views}) == len(views)
    cache.get(one, views)
    assert len(one.asked) == 1 + len(views)
    cache.get(one, [View(picture)])  # all of it: the picture itself, whatever its mask
    assert len(one.asked) == 1 + len(views)


def test_patches_and_vectors_come_of_one_pass():
    encoder, cache = Plain(), FeatureCache()
    cache.get(encoder, pictures(1, 2), "patches")
    cache.get(encoder, pictures(1, 2))
    assert encoder.passes == 1
    kept = FeatureCache()
    kept.keep_patches(encoder)
    kept.get(encoder, pictures(1, 2))
    kept.get(encoder, pictures(2, 1), "patches")
    assert encoder.passes == 2


def test_patches_do_not_fill_the_memory():
    encoder = Plain()
    cache = FeatureCache(patch_bytes=3 * 48)  # of three pictures
    asked = pictures(*range(6))
    first = cache.get(encoder, asked, "patches")
    assert cache._held <= 3 * 48
    assert torch.equal(cache.get(encoder, asked, "patches"), first), "what was dropped is computed again"


def test_a_damaged_block_is_removed_and_computed_again(tmp_path):
    encoder = Plain()
    expected = FeatureCache(tmp_path).get(encoder, pictures(1, 2))
    (block,) = (tmp_path / fingerprint(encoder.identity_of("images"))).glob("*.safetensors")
    whole = block.read_bytes()
    for damaged in (whole[:40], whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        block.write_bytes(damaged)
        again = Plain()
        assert torch.equal(FeatureCache(tmp_path).get(again, pictures(1, 2)), expected)
        assert len(again.asked) == 2
        assert block.read_bytes() == whole, "and it is whole again"


def test_a_write_that_was_cut_short_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    def killed(path, data):
        path.write_bytes(data[: len(data) // 2])
        raise KeyboardInterrupt

    encoder = Plain()
    FeatureCache(tmp_path).get(encoder, pictures(1))
    with monkeypatch.context() as patched:
        patched.setattr(module, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            FeatureCache(tmp_path).get(encoder, pictures(2))
    leftover = tmp_path / fingerprint(encoder.identity_of("images")) / ".x.safetensors.1-ab.partial"
    leftover.write_bytes(b"half")  # what a SIGKILL leaves
    again = Plain()
    FeatureCache(tmp_path).get(again, pictures(1, 2))
    assert len(again.asked) == 1


def test_many_blocks_become_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MERGED_FROM", 5)
    encoder, cache = Plain(), FeatureCache(tmp_path)
    for seed in range(6):
        cache.get(encoder, pictures(seed))
    folder = tmp_path / fingerprint(encoder.identity_of("images"))
    assert len(list(folder.glob("*.safetensors"))) == 6
    for _ in range(2):
        again = Plain()
        found = FeatureCache(tmp_path).get(again, pictures(*range(6)))
        assert torch.equal(found, cache.get(encoder, pictures(*range(6)))) and again.asked == []
        assert len(list(folder.glob("*.safetensors"))) == 1


def _fill(folder, first):
    for seed in range(first, first + 12):
        FeatureCache(folder).get(Plain(), pictures(seed))


def test_two_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(tmp_path, first)) for first in (0, 6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    encoder = Plain()
    FeatureCache(tmp_path).get(encoder, pictures(*range(18)))
    assert encoder.asked == []
