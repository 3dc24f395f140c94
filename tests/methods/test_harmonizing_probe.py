"""Probes of what a sentence reads. Oracles: sentences that are the probe themselves, rows set by hand."""

import numpy as np
import pytest
import torch

import tiny
from thisness.adapters import EMBEDDINGS
from thisness.attention import ImageTokens, sites_of
from thisness.concept import Attached, Concept
from thisness.conditioning import Sentence, encode
from thisness.errors import ConfigurationError
from thisness.generation import generate
from thisness.methods.harmonizing_probe import Probe
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions

OPTIONS = SamplingOptions(steps=2, guidance=3.0)
TEXT = "a {subject} sleeping on the beach"


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def rex(base):
    rows = {"text_encoder": 0.06 * torch.randn(1, 16, generator=torch.Generator().manual_seed(5))}
    return Concept.create(
        "textual-inversion", tiny.toy(), base, word="<rex>", tokens=["<rex>"], tensors={EMBEDDINGS: rows}
    )


def pixels(result):
    return np.stack([np.asarray(image) for image in result.images])


def test_the_visual_words_alone_are_the_sentence_of_them(base, rex):
    made = generate(base, TEXT, concept=rex, adjust="probe:keep=visual", options=OPTIONS)
    bare = generate(base, "a {subject}", concept=rex, options=OPTIONS)
    assert np.array_equal(pixels(made), pixels(bare))
    assert made.record["adjusted"][0]["says"] == "probe: visual alone"


def test_text_alone_has_zeros_for_the_word_and_every_other_row_as_it_was(base, rex):
    filled = Prompt(TEXT).fill({"subject": rex.word})
    with rex.attach(base):
        before = encode(base, filled)
        after = Probe(keep="text").bound(Sentence(base, filled, {"subject": rex}, (), None))(before)
        (at,) = filled.tokenize(base.tokenizer).of("subject")
    assert not after.embeds[:, at].any() and before.embeds[:, at].any()
    others = [row for row in range(before.embeds.shape[1]) if row != at]
    assert torch.equal(after.embeds[:, others], before.embeds[:, others])


def test_a_picture_beside_the_text_is_not_read(base, rex):
    """Its tokens are left out everywhere: scale 0."""
    width = base.denoiser.config.cross_attention_dim
    layers = {
        name: (torch.nn.Linear(width, 32), torch.nn.Linear(width, 32))
        for name, site in sites_of(base.denoiser).items() if site.kind == "cross"
    }  # fmt: skip
    tokens = ImageTokens(layers, torch.ones(2, width), torch.ones(2, width))
    filled = Prompt(TEXT).fill({"subject": rex.word})
    with rex.attach(base):
        before = encode(base, filled)
        sentence = Sentence(base, filled, {"subject": rex}, (), None, {"subject": Attached((tokens,), tokens)})
        after = Probe().bound(sentence)(before)
    assert tokens.scale == 0 and torch.equal(after.embeds, before.embeds)


def test_refused_without_a_concept(base):
    with pytest.raises(ConfigurationError, match="probe needs a subject"):
        generate(base, "a dog", adjust="probe", options=OPTIONS)
