"""A word held to its class word's meaning. Oracles: where the penalty alone leads; runs before there was one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
from thisness.adapters import EMBEDDINGS
from thisness.adapters.words import vocabulary_rows
from thisness.errors import ConfigurationError
from thisness.methods import learn, method_named
from thisness.methods.meaning import KeptMeaning, meaning_loss
from thisness.methods.registry import settings_for
from thisness.methods.tuning import decisive
from thisness.subject import Subject

QUICK = {"steps": 3, "lr": 0.05, "precision": "fp32", "captions": "plain", "preset": "default"}
DETEX = {
    "start": "", "image_encoder": tiny.clip_folder(), "pose_words": "with {word}", "background_words": "on {word}",
    "pose_start": "sleeping", "background_start": "beach snow",
}  # fmt: skip
METHODS = {
    "textual-inversion": {"vectors": 2},
    "custom-diffusion": {"start": "", "prior_pictures": 0, "word_lr": 0.05},
    "detex": {**DETEX, "prior_pictures": 0, "word_lr": 0.05},
}


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def subject() -> Subject:
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2))
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    return Subject("rufus", "dog", images, (mask, mask.T[::-1].copy()))


def test_the_numbers():
    anchor = torch.tensor([3.0, 0.0])
    assert float(meaning_loss(anchor[None], anchor)) == 0
    assert float(meaning_loss(torch.tensor([[0.0, 3.0]]), anchor)) == pytest.approx(1)  # the angle alone
    assert float(meaning_loss(torch.tensor([[6.0, 0.0]]), anchor)) == pytest.approx(1)  # the norm alone
    both = torch.tensor([[0.0, 6.0], [3.0, 0.0]])
    assert float(meaning_loss(both, anchor)) == pytest.approx(1)  # (1 + 1 + 0) / 2


def test_its_gradient_alone_leads_to_the_nouns_norm_and_angle(base):
    noun = vocabulary_rows(base, "dog")["text_encoder"][0]
    start = torch.randn(3, len(noun), generator=torch.Generator().manual_seed(0)) * noun.norm()
    words = nn.ParameterDict({"text_encoder": nn.Parameter(start)})
    kept = KeptMeaning(base, "dog", words, 0.1)
    rows = words["text_encoder"]
    optimizer, seen = torch.optim.SGD([rows], lr=float(noun.norm()) ** 2), []
    for _ in range(600):
        optimizer.zero_grad()
        loss = kept()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert all(b <= a + 1e-6 for a, b in zip(seen, seen[1:], strict=False)) and seen[-1] < 1e-4 * seen[0]
    torch.testing.assert_close(rows.detach().norm(dim=1), noun.norm().expand(3), rtol=0.01, atol=0)
    assert float(torch.cosine_similarity(rows.detach(), noun[None]).min()) > 1 - 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_learned_rows_stay_nearer_and_nothing_changes_at_0(base, subject, method):
    settings = QUICK | METHODS[method]
    plain = learn(method, subject, base, progress=False, **settings)
    off = learn(method, subject, base, progress=False, keep_meaning=0.0, **settings)
    assert off.manifest == plain.manifest and off.hash == plain.hash  # an older concept counts as learned the same way
    for file, group in plain.tensors.items():
        assert all(torch.equal(tensor, off.tensors[file][name]) for name, tensor in group.items())
    kept = learn(method, subject, base, progress=False, keep_meaning=100.0, **settings)
    assert kept.settings["keep_meaning"] == 100.0 and "keep_meaning" not in plain.settings
    noun = vocabulary_rows(base, "dog")["text_encoder"][0]
    own = [each.tensors[EMBEDDINGS]["text_encoder"][: len(METHODS[method]) and 1] for each in (plain, kept)]
    loose, held = (float(meaning_loss(rows, noun)) for rows in own)
    assert held < loose


def test_what_cannot_be_held(base, subject):
    with pytest.raises(ConfigurationError, match="no setting 'keep_meaning'"):
        settings_for(method_named("dreambooth-lora"), base, {"keep_meaning": 0.1})
    with pytest.raises(ConfigurationError, match="keep_meaning -1.0 must be in 0"):
        settings_for(method_named("textual-inversion"), base, {"keep_meaning": -1.0})
    with pytest.raises(ConfigurationError, match="track_collapse -2 must be at least -1"):
        settings_for(method_named("textual-inversion"), base, {"track_collapse": -2})
    assert "track_collapse" not in decisive(settings_for(method_named("detex"), base, {"track_collapse": 5}))
    assert not math.isnan(float(meaning_loss(torch.zeros(1, 4), torch.ones(4))))
