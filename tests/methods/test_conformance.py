"""What every registered method must do. Oracles: the base before, an undisturbed run, plain diffusers.

A new method joins by an entry in SMALLEST.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import tiny
from thisness.bases import Base
from thisness.concept import Concept
from thisness.conditioning import encode
from thisness.errors import ConfigurationError
from thisness.methods import METHODS, Stopped, learn
from thisness.methods.zero_shot import zero_shot_methods
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions, decode_images, sample
from thisness.subject import Subject
from thisness.training.checkpoint import steps_on_disk

SHARED = {"steps": 3, "lr": 0.05, "precision": "fp32", "captions": "plain", "preset": "default"}
PRIOR = {"prior_pictures": 2, "prior_steps": 2}
DETEX = {
    "start": "", "image_encoder": tiny.clip_folder(), "pose_words": "with {word}", "background_words": "on {word}",
    "pose_start": "sleeping", "background_start": "beach snow", "attention_weight": 0.5,
}  # fmt: skip
SMALLEST: dict[str, list[dict]] = {
    "textual-inversion": [{"vectors": 2, "flip": True, "captions": "object"}, {"keep_noun": True, "snr_gamma": 5.0}],
    "dreambooth-lora": [
        {"identifier": "sks", **PRIOR},
        {"identifier": "new", "identifier_lr": 0.05, "text_encoder": True, "background": 0.2, "alpha": 2.0, **PRIOR},
        {"identifier": "new", "prior_pictures": 0, "targets": "all", "crops": 1},
    ],
    "dreambooth": [
        {"lr": 3e-3, "identifier": "sks", **PRIOR},
        {"lr": 3e-3, "identifier": "new", "identifier_lr": 0.05, "text_encoder": True, "storage": "fp32", **PRIOR},
    ],
    "custom-diffusion": [{"start": "sks", "flip": True, **PRIOR}, {"start": "", "background": 0.2, **PRIOR}],
    "detex": [
        {**DETEX, **PRIOR},
        {**DETEX, **PRIOR, "mappers": "free", "attention_weight": 0.0, "gamma": 1.0, "masked": True},
        {**DETEX, "prior_pictures": 0, "mappers": "each", "attribute": "view", "pose_input": "filtered"},
    ],
}
CASES = [pytest.param(name, more, id=f"{name}-{n}") for name, all_ in SMALLEST.items() for n, more in enumerate(all_)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base("v_prediction")


@pytest.fixture(scope="module")
def subject() -> Subject:
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2))
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    return Subject("rufus", "dog", images, (mask, mask.T[::-1].copy()))


def fingerprint(base: Base) -> tuple:
    """All that learning and attaching must leave as it was, to the bit."""
    digest = hashlib.sha256()
    for part in base.modules.values():
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    return (
        digest.hexdigest(),
        len(base.tokenizer),
        [sorted(part.__dict__) for part in base.modules.values()],
        [(n, id(m), m.training) for part in base.modules.values() for n, m in part.named_modules()],
        [(n, p.requires_grad, p.grad) for part in base.modules.values() for n, p in part.named_parameters()],
        {name: id(processor) for name, processor in base.denoiser.attn_processors.items()},
    )


def picture(base: Base, concept: Concept | None, noun: str = "dog") -> np.ndarray:
    """Seed 0, three steps, guidance 2: (H, W, 3) in 0 ... 255."""
    text = Prompt("a photo of a {subject} on the beach")
    word = concept.word if concept else Subject("x", noun, (Image.new("RGB", (8, 8)),)).word
    options = SamplingOptions(steps=3, guidance=2.0, scheduler="ddim")
    latents = sample(base, encode(base, text.fill({"subject": word})), None, [0], options)
    return np.asarray(decode_images(base, latents)[0], np.float32)


def same_tensors(one: Concept, other: Concept) -> bool:
    flat = [{f"{f}/{k}": t for f, group in c.tensors.items() for k, t in group.items()} for c in (one, other)]
    return flat[0].keys() == flat[1].keys() and all(torch.equal(flat[0][key], flat[1][key]) for key in flat[0])


def test_every_method_is_tested_here():
    assert set(SMALLEST) == set(METHODS) - set(zero_shot_methods())  # those learn nothing: tests of their own


@pytest.mark.parametrize(("method", "more"), CASES)
class TestMethod:
    def test_learns_saves_loads_attaches_and_leaves_the_base_alone(self, method, more, base, subject, tmp_path):
        before, plain = fingerprint(base), picture(base, None)
        settings = SHARED | more
        concept = learn(method, subject, base, folder=tmp_path / "rufus", progress=False, **settings)
        assert fingerprint(base) == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["rufus"]  # nothing is left of the training
        loaded = Concept.load(tmp_path / "rufus", base=base)
        assert loaded.manifest == concept.manifest and same_tensors(loaded, concept)
        with loaded.attach(base):
            changed = picture(base, loaded)
        assert np.abs(changed - plain).max() > 4  # of 255: it has an effect
        assert fingerprint(base) == before and np.array_equal(picture(base, None), plain)
        with pytest.raises(RuntimeError, match="on purpose"), loaded.attach(base):
            raise RuntimeError("on purpose")
        assert fingerprint(base) == before

    def test_stopped_and_resumed_equals_uninterrupted(self, method, more, base, subject, tmp_path):
        settings = SHARED | more
        whole = learn(method, subject, base, progress=False, **settings)
        before, stops = fingerprint(base), 0
        while True:
            try:
                again = learn(method, subject, base, folder=tmp_path / "x", progress=False, stop_after=0.0, **settings)
                break
            except Stopped as stopped:
                stops += 1
                assert f"at step {stops} of 3: the same command goes on" in str(stopped)
                assert fingerprint(base) == before
        assert stops == 2 and same_tensors(whole, again)

    def test_plain_diffusers_makes_the_same_picture(self, method, more, base, subject, tmp_path):
        concept = learn(method, subject, base, progress=False, **SHARED | more)
        files = concept.export(tmp_path / "export", base=base)
        with concept.attach(base):
            ours = picture(base, concept)
        word = concept.word.text
        if (tmp_path / "export" / "model_index.json") in files:
            pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "export")
            pipe.set_progress_bar_config(disable=True)
        else:
            pipe = tiny.pipeline("v_prediction")  # the same weights, made anew
        if (tmp_path / "export" / "learned_embeds.safetensors") in files:
            pipe.load_textual_inversion(tmp_path / "export", weight_name="learned_embeds.safetensors")
            word = " ".join(piece for piece in word.split() if piece not in concept.tokens[1:])
        if (tmp_path / "export" / "pytorch_lora_weights.safetensors") in files:
            pipe.load_lora_weights(tmp_path / "export", weight_name="pytorch_lora_weights.safetensors")
        if (tmp_path / "export" / "unet_kv.safetensors") in files:
            weights = load_file(tmp_path / "export" / "unet_kv.safetensors")
            assert not pipe.unet.load_state_dict(weights, strict=False).unexpected_keys
        generator = torch.Generator().manual_seed(0)
        made = pipe(
            f"a photo of a {word} on the beach", num_inference_steps=3, guidance_scale=2.0, generator=generator,
            height=16, width=16, output_type="pil",
        ).images[0]  # fmt: skip
        difference = np.abs(np.asarray(made, np.float32) - ours)
        assert difference.max() <= 1  # one of 255 levels: sums in another order

    def test_done_is_not_done_again_and_other_settings_are_refused(self, method, more, base, subject, tmp_path):
        settings = SHARED | more
        with pytest.raises(Stopped):
            learn(method, subject, base, folder=tmp_path / "x", progress=False, stop_after=0.0, **settings)
        with pytest.raises(ConfigurationError, match=r"settings\.method\.weight_decay: 0\.01 -> 0\.5"):
            learn(method, subject, base, folder=tmp_path / "x", progress=False, **settings, weight_decay=0.5)
        assert steps_on_disk(tmp_path / "x.training") == [1]
        learn(method, subject, base, folder=tmp_path / "x", progress=False, **settings)
        stamp = (tmp_path / "x" / "concept.json").stat().st_mtime_ns
        learn(method, subject, base, folder=tmp_path / "x", progress=False, **settings, checkpoint_seconds=9.0)
        assert (tmp_path / "x" / "concept.json").stat().st_mtime_ns == stamp
        assert Path(tmp_path / "x" / "log.jsonl").is_file()


def test_unknown_names_have_the_nearest(base, subject):
    with pytest.raises(ConfigurationError, match=r"no method 'textual-inversoin' \(did you mean 'textual-inversion'"):
        learn("textual-inversoin", subject, base)
    with pytest.raises(ConfigurationError, match=r"no setting 'stepps' \(did you mean 'steps'"):
        learn("textual-inversion", subject, base, stepps=3)
    with pytest.raises(ConfigurationError, match=r"no preset 'smal' \(did you mean 'small'"):
        learn("textual-inversion", subject, base, preset="smal")
    with pytest.raises(ConfigurationError, match="steps must be at least 1"):
        learn("dreambooth-lora", subject, base, steps=0)
    with pytest.raises(ConfigurationError, match="identifier_lr needs identifier=new"):
        learn("dreambooth-lora", subject, base, preset="default", identifier_lr=0.1)
