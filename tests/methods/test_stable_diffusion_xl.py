"""Every method on SDXL. Oracles: the base before, plain diffusers as the export's own `usage.txt` says, the class
prompt."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.adapters import EMBEDDINGS, LORA
from thisness.concept import Concept
from thisness.conditioning import Sentence, encode, encode_adjusted
from thisness.generation import generate, replay
from thisness.methods import METHODS, learn
from thisness.methods.tea import adjust_sequence, positional, rotate
from thisness.methods.tea_adjustment import Tea
from thisness.methods.zero_shot import zero_shot_methods
from thisness.prompt import Prompt, SlotWord
from thisness.sampling import SamplingOptions
from thisness.subject import Subject

SHARED = {"steps": 2, "lr": 0.05, "precision": "fp32", "preset": "default"}
PRIOR = {"prior_pictures": 2, "prior_steps": 2}
OWN = {"identifier": "new", "identifier_lr": 0.05, "text_encoder": True, "prior_pictures": 0}
CASES = {
    "textual-inversion": ("textual-inversion", {"vectors": 2}),
    "lora": ("dreambooth-lora", {"identifier": "sks", "background": 0.2, **PRIOR}),
    "lora-text": ("dreambooth-lora", OWN),
    "dreambooth": ("dreambooth", {"lr": 3e-3, **OWN}),
    "custom-diffusion": ("custom-diffusion", {"start": "sks", **PRIOR}),
    "detex": (
        "detex",
        {
            "start": "", "image_encoder": tiny.clip_folder(), "pose_words": "with {word}",
            "background_words": "on {word}", "pose_start": "sleeping", "background_start": "beach snow",
            "attention_weight": 0.5, "prior_pictures": 0,
        },
    ),
}  # fmt: skip
OPTIONS = SamplingOptions(steps=3, guidance=2.0, scheduler="ddim")
SENTENCE = "a photo of a {subject} on the beach"


@pytest.fixture(scope="module")
def base():
    return tiny.base_xl("v_prediction")


@pytest.fixture(scope="module")
def subject():
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2))
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    return Subject("rufus", "dog", images, (mask, mask.T[::-1].copy()))


@pytest.fixture(scope="module")
def learned(base, subject, tmp_path_factory):
    """Each case's concept, learned once."""
    done = {}

    def of(case):
        if case not in done:
            method, more = CASES[case]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
                done[case] = learn(method, subject, base, progress=False, **SHARED | more)
        return done[case]

    return of


def fingerprint(base):
    digest = hashlib.sha256()
    for part in base.modules.values():
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    modules = [(name, id(module)) for part in base.modules.values() for name, module in part.named_modules()]
    return digest.hexdigest(), [len(each) for each in base.tokenizers], modules


def picture(base, concept=None):
    made = generate(base, SENTENCE, subject=tiny.toy(), concept=concept, options=OPTIONS)
    return np.asarray(made.images[0], np.float32)


def test_every_method_is_tested_here():
    learning = set(METHODS) - set(zero_shot_methods())  # the others have tests of their own
    assert {method for method, _ in CASES.values()} == learning


@pytest.mark.parametrize("case", CASES)
def test_learns_saves_attaches_and_leaves_the_base_alone(case, base, learned, tmp_path):
    before, plain = fingerprint(base), picture(base)
    concept = learned(case)
    assert fingerprint(base) == before
    concept.save(tmp_path / "rufus")
    loaded = Concept.load(tmp_path / "rufus", base=base)
    assert np.abs(picture(base, loaded) - plain).max() > 2  # of 255
    assert fingerprint(base) == before and np.array_equal(picture(base), plain)
    if EMBEDDINGS in concept.tensors:
        shapes = {name: tuple(rows.shape) for name, rows in concept.tensors[EMBEDDINGS].items()}
        count = len(concept.tokens)
        assert shapes == {"text_encoder": (count, 16), "text_encoder_2": (count, 24)}


@pytest.mark.parametrize("case", CASES)
def test_plain_diffusers_makes_the_same_picture(case, base, learned, tmp_path, monkeypatch):
    concept = learned(case)
    concept.export(tmp_path / "export", base=base)
    text = (tmp_path / "export" / "usage.txt").read_text()
    code = [line for line in text.splitlines() if line.startswith(("from ", "pipe", "words", "assert"))]
    call = next(line for line in code if line.startswith('pipe("'))
    before = [line for line in code[: code.index(call)]]
    if case != "dreambooth":  # a folder of its own
        before = [line.replace("from_pretrained('tiny-xl')", "from_components()") for line in before]
        before = [line.replace("StableDiffusionXLPipeline.from_comp", "tiny.from_comp") for line in before]
    monkeypatch.setattr(tiny, "from_components", lambda: tiny.pipeline_xl("v_prediction"), raising=False)
    monkeypatch.chdir(tmp_path / "export")
    names = {"tiny": tiny}
    exec("\n".join(before), names)
    pipe = names["pipe"]
    pipe.set_progress_bar_config(disable=True)
    word = call.split('"')[1].removeprefix("a photo of a ")
    made = pipe(
        f"a photo of a {word} on the beach", num_inference_steps=3, guidance_scale=2.0, height=16, width=16,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(made, np.float32) - picture(base, concept))
    assert difference.max() <= 1  # one of 255 levels: sums in another order


