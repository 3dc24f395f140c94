"""Oracles: the stock pipeline's pictures; a seed's picture alone; a second run; the words of the concept."""

import numpy as np
import pytest
import torch

import tiny
from thisness.attention import CaptureMaps
from thisness.conditioning import ADJUSTMENTS, Conditioning
from thisness.errors import ConfigurationError, PromptError, ThisnessError
from thisness.generation import generate
from thisness.sampling import SamplingOptions

OPTIONS = SamplingOptions(steps=3, guidance=4.0)


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


def arrays(generation):
    return [np.asarray(image) for image in generation.images]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(arrays(one), arrays(other), strict=True))


def test_pictures_are_those_of_the_stock_pipeline(base):
    ours = generate(base, "a dog on the beach", seeds=(3, 4), negative="a cat", options=OPTIONS)
    pipe = base.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "a dog on the beach",
        negative_prompt="a cat",
        num_images_per_prompt=2,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
    ).images
    assert all(np.array_equal(a, b) for a, b in zip(ours.images, expected, strict=True))


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a", "dpm++-sde"])
def test_a_seed_gives_its_picture_alone_and_in_a_batch(base, scheduler):
    """The tolerance that `generate` states: 1 level of 255, in 1 of 1,000 values."""
    options = SamplingOptions(steps=4, guidance=3.0, scheduler=scheduler)
    together = np.stack(arrays(generate(base, "a dog", seeds=range(4), options=options, batch_size=4))).astype(int)
    for size in (1, 3):
        apart = np.stack(arrays(generate(base, "a dog", seeds=range(4), options=options, batch_size=size)))
        difference = np.abs(together - apart)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 1e-3
    assert np.abs(together[0] - together[1]).max() > 20  # another seed is another picture


def test_the_same_call_gives_the_same_bits(base):
    first, second = (generate(base, "a dog", seeds=(5, 6, 7), options=OPTIONS, batch_size=2) for _ in range(2))
    assert same(first, second)
    assert first.record == second.record


def test_without_a_concept_the_placeholder_becomes_the_noun(base):
    filled = generate(base, "a {subject} on the beach", subject=tiny.toy("cat"), options=OPTIONS)
    assert filled.record["sentence"] == "a cat on the beach"
    assert same(filled, generate(base, "a cat on the beach", options=OPTIONS))
    assert not same(filled, generate(base, "a dog on the beach", options=OPTIONS))
    two = generate(
        base, "a {rex} on a {mug}", subject={"rex": tiny.toy("cat"), "mug": tiny.toy("hat")}, options=OPTIONS
    )
    assert same(two, generate(base, "a cat on a hat", options=OPTIONS))


def test_a_concept_is_attached_for_the_call_only(base):
    plain = generate(base, "a sks dog on the beach", options=OPTIONS)
    learned = generate(base, "a {subject} on the beach", concept=tiny.Louder(), options=OPTIONS)
    assert learned.record["sentence"] == "a sks dog on the beach"
    assert not same(learned, plain)
    assert same(generate(base, "a sks dog on the beach", options=OPTIONS), plain)

    def fail(step):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        generate(base, "a {subject} on the beach", concept=tiny.Louder(), options=OPTIONS, on_step=fail)
    assert same(generate(base, "a sks dog on the beach", options=OPTIONS), plain)


def test_adjustments_change_the_sentence_and_not_its_negative(base):
    seen = []

    def halved(conditioning):
        seen.append(conditioning)
        return conditioning.with_embeds(conditioning.embeds * 0.5)

    adjusted = generate(base, "a dog", seeds=range(4), options=OPTIONS, adjust=[halved], batch_size=2)
    assert len(seen) == 1  # encoded once for both batches
    assert isinstance(seen[0], Conditioning) and seen[0].spans[0].text == "a dog"
    assert not same(adjusted, generate(base, "a dog", seeds=range(4), options=OPTIONS, batch_size=2))
    assert adjusted.record["unsaid"]

    def gone(conditioning):
        return conditioning.with_embeds(conditioning.embeds * 0)

    unguided = SamplingOptions(steps=3, guidance=1.0)
    a, b = (generate(base, text, options=unguided, adjust=[gone]) for text in ("a dog", "a cat"))
    assert same(a, b)


def test_interventions_are_attached(base):
    maps = CaptureMaps()
    watched = generate(base, "a dog", seeds=(1, 2), options=OPTIONS, interventions=[maps])
    assert len(maps.maps) == 3 * 4 and next(iter(maps.maps.values())).shape[0] == 2
    assert same(watched, generate(base, "a dog", seeds=(1, 2), options=OPTIONS))


def test_progress_counts_every_step_of_every_batch(base, capsys):
    steps = []
    generate(base, "a dog", seeds=range(3), options=OPTIONS, batch_size=2, on_step=steps.append, progress=True)
    assert [(step.number, step.count) for step in steps] == [(1, 3), (2, 3), (3, 3)] * 2
    assert steps[0].latents.shape[0] == 2 and steps[-1].latents.shape[0] == 1
    assert "6/6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"prompt": ""}, PromptError, "empty"),
        ({"prompt": "a {subject}"}, PromptError, "subject"),
        ({"prompt": "a dog", "subject": "toy"}, PromptError, "{subject}"),
        ({"prompt": "a {rex} on a {mug}", "subject": "toy"}, ConfigurationError, "mapping"),
        ({"prompt": "a " + "dog " * 30}, PromptError, "dog"),
        ({"prompt": "a dog", "seeds": ()}, ConfigurationError, "seed"),
        ({"prompt": "a dog", "seeds": (-1,)}, ConfigurationError, "seed -1"),
        ({"prompt": "a dog", "batch_size": 0}, ConfigurationError, "batch_size 0"),
        ({"prompt": "a dog", "adjust": ["nonsense:alpha=1"]}, ConfigurationError, "nonsense"),
        ({"prompt": "a dog", "interventions": [CaptureMaps]}, ConfigurationError, "CaptureMaps"),
        ({"prompt": "a dog", "options": SamplingOptions(height=15)}, ConfigurationError, "height 15"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(base, arguments, error, words):
    if arguments.get("subject") == "toy":
        arguments = {**arguments, "subject": tiny.toy()}
    with pytest.raises(error, match=words) as caught:
        generate(base, **arguments, on_step=lambda step: pytest.fail("it was computed"))
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_stop_the_run():
    broken = tiny.base()
    broken.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ThisnessError, match="NaN or infinity in the decoded picture"):
        generate(broken, "a dog", options=OPTIONS)


def test_named_adjustments_are_built_from_text(base, monkeypatch):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Scale:
        factor: float = 1.0

        def __call__(self, conditioning):
            return conditioning.with_embeds(conditioning.embeds * self.factor)

    monkeypatch.setitem(ADJUSTMENTS, "scale", Scale)
    named = generate(base, "a dog", options=OPTIONS, adjust=["scale:factor=0.5"])
    assert same(named, generate(base, "a dog", options=OPTIONS, adjust=[Scale(0.5)]))
    assert not same(named, generate(base, "a dog", options=OPTIONS))
    assert named.record["recipe"]["adjustments"] == [{"name": "scale", "settings": {"factor": 0.5}}]
    assert named.record["unsaid"] == []
