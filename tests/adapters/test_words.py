"""Oracles: transformers' own resized embedding, the base before, finite bookkeeping of which rows get gradients."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny
from thisness.adapters import attached_words
from thisness.adapters.words import vocabulary_rows
from thisness.conditioning import encode
from thisness.errors import ArtefactError, PromptError
from thisness.prompt import Prompt, SlotWord

TOKENS = ("<rufus>", "<rufus_1>")
SENTENCE = Prompt("a {subject} on the beach").fill({"subject": SlotWord("<rufus> <rufus_1> dog", "dog")})


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def rows(seed: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def test_equals_a_resized_embedding(base):
    """As `load_textual_inversion` does it: resize the matrix, write the rows."""
    tokenizer, encoder = copy.deepcopy(base.tokenizer), copy.deepcopy(base.text_encoder)
    tokenizer.add_tokens(list(TOKENS))
    encoder.resize_token_embeddings(len(tokenizer))
    encoder.get_input_embeddings().weight.data[-2:] = rows(0)
    ids = tokenizer(SENTENCE.text, padding="max_length", max_length=24, return_tensors="pt").input_ids
    expected = encoder(ids)[0]
    with attached_words(base, TOKENS, {"text_encoder": rows(0)}):
        found = encode(base, SENTENCE)
    assert torch.equal(found.embeds, expected)
    assert [found.spans[0].piece(at) for at in found.spans[0].where("subject")] == list(TOKENS)


def test_base_is_what_it_was_also_after_an_exception(base):
    tokenizer, table = base.tokenizer, base.text_encoder.get_input_embeddings()
    names = list(base.text_encoder.state_dict())
    before = encode(base, "a dog on the beach").embeds
    with pytest.raises(RuntimeError, match="on purpose"), attached_words(base, TOKENS, {"text_encoder": rows(1)}):
        assert torch.equal(encode(base, "a dog on the beach").embeds, before)  # the vocabulary reads as before
        raise RuntimeError("on purpose")
    assert base.tokenizer is tokenizer and base.text_encoder.get_input_embeddings() is table
    assert list(base.text_encoder.state_dict()) == names
    with pytest.raises(PromptError, match="does not know the learned word"):
        encode(base, SENTENCE)


def test_two_concepts_stack(base):
    two = Prompt("a {rex} on a {mug}").fill({"rex": SlotWord("<rex>"), "mug": SlotWord("<mug>")})
    with attached_words(base, ["<rex>"], {"text_encoder": rows(1, 1)}):
        with attached_words(base, ["<mug>"], {"text_encoder": rows(2, 1)}):
            both = encode(base, two).embeds
        alone = encode(base, Prompt("a {rex}").fill({"rex": SlotWord("<rex>")})).embeds
    with attached_words(base, ["<mug>", "<rex>"], {"text_encoder": torch.cat([rows(2, 1), rows(1, 1)])}):
        assert torch.equal(encode(base, two).embeds, both)
        assert torch.equal(encode(base, Prompt("a {rex}").fill({"rex": SlotWord("<rex>")})).embeds, alone)


def test_gradient_reaches_the_used_rows_only(base):
    parameter = torch.nn.Parameter(rows(3))
    with attached_words(base, TOKENS, {"text_encoder": parameter}):
        encode(base, Prompt("a {subject}").fill({"subject": SlotWord("<rufus_1> dog", "dog")})).embeds.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad[0].eq(0).all() and parameter.grad[1].abs().sum() > 0
    assert all(p.grad is None for p in base.text_encoder.parameters())


def test_rows_that_do_not_fit_are_refused(base):
    with pytest.raises(
        ArtefactError, match=r"rows of text_encoder are \(1, 16\): expected \(2, 16\).*no rows|expected"
    ):
        attached_words(base, TOKENS, {"text_encoder": rows(0, 1)}).__enter__()
    with pytest.raises(ArtefactError, match="no rows for text_encoder; rows for text_encoder_2"):
        attached_words(base, TOKENS, {"text_encoder_2": rows(0)}).__enter__()
    with (
        attached_words(base, ["<rex>"], {"text_encoder": rows(0, 1)}),
        pytest.raises(PromptError, match="in use by another concept"),
    ):
        attached_words(base, ["<rex>"], {"text_encoder": rows(0, 1)}).__enter__()


def test_vocabulary_rows_are_the_matrix_rows(base):
    found = vocabulary_rows(base, "dog")["text_encoder"]
    number = base.tokenizer("dog", add_special_tokens=False).input_ids
    assert torch.equal(found, base.text_encoder.get_input_embeddings().weight[number])