def test_a_record_replays(base, learned, tmp_path):
    concept = learned("lora-text")
    made = generate(base, SENTENCE, concept=concept, seeds=(3,), options=OPTIONS, adjust="tea:alpha=0.5")
    png = next(path for path in made.save(tmp_path) if path.suffix == ".png")
    again = replay(png, base, concept)
    assert np.array_equal(again.images[0], made.images[0]) and not again.differences


def test_what_is_exported_for_others_comes_back(base, learned, tmp_path):
    concept = learned("lora-text")
    for to, word, lora in (
        ("diffusers", "learned_embeds", "pytorch_lora_weights"),
        ("kohya", "rufus", "rufus_lora"),
    ):
        concept.export(tmp_path / to, to=to)
        words = Concept.from_textual_inversion(tmp_path / to / f"{word}.safetensors", base, "dog", name="rufus")
        weights = Concept.from_lora(tmp_path / to / f"{lora}.safetensors", base, "dog", name="rufus")
        for name, rows in concept.tensors[EMBEDDINGS].items():
            assert torch.equal(words.tensors[EMBEDDINGS][name], rows)
        assert weights.tensors[LORA].keys() == concept.tensors[LORA].keys()
        assert {key.split(".")[0] for key in weights.tensors[LORA]} == {"unet", "text_encoder", "text_encoder_2"}
        assert all(torch.equal(weights.tensors[LORA][key], each) for key, each in concept.tensors[LORA].items())


# --- TEA ---


def adjusted(base, concept, tea, template=SENTENCE):
    filled = Prompt(template).fill({"subject": concept.word})
    sentence = Sentence(base, filled, {"subject": concept}, (), lambda *_: [])
    with torch.no_grad(), concept.attach(base):
        plain = encode(base, Prompt(template).fill({"subject": SlotWord("dog", "dog")}))
        return encode_adjusted(sentence, [tea]).conditioning, plain, encode(base, filled)


def test_tea_all_the_way_on_the_rows_of_both_encoders_is_the_class_prompt(base, subject):
    one = learn("textual-inversion", subject, base, progress=False, **SHARED, vectors=1)
    found, noun, word = adjusted(base, one, Tea(alpha=1.0, gamma=1.0))
    assert not torch.allclose(word.pooled, noun.pooled, atol=1e-3)
    assert torch.allclose(found.embeds, noun.embeds, atol=1e-5) and torch.allclose(found.pooled, noun.pooled, atol=1e-5)


def test_tea_all_the_way_on_the_sentence_is_the_class_prompt(base, learned):
    found, noun, word = adjusted(base, learned("lora-text"), Tea(alpha=1.0, gamma=1.0, align="positional"))
    assert not torch.allclose(word.embeds, noun.embeds, atol=1e-3)
    assert torch.allclose(found.embeds, noun.embeds, atol=1e-5) and torch.allclose(found.pooled, noun.pooled, atol=1e-5)


def test_tea_turns_each_encoders_block_by_itself_then_the_pooled_text(base, learned):
    found, noun, word = adjusted(base, learned("lora-text"), Tea(alpha=0.3, gamma=0.5, align="positional"))
    blocks = zip(word.embeds.split(tiny.XL_WIDTHS, -1), noun.embeds.split(tiny.XL_WIDTHS, -1), strict=True)
    expected = torch.cat([rotate(own, other, 0.3, 0.5).vectors for own, other in blocks], -1)
    assert torch.allclose(found.embeds, expected, atol=1e-5)
    assert torch.allclose(found.pooled, rotate(word.pooled, noun.pooled, 0.3, 0.5).vectors, atol=1e-5)
    joint = rotate(word.embeds, noun.embeds, 0.3, 0.5).vectors
    assert not torch.allclose(expected, joint, atol=1e-4)


@pytest.mark.parametrize("block", [0, 1])
def test_tea_on_one_encoders_block_leaves_the_other(base, block):
    with torch.no_grad():
        word, noun = encode(base, "a cat").embeds[0], encode(base, "a dog").embeds[0]
    width = tiny.XL_WIDTHS[0]
    inside = slice(0, width) if block == 0 else slice(width, None)
    outside = slice(width, None) if block == 0 else slice(0, width)
    other = word.clone()
    other[:, inside] = noun[:, inside]
    done = adjust_sequence(word, other, positional(len(word), len(word)), 0.4, widths=list(tiny.XL_WIDTHS)).vectors
    assert torch.equal(done[:, outside], word[:, outside]) and not torch.equal(done[:, inside], word[:, inside])


def test_the_negative_stays_zeros_under_tea(base, learned, monkeypatch):
    made = {}
    predict, seen = base.predict, []

    def watched(latents, timestep, conditioning, **more):
        seen.append(conditioning)
        return predict(latents, timestep, conditioning, **more)

    monkeypatch.setattr(base, "predict", watched)
    for adjust in ("", "tea:alpha=0.5"):
        generate(base, SENTENCE, concept=learned("lora-text"), options=OPTIONS, adjust=[adjust] if adjust else [])
        made[adjust] = seen[-1]
    for read in made.values():
        assert not read.embeds[0].any() and not read.pooled[0].any()
    assert not torch.equal(made[""].pooled[1], made["tea:alpha=0.5"].pooled[1])
