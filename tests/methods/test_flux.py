"""Methods on FLUX. Oracles: the base before, plain diffusers as the export's own `usage.txt` says, the class prompt,
the objective on paper."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tiny_flux
import torch
from PIL import Image

import tiny
from thisness.adapters import EMBEDDINGS, LORA
from thisness.concept import Concept
from thisness.conditioning import Sentence, encode, encode_adjusted
from thisness.errors import ConfigurationError
from thisness.generation import generate, replay
from thisness.methods import learn
from thisness.methods.tea import rotate
from thisness.methods.tea_adjustment import Tea
from thisness.prompt import Prompt, SlotWord
from thisness.sampling import SamplingOptions
from thisness.subject import Subject
from thisness.training.diffusion import draw_flow, interpolated, target

SHARED = {"steps": 2, "lr": 0.05, "precision": "fp32", "preset": "default"}
OWN = {"identifier": "new", "identifier_lr": 0.05, "text_encoder": True}
CASES = {
    "textual-inversion": ("textual-inversion", {"vectors": 2, "captions": "plain"}),
    "lora": ("dreambooth-lora", {"identifier": "sks", "background": 0.2, "prior_pictures": 2, "prior_steps": 2}),
    "lora-text": ("dreambooth-lora", {**OWN, "targets": "transformer", "prior_pictures": 0}),
}
OPTIONS = SamplingOptions(steps=2, guidance=2.0)
SENTENCE = "a photo of a {subject} on the beach"


@pytest.fixture(scope="module")
def base():
    return tiny_flux.base()


@pytest.fixture(scope="module")
def subject():
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(2))
    mask = np.zeros((32, 32), np.float32)
    mask[8:24, 8:24] = 1
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


def test_the_objective_goes_straight_from_noise_to_the_picture():
    clean, noise = torch.randn(2, 3, 16, 4, 4).unbind()
    time = torch.tensor([0.0, 0.4, 1.0])
    noisy = interpolated(clean, noise, time)
    assert torch.equal(noisy[0], clean[0]) and torch.equal(noisy[2], noise[2])
    velocity = target(clean, noise, time, "flow_prediction")
    base = tiny_flux.base()
    assert torch.allclose(base.predicted_clean(noisy[1], velocity[1], 400.0), clean[1], atol=1e-6)
    drawn = draw_flow(20_000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.logit().std(), torch.tensor(1.0), atol=0.02) and abs(float(drawn.mean()) - 0.5) < 0.01


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
        assert shapes == {"text_encoder_2": (count, 32), "text_encoder": (count, 16)}
    if case == "lora-text":
        assert {key.split(".")[0] for key in concept.tensors[LORA]} == {"transformer", "text_encoder"}


@pytest.mark.parametrize("case", CASES)
def test_plain_diffusers_makes_the_same_picture(case, base, learned, tmp_path, monkeypatch):
    concept = learned(case)
    concept.export(tmp_path / "export", base=base)
    text = (tmp_path / "export" / "usage.txt").read_text()
    code = [line for line in text.splitlines() if line.startswith(("from ", "pipe", "words", "assert"))]
    call = next(line for line in code if line.startswith('pipe("'))
    before = [line.replace("FluxPipeline.from_pretrained('tiny-flux')", "tiny_flux.pipeline()") for line in code]
    monkeypatch.chdir(tmp_path / "export")
    names = {"tiny_flux": tiny_flux}
    exec("\n".join(before[: code.index(call)]), names)
    pipe = names["pipe"]
    pipe.set_progress_bar_config(disable=True)
    word = call.split('"')[1].removeprefix("a photo of a ")
    made = pipe(
        f"a photo of a {word} on the beach", num_inference_steps=2, guidance_scale=2.0, height=32, width=32,
        generator=torch.Generator().manual_seed(0), max_sequence_length=tiny_flux.TEXT_LENGTH,
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(made, np.float32) - picture(base, concept))
    assert difference.max() <= 1  # one of 255 levels: sums in another order


def test_what_is_exported_comes_back(base, learned, tmp_path):
    concept = learned("lora-text")
    concept.export(tmp_path / "out")
    words = Concept.from_textual_inversion(tmp_path / "out" / "learned_embeds.safetensors", base, "dog", name="rufus")
    weights = Concept.from_lora(tmp_path / "out" / "pytorch_lora_weights.safetensors", base, "dog", name="rufus")
    for name, rows in concept.tensors[EMBEDDINGS].items():
        assert torch.equal(words.tensors[EMBEDDINGS][name], rows)
    assert weights.tensors[LORA].keys() == concept.tensors[LORA].keys()
    assert all(torch.equal(weights.tensors[LORA][key], each) for key, each in concept.tensors[LORA].items())
    with pytest.raises(ConfigurationError, match="FLUX is not written here"):
        concept.export(tmp_path / "kohya", to="kohya")


def test_a_record_replays(base, learned, tmp_path):
    concept = learned("lora-text")
    made = generate(base, SENTENCE, concept=concept, seeds=(3,), options=OPTIONS, adjust="tea:alpha=0.5")
    png = next(path for path in made.save(tmp_path) if path.suffix == ".png")
    again = replay(png, base, concept)
    assert np.array_equal(again.images[0], made.images[0]) and not again.differences


def test_what_flux_has_not_is_refused_in_one_line(base, subject):
    for method, more, said in (
        ("custom-diffusion", {"prior_pictures": 0}, "has no cross-attention"),
        ("textual-inversion", {"snr_gamma": 5.0}, "trained by flow matching: leave it out"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            learn(method, subject, base, progress=False, **SHARED | more)


def test_what_acts_on_cross_attention_says_so(base, subject, learned, tmp_path):
    from thisness.diagnostics.attention_maps import attention_maps
    from thisness.methods.zero_shot import read_subject

    for method in ("ip-adapter", "ip-adapter-plus"):
        with pytest.raises(ConfigurationError, match=f"{method} acts on cross-attention, which a FluxTransformer2D"):
            read_subject(method, subject, base)
    with pytest.raises(ConfigurationError, match="attention-swap acts on cross-attention"):
        generate(base, SENTENCE, concept=learned("lora"), options=OPTIONS, interventions=["attention-swap"])
    with pytest.raises(ConfigurationError, match="a map of words acts on cross-attention"):
        attention_maps(base, SENTENCE, concept=learned("lora"), options=OPTIONS)


# --- TEA ---


def adjusted(base, concept, tea, template=SENTENCE):
    filled = Prompt(template).fill({"subject": concept.word})
    sentence = Sentence(base, filled, {"subject": concept}, (), lambda *_: [])
    with torch.no_grad(), concept.attach(base):
        plain = encode(base, Prompt(template).fill({"subject": SlotWord("dog", "dog")}))
        return encode_adjusted(sentence, [tea]).conditioning, plain, encode(base, filled)


def test_tea_all_the_way_on_the_rows_of_both_encoders_is_the_class_prompt(base, subject):
    one = learn("textual-inversion", subject, base, progress=False, **SHARED, vectors=1, captions="plain")
    found, noun, word = adjusted(base, one, Tea(alpha=1.0, gamma=1.0))
    assert not torch.allclose(word.pooled, noun.pooled, atol=1e-3)
    assert not torch.allclose(word.embeds, noun.embeds, atol=1e-3)
    assert torch.allclose(found.pooled, noun.pooled, atol=1e-5)
    assert torch.allclose(found.embeds, noun.embeds, atol=1e-5)


def test_tea_turns_the_sequence_of_t5_by_position_and_the_pooled_vector(base, learned):
    concept = learned("lora-text")
    found, noun, word = adjusted(base, concept, Tea(alpha=0.3, gamma=0.5, align="positional"))
    assert torch.allclose(found.embeds, rotate(word.embeds, noun.embeds, 0.3, 0.5).vectors, atol=1e-5)
    assert torch.allclose(found.pooled, rotate(word.pooled, noun.pooled, 0.3, 0.5).vectors, atol=1e-5)
    assert not torch.allclose(found.pooled, word.pooled, atol=1e-3)


def test_tea_by_spans_meets_the_same_words(base, learned):
    """One word more before the noun: what follows it is one position later, and meets its own."""
    concept = learned("lora-text")
    found, noun, word = adjusted(base, concept, Tea(alpha=1.0, gamma=1.0))
    spans, other = word.spans[0], noun.spans[0]
    (place,) = spans.slots
    shift = spans.end - other.end
    assert shift >= 1 and not torch.allclose(found.embeds, word.embeds, atol=1e-3)
    after = range(max(place.all) + 1, spans.end + 1)
    for at in after:
        assert torch.allclose(found.embeds[0, at], noun.embeds[0, at - shift], atol=1e-5)
    for at in range(min(place.all)):
        assert torch.allclose(found.embeds[0, at], noun.embeds[0, at], atol=1e-5)


def test_tea_by_dimension_weighs_clips_rows_by_the_pooled_state(base, subject):
    from thisness.methods.tea_weights import of_rows

    one = learn("textual-inversion", subject, base, progress=False, **SHARED, vectors=1, captions="plain")
    with one.attach(base):
        filled = Prompt(SENTENCE).fill({"subject": one.word})
        weights = of_rows(base, filled, one.tokens)
    assert {name: tuple(each.shape) for name, each in weights.items()} == {
        "text_encoder_2": (1, 32), "text_encoder": (1, 16),
    }  # fmt: skip
    assert all(bool((each > 0).all()) for each in weights.values())
    assert not all(torch.allclose(each, each.mean().expand_as(each), rtol=0.05) for each in weights.values())
