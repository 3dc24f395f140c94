"""Sweeps. Oracles: `generate` called by hand, a toy measure whose mean is computed from the same pixels, pictures that
are not made twice."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

import tiny
from thisness.errors import ConfigurationError
from thisness.evaluation.statistics import interval
from thisness.evaluation.sweep import LORA_SCALE, Knob, described, parse_knob, settings_of, sweep
from thisness.generation import generate
from thisness.images import load_image
from thisness.recipe import Spec
from thisness.sampling import SamplingOptions

PROMPTS = ["a {subject} sleeping", "a {subject} in the snow"]
QUICK = SamplingOptions(steps=2, guidance=3.0)


class Channel:
    """Mean of one colour, in [0, 1]; keeps what it was asked."""

    def __init__(self, name, channel):
        self.name, self.identity, self.channel, self.items = name, {"channel": channel}, channel, []

    def score(self, items):
        self.items = list(items)
        return [value(item.picture.image, self.channel) for item in items]


def value(image, channel):
    return float(np.asarray(image)[..., channel].mean() / 255)


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def turned(base, folder, knob, **more):
    x, y = Channel("follow", 0), Channel("same", 1)
    given = {"subject": tiny.toy(), "folder": folder, "seeds": (0, 4), "options": QUICK, **more}
    return sweep(base, PROMPTS, knob, x, y, **given), x, y


def test_the_curve_is_of_the_pictures_of_each_value(base, tmp_path):
    knob = parse_knob("guidance=1,4")
    found, x, y = turned(base, tmp_path, knob)
    for number, guidance in enumerate((1.0, 4.0)):
        images = [
            image
            for prompt in PROMPTS
            for image in generate(
                base, prompt.replace("{subject}", "dog"), seeds=(0, 4), options=SamplingOptions(2, guidance)
            ).images
        ]
        for channel in (0, 1):
            values = [value(image, channel) for image in images]
            estimate = found.estimates[number][channel]
            assert estimate.mean == pytest.approx(np.mean(values)) and estimate.rows == estimate.units == 4
            assert (estimate.low, estimate.high) == pytest.approx(interval(values), abs=1e-9)
    assert [row.recipe for row in found.rows] == ["guidance=1"] * 4 + ["guidance=4"] * 4
    item = x.items[0]
    assert (item.sentence, item.context, item.noun, item.seed) == ("a dog sleeping", "sleeping", "dog", 0)
    data = json.loads(json.dumps(described(found, knob, x, y), allow_nan=False))
    assert [each["value"] for each in data["curve"]] == [1, 4] and data["metrics"]["same"] == {"channel": 1}
    assert data["curve"][1]["y"]["mean"] == found.estimates[1][1].mean


def test_pictures_are_made_once(base, tmp_path):
    first = turned(base, tmp_path, parse_knob("steps=1,2"))[0]
    again = turned(base, tmp_path, parse_knob("steps=2,1,3"))[0]
    assert (first.made, again.made) == (8, 4) and again.estimates[:2] == first.estimates[::-1]
    assert turned(base, tmp_path, parse_knob("steps=1,2"), negative="red")[0].made == 8
    assert turned(base, tmp_path, parse_knob("steps=1,2"), concept=tiny.Louder())[0].made == 8
    broken = sorted((tmp_path / "pictures").iterdir())[0]
    whole = np.asarray(load_image(broken))
    broken.write_bytes(broken.read_bytes()[:100])
    for more in ({}, {"negative": "red"}, {"concept": tiny.Louder()}):
        turned(base, tmp_path, parse_knob("steps=1,2,3"), **more)
    assert np.array_equal(np.asarray(load_image(broken)), whole)


def test_the_concept_takes_the_place(base, tmp_path):
    found, x, _ = turned(base, tmp_path, parse_knob("guidance=1,4"), concept=tiny.Louder())
    by_hand = generate(base, PROMPTS[0], concept=tiny.Louder(), seeds=(0, 4), options=SamplingOptions(2, 1.0))
    assert found.rows[0].values["follow"] == value(by_hand.images[0], 0)
    assert x.items[0].sentence == "a dog sleeping"  # what is scored has the class noun, not the learned word


def test_low_rank_weights_are_scaled(base_folder, concept_folder, tmp_path):
    from thisness.adapters.handler import EMBEDDINGS
    from thisness.adapters.words import attached_words
    from thisness.bases import load_base
    from thisness.concept import Concept

    base, concept = load_base(str(base_folder)), Concept.load(concept_folder)
    settings = settings_of(Knob(LORA_SCALE, (0, 1, 40)), concept=concept)
    images = [
        generate(base, "a {subject} sleeping", concept=each.concept, options=QUICK).images[0] for each in settings
    ]
    words = concept.tensors.get(EMBEDDINGS)
    with attached_words(base, concept.tokens, words) if words else nullcontext():
        plain = generate(base, f"a {concept.word.text} sleeping", options=QUICK).images[0]
    learned = generate(base, "a {subject} sleeping", concept=concept, options=QUICK).images[0]
    assert np.array_equal(np.asarray(images[0]), np.asarray(plain))  # nothing of the weights is left
    assert np.array_equal(np.asarray(images[1]), np.asarray(learned))
    assert not np.array_equal(np.asarray(images[2]), np.asarray(learned))


def test_a_part_keeps_its_other_settings(monkeypatch):
    from dataclasses import dataclass

    import thisness.conditioning as conditioning

    @dataclass(frozen=True)
    class Tea:
        alpha: float = 0.1
        beta: float = 1.0

    monkeypatch.setitem(conditioning.ADJUSTMENTS, "tea", Tea)
    found = settings_of(parse_knob("tea.alpha=0,0.5"), adjust=[Spec.of("tea", beta=2.0)])
    assert [each.adjust for each in found] == [(Spec.of("tea", beta=2.0, alpha=a),) for a in (0, 0.5)]
    alone = settings_of(parse_knob("tea.alpha=0,0.5"))
    assert alone[1].adjust == (Spec.of("tea", alpha=0.5),)
    with pytest.raises(ConfigurationError, match="did you mean 'alpha'"):
        settings_of(parse_knob("tea.alpah=0,0.5"))


@pytest.mark.parametrize(
    "text, said",
    [
        ("guidance", "write KNOB=VALUE"),
        ("guidance=1,,2", "write KNOB=VALUE"),
        ("guidance=1", "1 value: 2 to 24"),
        ("guidance=1,2,1", "1 stands there twice"),
        ("guidence=1,2", "no knob 'guidence' .did you mean 'guidance'"),
        ("guidance=1,high", "guidance=high is not a number"),
        ("steps=1.5,2", "steps=1.5 is not a whole number"),
        ("guidance=1,500", "guidance 500.0 is not in 0 ... 100"),
        ("lora-scale=0,1", "give one with --concept"),
    ],
)
def test_knobs_that_do_not_exist_are_refused(text, said):
    with pytest.raises(ConfigurationError, match=said):
        settings_of(parse_knob(text))
