"""Oracles: diffusers' encode_prompt; rows picked by hand."""

import pytest
import torch

import tiny
from thisness.conditioning import Conditioning, encode
from thisness.errors import PromptError, ThisnessError
from thisness.prompt import Prompt, SlotWord


@pytest.fixture(scope="module")
def base():
    return tiny.base(pad="!")


def test_embeddings_are_those_of_the_stock_pipeline(base):
    texts = ["a photo of a dog", "", "cat!"]
    with torch.no_grad():
        ours = encode(base, texts)
        stock, negative = base.to_pipeline().encode_prompt(texts, "cpu", 1, True, negative_prompt=["a", "hat", ""])
        assert torch.equal(ours.embeds, stock)
        assert torch.equal(encode(base, ["a", "hat", ""]).embeds, negative)
    assert ours.pooled is None and ours.mask is None


def test_each_distinct_sentence_is_encoded_once(base, monkeypatch):
    batches = []
    encode_tokens = base.encode_tokens
    monkeypatch.setattr(base, "encode_tokens", lambda tokens: batches.append(len(tokens[0])) or encode_tokens(tokens))
    with torch.no_grad():
        found = encode(base, ["a dog", "a cat", "a dog", "a dog"])
        assert batches == [2] and len(found) == 4
        assert torch.equal(found.embeds, encode(base, ["a dog", "a cat"]).embeds[[0, 1, 0, 0]])
    assert [span.text for span in found.spans] == ["a dog", "a cat", "a dog", "a dog"]


def test_equal_sentences_keep_their_own_spans(base):
    """The same text, filled from a placeholder and written out."""
    filled = Prompt("a {subject}").fill({"subject": SlotWord("sks dog", "dog")})
    found = encode(base, [filled, "a sks dog"])
    assert torch.equal(found.embeds[0], found.embeds[1])
    assert found.spans[0].of("subject") == (2, 3)
    assert found.spans[1].slots == ()


def test_gradients_reach_the_token_embeddings(base):
    table = base.text_encoder.get_input_embeddings().weight
    table.requires_grad_(True)
    try:
        encode(base, "a dog").embeds.sum().backward()
        used = table.grad.abs().sum(1).nonzero().flatten().tolist()
    finally:
        table.requires_grad_(False)
        table.grad = None
    assert set(used) == set(encode(base, "a dog").spans[0].ids)


def test_what_cannot_be_encoded(base):
    with pytest.raises(PromptError, match="dog"):
        encode(base, "a " + "dog " * 30)
    with pytest.raises(PromptError):
        encode(base, "a \x00 dog")


def test_rows_expand_cat_and_to():
    rows = Conditioning(
        torch.arange(24.0).reshape(2, 3, 4), torch.arange(4.0).reshape(2, 2), torch.ones(2, 3, dtype=torch.long),
        extras={"sizes": torch.tensor([[1], [2]])},
    )  # fmt: skip
    picked = rows.rows([1, 0, 1])
    assert torch.equal(picked.embeds, rows.embeds[[1, 0, 1]]) and torch.equal(picked.pooled, rows.pooled[[1, 0, 1]])
    assert picked.extras["sizes"].flatten().tolist() == [2, 1, 2]
    one = rows.rows([1]).expand(3)
    assert len(one) == 3 and torch.equal(one.embeds[2], rows.embeds[1])
    assert rows.expand(2) is rows
    with pytest.raises(ThisnessError, match="expected 1 or 3"):
        rows.expand(3)
    joined = Conditioning.cat([rows, picked])
    assert torch.equal(joined.embeds, torch.cat([rows.embeds, picked.embeds])) and len(joined.extras["sizes"]) == 5
    with pytest.raises(ThisnessError, match="pooled is in some"):
        Conditioning.cat([rows, Conditioning(rows.embeds, extras=rows.extras)])
    half = rows.to(dtype=torch.bfloat16)
    assert half.embeds.dtype == half.pooled.dtype == torch.bfloat16 and half.mask.dtype == torch.long
    changed = rows.with_embeds(rows.embeds + 1)
    assert torch.equal(changed.pooled, rows.pooled) and not torch.equal(changed.embeds, rows.embeds)


def test_parts_of_other_rows_are_refused():
    with pytest.raises(ThisnessError, match="differ"):
        Conditioning(torch.zeros(2, 3, 4), torch.zeros(3, 4))
    with pytest.raises(ThisnessError, match="differ"):
        Conditioning(torch.zeros(3, 4))
