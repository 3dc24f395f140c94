"""DreamBooth with all weights. Oracles: the papers' equation in a model of one's own, half precision, diffusers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.adapters import attached_words
from thisness.adapters.folder import with_own_words
from thisness.adapters.replaced import all_weights, replaced_weights
from thisness.bases import Base
from thisness.conditioning import encode
from thisness.errors import ArtefactError, ConfigurationError
from thisness.methods import METHODS, learn, method_named
from thisness.methods.registry import settings_for
from thisness.subject import Subject

GIVEN = {"steps": 2, "lr": 1e-3, "precision": "fp32", "preset": "default", "prior_pictures": 2, "prior_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base()


@pytest.fixture(scope="module")
def subject() -> Subject:
    draws = np.random.default_rng(0)
    return Subject("rex", "dog", tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in "ab"))


def test_one_step_is_adamws_on_every_weight_of_the_denoiser(base, subject):
    """Plain torch on a copy of the UNet, with the task's own draws; AdamW without decay moves by lr * g / |g|."""
    settings = settings_for(
        method_named("dreambooth"), base, {"prior_pictures": 2, "prior_steps": 2, "storage": "fp32", "lr": 1e-3,
                                           "prior_weight": 0.5, "steps": 1, "weight_decay": 0.0, "clip": None},
        "default",
    )  # fmt: skip
    with METHODS["dreambooth"]().task(subject, base, settings, False) as task:
        task.on_start(torch.device("cpu"))
        draw = task.draw(0, torch.Generator().manual_seed(1))
    own = copy.deepcopy(base.unet).requires_grad_(True)
    words = ["a photo of a sks dog", "a photo of a dog"]
    assert draw.batch.sentences == words
    answer = own(draw.noisy, draw.timesteps, encode(base, words).embeds).sample
    error = ((answer - draw.noise) ** 2).flatten(1).mean(1)
    (error[0] + 0.5 * error[1]).backward()

    with METHODS["dreambooth"]().task(subject, base, settings, False) as task:
        task.on_start(torch.device("cpu"))
        loss = task.loss(0, torch.Generator().manual_seed(1))["loss"]
        torch.testing.assert_close(loss, error[0] + 0.5 * error[1])
        loss.backward()
        trained = dict(task.modules()["unet"].named_parameters())
        expected = {name.replace(".", "/"): parameter.grad for name, parameter in own.named_parameters()}
        assert set(trained) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(trained[name].grad, gradient, rtol=1e-3, atol=1e-6)


def test_half_precision_is_what_is_stored_and_used(base, subject):
    half = learn("dreambooth", subject, base, progress=False, **GIVEN)
    full = learn("dreambooth", subject, base, progress=False, storage="fp32", **GIVEN)
    kept, exact = half.tensors["replaced.safetensors"], full.tensors["replaced.safetensors"]
    assert {t.dtype for t in kept.values()} == {torch.float16} and {t.dtype for t in exact.values()} == {torch.float32}
    assert all(torch.equal(tensor, exact[name].half()) for name, tensor in kept.items())
    with half.attach(base):
        for name, weight in base.unet.named_parameters():
            assert torch.equal(weight, kept[f"unet.{name}"].float())


def test_the_text_encoder_trains_at_its_own_rate_and_keeps_its_words(base, subject):
    more = {"text_encoder": True, "text_lr": 1e-5, "storage": "fp32", "weight_decay": 0.0}
    learned = learn("dreambooth", subject, base, progress=False, **GIVEN | {"steps": 1} | more)
    kept = learned.tensors["replaced.safetensors"]
    words = {name for name, _ in base.text_encoder.named_parameters() if "token_embedding" in name}
    assert words and not any(f"text_encoder.{name}" in kept for name in words)
    for part, rate in (("unet", 1e-3), ("text_encoder", 1e-5)):
        names = all_weights(base.modules[part])
        moved = [(kept[f"{part}.{n}"] - base.modules[part].get_parameter(n)).abs().max() for n in names]
        assert 0.9 * rate < max(moved) < 1.1 * rate  # the first step of AdamW is the learning rate


def test_two_fine_tuned_models_at_once_are_refused(base, subject):
    one = learn("dreambooth", subject, base, progress=False, **GIVEN)
    other = learn("dreambooth", Subject("mimi", "dog", subject.images), base, progress=False, seed=1, **GIVEN)
    with (
        one.attach(base),
        pytest.raises(ConfigurationError, match="'rex' and 'mimi' both replace the same weights"),
        other.attach(base),
    ):
        pass


def test_names_of_nothing_and_other_shapes_are_refused(base):
    bias = base.unet.conv_in.bias
    for weights, says in (
        ({"conv_in.bias": torch.ones(3)}, r"conv_in.bias.*\(3,\).*\(8,\)"),
        ({"conv_in.device": torch.ones(3)}, "no weights conv_in.device"),
        ({"nowhere.bias": torch.ones(3)}, "no weights nowhere.bias"),
    ):
        with pytest.raises(ArtefactError, match=says), replaced_weights(base.unet, weights, owner="rex"):
            pass
    assert base.unet.conv_in.bias is bias


@pytest.mark.parametrize("spare", [0, 2])
def test_words_of_two_concepts_become_rows_of_the_vocabulary(spare):
    tokens = tiny.tokenizer()
    encoder = tiny.text_encoder(tokens)
    if spare:
        encoder.resize_token_embeddings(len(tokens) + spare, mean_resizing=False)
    pipe = tiny.pipeline()
    pipe.text_encoder = encoder
    base = Base.from_pipeline(pipe)
    rows = [torch.randn(n, 16, generator=torch.Generator().manual_seed(n)) for n in (2, 1)]
    with (
        attached_words(base, ("<rex>", "<rex_1>"), {"text_encoder": rows[0]}),
        attached_words(base, ("<mimi>",), {"text_encoder": rows[1]}),
        torch.no_grad(),
    ):
        ids = base.tokenizer("a <rex> <rex_1> dog <mimi>", return_tensors="pt")["input_ids"]
        ours = base.text_encoder(ids)[0]
        own = with_own_words(base.text_encoder)
        assert torch.equal(own(ids)[0], ours) and type(own.get_input_embeddings()) is torch.nn.Embedding
        assert own.config.vocab_size == len(own.get_input_embeddings().weight) == len(tokens) + 3


def test_a_folder_is_written_of_a_base_in_float32_alone(base, subject, tmp_path):
    learned = learn("dreambooth", subject, base, progress=False, **GIVEN)
    half = tiny.base().to(dtype=torch.bfloat16)
    half.signature = base.signature
    with pytest.raises(ConfigurationError, match="a base in float32"):
        learned.export(tmp_path / "out", base=half)
    with pytest.raises(ArtefactError, match="'tiny', is needed"):
        learned.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_in_half_precision_learns_in_float32_and_shows_previews(subject, tmp_path):
    half = tiny.base().to(dtype=torch.bfloat16)
    given = GIVEN | {"preview_every": 2, "storage": "fp32"}
    learned = learn("dreambooth", subject, half, folder=tmp_path / "rex", progress=False, **given)
    weight = learned.tensors["replaced.safetensors"]["unet.conv_in.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())
    assert [file.name for file in (tmp_path / "rex/previews").iterdir()] == ["step-000002.png"]
    assert half.unet.conv_in.weight.dtype == torch.bfloat16
