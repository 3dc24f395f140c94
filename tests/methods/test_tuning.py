"""What all methods that train share. Oracles: the objective written out, counted calls, a run without previews."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.conditioning import encode
from thisness.errors import ArtefactError, PromptError
from thisness.methods import learn, method_named
from thisness.methods.registry import settings_for
from thisness.methods.templates import OBJECT, sentences
from thisness.methods.tuning import prepared_for_training
from thisness.prompt import SlotWord
from thisness.subject import Subject
from thisness.training.diffusion import draw_timesteps

SETTINGS = {
    "steps": 3, "lr": 0.05, "precision": "fp32", "captions": "plain", "preset": "default", "prior_pictures": 2,
    "prior_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def subject() -> Subject:
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2))
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    return Subject("rufus", "dog", images, (mask, mask))


def task_of(base, subject, stack: ExitStack, **settings):
    """A task of DreamBooth-LoRA, ready for its first step."""
    method = method_named("dreambooth-lora")
    given = {key: value for key, value in (SETTINGS | settings).items() if key != "preset"}
    task = stack.enter_context(method().task(subject, base, settings_for(method, base, given, "default"), False))
    task.on_start(torch.device("cpu"))
    return task


def test_loss_is_the_papers_written_out(base, subject):
    """eps-prediction, two rows of the subject inside its mask, one of the class at a weight of 0.5."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, batch_size=2, prior_weight=0.5, background=0.0)
        found = task.loss(0, torch.Generator().manual_seed(7))
        rng = torch.Generator().manual_seed(7)
        pictures = torch.randint(0, 2, (2,), generator=rng)
        jitter = torch.randn(2, 4, 8, 8, generator=rng)
        torch.randint(0, 1, (2,), generator=rng)  # which sentence: there is one
        row = torch.randint(0, 2, (1,), generator=rng)
        torch.randint(0, 1, (1,), generator=rng)
        t = torch.cat([draw_timesteps(2, 1000, rng), draw_timesteps(1, 1000, rng)])
        noise = torch.randn(3, 4, 8, 8, generator=rng)
        clean = torch.cat([task.latents.mean[pictures] + task.latents.std[pictures] * jitter, task.prior[row]])
        words = ["a photo of a sks dog", "a photo of a sks dog", "a photo of a dog"]
        alpha = task.alphas[t].view(3, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        answer = base.denoiser(noisy, t, encode(base, words).embeds).sample
        error = (answer - noise) ** 2
        own = error[:2, :, 2:6, 2:6].mean()
        torch.testing.assert_close(found["subject"], own)
        torch.testing.assert_close(found["class"], error[2].mean())
        torch.testing.assert_close(found["loss"], own + 0.5 * error[2].mean())


def test_nothing_constant_is_encoded_twice(base, subject, monkeypatch):
    counts = {"vae": 0, "text": 0}
    with ExitStack() as stack:
        task = task_of(base, subject, stack)

        def counting(name, original):
            def call(*args, **kwargs):
                counts[name] += 1
                return original(*args, **kwargs)

            return call

        monkeypatch.setattr(base.vae, "encode", counting("vae", base.vae.encode))
        monkeypatch.setattr(base.text_encoder, "forward", counting("text", base.text_encoder.forward))
        rng = torch.Generator().manual_seed(0)
        for step in range(3):
            task.loss(step, rng)["loss"].backward()
        assert counts == {"vae": 0, "text": 0}
        stack.close()
        learned = task_of(base, subject, stack, identifier="new", identifier_lr=0.1)
        counts["text"] = 0
        for step in range(3):
            learned.loss(step, rng)["loss"].backward()
        assert counts["text"] == 3  # the sentence with the learned word, not that of the class


def test_masked_loss_does_not_see_the_background(base, subject):
    with ExitStack() as stack:
        task = task_of(base, subject, stack, background=0.0, prior_pictures=0)
        before = task.loss(0, torch.Generator().manual_seed(1))["loss"]
        predict = base.predict

        def disturbed(latents, *args, **kwargs):
            answer = predict(latents, *args, **kwargs)
            mask = torch.zeros(1, 1, 8, 8)
            mask[:, :, 2:6, 2:6] = 1
            return answer * mask + 100 * (1 - mask)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "predict", disturbed)
            assert torch.equal(task.loss(0, torch.Generator().manual_seed(1))["loss"], before)


def test_previews_are_real_pictures_and_change_nothing(base, subject, tmp_path):
    without = learn("dreambooth-lora", subject, base, progress=False, **SETTINGS)
    with_previews = learn(
        "dreambooth-lora", subject, base, folder=tmp_path / "rufus", progress=False, preview_every=2, **SETTINGS
    )
    for file, group in without.tensors.items():
        for name, tensor in group.items():
            assert torch.equal(tensor, with_previews.tensors[file][name])
    shown = sorted((tmp_path / "rufus" / "previews").iterdir())
    assert [path.name for path in shown] == ["step-000002.png", "step-000003.png"]  # steps 2 and 3
    sheets = [np.asarray(Image.open(path)) for path in shown]
    assert not np.array_equal(*sheets) and (sheets[0] == 255).all(-1).mean() > 0.1  # pictures on a white page
    assert with_previews.manifest["settings"] == without.manifest["settings"]


def test_presets_by_size_and_what_is_given_wins(base):
    method = method_named("dreambooth-lora")
    small = settings_for(method, base, {"rank": 2})
    assert small.rank == 2 and small.lr == method.presets["small"]["lr"]
    assert settings_for(method, base, {}, "default") == method.Settings()


def test_sentences_that_the_tokenizer_spells_out_are_left_out(base):
    """The tiny tokenizer knows 16 words; of the 27 sentences it reads few."""
    found = sentences(base, OBJECT, SlotWord("sks dog", "dog"))
    assert "a photo of a sks dog" in found and "a rendition of the sks dog" not in found
    with pytest.raises(PromptError, match="must have {subject}"):
        sentences(base, ["a photo of a dog"], SlotWord("sks dog", "dog"))
    with pytest.raises(PromptError, match="knows the words of none"):
        sentences(base, ["an etching of a {subject}"], SlotWord("sks dog", "dog"))


def test_prepared_only_for_the_length_of_the_training(base):
    """Plain attention and checkpointing go again, attributes included."""

    def state():
        processors = {name: id(each) for name, each in base.denoiser.attn_processors.items()}
        modes = {
            name: m.gradient_checkpointing
            for name, m in base.denoiser.named_modules()
            if hasattr(m, "gradient_checkpointing")
        }
        return processors, modes, {name: set(m.__dict__) for name, m in base.denoiser.named_modules()}

    before = state()
    with pytest.raises(RuntimeError, match="on purpose"), prepared_for_training(base, checkpointing=True):
        assert {type(each).__name__ for each in base.denoiser.attn_processors.values()} == {"AttnProcessor"}
        assert any(state()[1].values())
        raise RuntimeError("on purpose")
    assert state() == before


def test_checkpointing_gives_the_same_gradients(base, subject):
    gradients = []
    for checkpointing in (False, True):
        with ExitStack() as stack:
            stack.enter_context(prepared_for_training(base, checkpointing))
            task = task_of(base, subject, stack)
            for weights in task.modules().values():
                torch.nn.init.normal_(next(iter(weights.parameters())), generator=torch.Generator().manual_seed(0))
            task.loss(0, torch.Generator().manual_seed(1))["loss"].backward()
            gradients.append([p.grad for module in task.modules().values() for p in module.parameters()])
    assert sum(float(g.abs().sum()) for g in gradients[0]) > 0
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_a_folder_of_somebody_elses_is_refused_before_the_work(base, subject, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="was not written by thisness"):
        learn("dreambooth-lora", subject, base, folder=tmp_path, progress=False, **SETTINGS)
    assert not tmp_path.with_name(tmp_path.name + ".training").exists()
