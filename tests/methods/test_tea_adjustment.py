"""TEA at work. Oracles: rows and sentences adjusted by hand; pictures of the noun's sentence; the base as it was."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import tiny
from thisness import cli
from thisness.adapters.lora import without_lora
from thisness.adapters.words import overridden_rows, vocabulary_rows
from thisness.concept import Concept
from thisness.conditioning import Sentence, encode, encode_adjusted
from thisness.errors import ConfigurationError, PromptError
from thisness.generation import generate, replay
from thisness.images import read_record
from thisness.methods import tea_auto, tea_weights
from thisness.methods.tea import adjust, adjust_sequence, aligned, anchor_row, rotate_together
from thisness.methods.tea_adjustment import Tea, find_places
from thisness.methods.tea_auto import Score, search
from thisness.methods.tea_words import anchor_rows, bake, rows_of
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions

OPTIONS = SamplingOptions(steps=2, guidance=3.0)
WIDTH = 16
EMBEDDINGS, LORA = "embeddings.safetensors", "lora.safetensors"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


def word(base, name="rex", noun="dog", vectors=1, seed=5, keep_noun=False, method="textual-inversion"):
    """A learned word, three times as long as the vocabulary's."""
    tokens = [f"<{name}>", *(f"<{name}_{n}>" for n in range(1, vectors))]
    rows = {"text_encoder": 0.06 * drawn(vectors, WIDTH, seed=seed)}
    text = " ".join(tokens) + (f" {noun}" if keep_noun else "")
    return Concept.create(method, tiny.toy(noun, name), base, word=text, tokens=tokens, tensors={EMBEDDINGS: rows})


def lora(base, text="sks dog", name="bo", part="text_encoder.encoder.layers.0.self_attn.q_proj", noun="dog"):
    """Low-rank weights, of the text encoder unless said otherwise."""
    inside, _, module = part.partition(".")
    linear = base.modules[inside].get_submodule(module)
    a, b = drawn(2, linear.in_features, seed=1), 0.5 * drawn(linear.out_features, 2, seed=2)
    tensors = {LORA: {f"{part}.lora_A.weight": a, f"{part}.lora_B.weight": b}}
    return Concept.create("dreambooth-lora", tiny.toy(noun, name), base, word=text, tensors=tensors)


UNET_PART = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def read(base, concepts, text, *adjustments):
    """What the denoiser reads of a sentence, and what was settled and reported."""
    from contextlib import ExitStack

    concepts = concepts if isinstance(concepts, dict) else {"subject": concepts}
    filled = Prompt(text).fill({slot: each.word for slot, each in concepts.items() if f"{{{slot}}}" in text})
    with ExitStack() as stack, torch.no_grad():
        for each in concepts.values():
            stack.enter_context(each.attach(base))
        made = encode_adjusted(Sentence(base, filled, concepts, (), None), adjustments)
        return made, encode(base, filled)


def plain(base, concept, text):
    with concept.attach(base), torch.no_grad():
        return encode(base, text)


def array(generation):
    return np.stack([np.asarray(image) for image in generation.images]).astype(int)


def state(base):
    return [tensor.clone() for part in base.modules.values() for tensor in part.state_dict().values()]


# --- token level ---


def test_14_token_level_all_the_way_is_the_noun(base):
    before = state(base)
    rex = word(base)
    made, without = read(base, rex, "a photo of a {subject} in the snow", Tea(alpha=1.0, gamma=1.0))
    expected = plain(base, rex, "a photo of a dog in the snow").embeds
    assert (made.conditioning.embeds - expected).abs().max() <= 1e-6
    assert (without.embeds - expected).abs().max() > 1e-2
    with rex.attach(base):
        table, rows = base.text_encoder.get_input_embeddings(), {"text_encoder": drawn(1, WIDTH)}
        with pytest.raises(RuntimeError), overridden_rows(base, ["<rex>"], rows):
            raise RuntimeError
        assert base.text_encoder.get_input_embeddings() is table
    assert all(torch.equal(a, b) for a, b in zip(before, state(base), strict=True))


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.4, "beta": 1.5}, {"gamma": 0.0, "alpha": 0.7}])
def test_token_level_is_the_formula_on_the_rows(base, settings):
    """Every row of the word, and the sentence as the encoder reads those."""
    rex = word(base, vectors=3)
    made, _ = read(base, rex, "a {subject} on the beach", Tea(**settings))
    anchor = vocabulary_rows(base, "dog")["text_encoder"][0]
    rows = rex.tensors[EMBEDDINGS]["text_encoder"]
    by_hand = adjust(rows, anchor, settings.get("alpha", 0.2), settings.get("gamma", 0.5), settings.get("beta"))
    renamed = dataclasses.replace(rex, tensors={EMBEDDINGS: {"text_encoder": by_hand}})
    expected = plain(base, renamed, f"a {rex.word.text} on the beach").embeds
    assert torch.equal(made.conditioning.embeds, expected)


def test_several_vectors_as_one_body(base):
    rex = word(base, vectors=3)
    made, _ = read(base, rex, "a {subject}", Tea(alpha=0.5, multi_vector="mean"))
    anchor = vocabulary_rows(base, "dog")["text_encoder"][0]
    rows = rotate_together(rex.tensors[EMBEDDINGS]["text_encoder"], anchor, 0.5).vectors
    renamed = dataclasses.replace(rex, tensors={EMBEDDINGS: {"text_encoder": rows}})
    assert torch.equal(made.conditioning.embeds, plain(base, renamed, f"a {rex.word.text}").embeds)


def test_two_concepts_each_with_its_own_anchor_and_strength(base):
    rex, tom = word(base), word(base, "tom", "cat", seed=6)
    concepts = {"rex": rex, "tom": tom}
    text = "a {rex} on a {tom}"
    made, _ = read(base, concepts, text, Tea(alpha=0.2, slot="rex"), Tea(alpha=0.6, slot="tom"))
    other_order, _ = read(base, concepts, text, Tea(alpha=0.6, slot="tom"), Tea(alpha=0.2, slot="rex"))
    baked = {"rex": bake(rex, base, Tea(alpha=0.2)), "tom": bake(tom, base, Tea(alpha=0.6))}
    _, expected = read(base, baked, text)
    assert torch.equal(made.conditioning.embeds, expected.embeds)
    assert torch.equal(other_order.conditioning.embeds, expected.embeds)
    both, _ = read(base, concepts, text, Tea(alpha=0.3))
    _, expected = read(base, {k: bake(v, base, Tea(alpha=0.3)) for k, v in concepts.items()}, text)
    assert torch.equal(both.conditioning.embeds, expected.embeds)
    assert [each["noun"] for each in both.reports[0]["words"]] == ["dog", "cat"]


def test_16_the_noun_is_looked_up_as_prompts_read_it(base):
    """A letter alone is two entries: within words, and at their end."""
    vocabulary, table = base.tokenizer.get_vocab(), base.text_encoder.get_input_embeddings().weight
    assert torch.equal(anchor_rows(base, "b")["text_encoder"][0], table[vocabulary["b</w>"]])
    assert torch.equal(anchor_rows(base, "b", "raw")["text_encoder"][0], table[vocabulary["b"]])
    ids = base.tokenizer("red dog", add_special_tokens=False)["input_ids"]
    assert torch.equal(anchor_rows(base, "red dog")["text_encoder"], table[ids])
    with pytest.raises(ConfigurationError, match="lookup=raw"):
        anchor_rows(base, "dog", "raw")


def test_a_noun_of_several_tokens_is_averaged_and_it_is_said(base):
    rex = word(base)
    made, _ = read(base, rex, "a {subject}", Tea(noun="red dog", alpha=1.0, gamma=1.0))
    expected = anchor_row(vocabulary_rows(base, "red dog")["text_encoder"])
    renamed = dataclasses.replace(rex, tensors={EMBEDDINGS: {"text_encoder": expected[None]}})
    assert torch.allclose(made.conditioning.embeds, plain(base, renamed, "a <rex>").embeds, atol=1e-6)
    assert "'red dog' is 2 tokens (red, dog): the mean of their directions" in made.reports[0]["says"]


def test_paper_and_code_presets():
    assert Tea(preset="paper").rule("token")["beta"] == 1.5 and Tea(preset="paper").rule("prompt")["beta"] is None
    assert (Tea(preset="paper").align, Tea(preset="code").lookup, Tea().align) == ("positional", "raw", "span")
    assert (
        Tea(preset="code", lookup="word").lookup == "word" and Tea(preset="paper", beta=2.0).rule("token")["beta"] == 2
    )


def test_zero_rows_are_left_and_said(base):
    rex = word(base, vectors=2)
    rex.tensors[EMBEDDINGS]["text_encoder"][1] = 0
    made, _ = read(base, rex, "a {subject}", Tea())
    assert "1 of its rows are zero" in made.reports[0]["says"] and made.conditioning.embeds.isfinite().all()


# --- prompt level ---


def test_15_prompt_level_all_the_way_is_the_nouns_picture(base):
    bo = lora(base)
    text, noun = "a {subject} in the snow", "a dog in the snow"
    full = generate(base, text, concept=bo, adjust="tea:alpha=1,gamma=1,align=positional", options=OPTIONS)
    with bo.attach(base):
        expected = generate(base, noun, options=OPTIONS)
    assert np.abs(array(full) - array(expected)).max() <= 1
    without = generate(base, text, concept=bo, options=OPTIONS)
    none = generate(base, text, concept=bo, adjust="tea:alpha=0,gamma=0", options=OPTIONS)
    assert np.array_equal(array(none), array(without)) and not np.array_equal(array(without), array(expected))


def test_prompt_level_by_hand(base):
    bo = lora(base)
    text = "a photo of a {subject} in the snow"
    made, source = read(base, bo, text, Tea(alpha=0.3))
    target = plain(base, bo, "a photo of a dog in the snow")
    partners = aligned(source.spans[0], target.spans[0], [((13, 20), (13, 16))])
    expected = adjust_sequence(source.embeds[0], target.embeds[0], partners, 0.3).vectors
    assert torch.equal(made.conditioning.embeds[0], expected)


def test_18_before_the_concept_nothing_changes(base):
    bo = lora(base)
    made, source = read(base, bo, "a photo of a {subject} in the snow", Tea(alpha=0.3))
    changed = (made.conditioning.embeds != source.embeds).any(-1)[0].tolist()
    assert changed[:5] == [False] * 5 and all(changed[5:])
    subject = {5, 6}
    end = source.spans[0].end
    for rows, expected in (
        ("concept", subject),
        ("content", set(range(5, end))),
        ("content-eos", set(range(5, end + 1))),
    ):
        made, _ = read(base, bo, "a photo of a {subject} in the snow", Tea(alpha=0.3, rows=rows))
        changed = (made.conditioning.embeds != source.embeds).any(-1)[0]
        assert set(changed.nonzero().flatten().tolist()) == expected


def test_the_anchor_of_the_base_ignores_low_rank_weights(base):
    bo = lora(base)
    made, source = read(
        base, bo, "a {subject} in the snow", Tea(alpha=1.0, gamma=1.0, align="positional", anchor="base")
    )
    with torch.no_grad():
        expected = encode(base, "a dog in the snow").embeds
    assert (made.conditioning.embeds - expected).abs().max() <= 1e-6
    tuned = plain(base, bo, "a dog in the snow").embeds
    assert (tuned - expected).abs().max() > 1e-3
    with bo.attach(base), torch.no_grad():
        with pytest.raises(RuntimeError), without_lora(base.text_encoder):
            raise RuntimeError
        assert torch.equal(encode(base, "a dog in the snow").embeds, tuned)


def test_levels_go_by_what_was_learned(base):
    rex, bo = word(base), lora(base)
    kv = base.denoiser.get_parameter(f"{UNET_PART.removeprefix('unet.')}.weight").clone()
    custom = Concept.create(
        "custom-diffusion", tiny.toy("dog", "mimi"), base, word="<mimi> dog", tokens=["<mimi>"],
        tensors={**word(base, "mimi").tensors, "replaced.safetensors": {f"{UNET_PART}.weight": kv}},
    )  # fmt: skip
    cases = [(rex, {}), (bo, {}), (custom, {}), (rex, {"level": "prompt"}), (custom, {"level": "token"})]
    found = [find_places(Tea(**more), _sentence(base, each))[0].level for each, more in cases]
    assert found == ["token", "prompt", "prompt", "prompt", "token"]
    made, _ = read(base, {"rex": rex, "bo": bo}, "a {rex} on a {bo}", Tea(alpha=0.3))
    assert [each["level"] for each in made.reports[0]["words"]] == ["token", "prompt"]


def _sentence(base, concept, text="a {subject} in the snow"):
    filled = Prompt(text).fill({"subject": concept.word})
    return Sentence(base, filled, {"subject": concept}, (), None)


def test_a_word_typed_in_the_sentence(base):
    rex = word(base, keep_noun=True)
    for text, typed in (("a <rex> dog in the snow", "<rex> dog"), ("a <rex> in the snow", "<rex>")):
        filled = Prompt(text).fill({})
        (place,) = find_places(Tea(), Sentence(base, filled, {"subject": rex}, (), None))
        assert text[place.start : place.end] == typed
    made, _ = read(base, rex, "a <rex> in the snow", Tea(level="prompt", alpha=1.0, gamma=1.0))
    assert torch.allclose(made.conditioning.embeds, plain(base, rex, "a dog in the snow").embeds, atol=1e-6)


def test_pooled_vectors_are_turned_too(base):
    bo = lora(base)
    filled = Prompt("a {subject} in the snow").fill({"subject": bo.word})
    sentence = Sentence(base, filled, {"subject": bo}, (), None)
    v, c = drawn(1, 12, seed=1), drawn(1, 12, seed=2)
    real = base.encode_tokens

    def with_pooled(tokens):
        text = base.tokenizer.decode(tokens[0][0])
        return dataclasses.replace(real(tokens), pooled=(v if "sks" in text else c).clone())

    base.encode_tokens = with_pooled
    try:
        with bo.attach(base), torch.no_grad():
            made = encode_adjusted(sentence, [Tea(alpha=0.3)]).conditioning
    finally:
        del base.encode_tokens
    assert torch.equal(made.pooled, adjust(v, c, 0.3))


# --- beyond the paper ---


def test_weights_by_context(base):
    """Rows: the dimensions that move the context's states; states: those that differ between contexts."""
    rex = word(base, vectors=2)
    text = "a {subject} in the snow"
    with rex.attach(base):
        weights = tea_weights.of_rows(base, Prompt(text).fill({"subject": rex.word}), ["<rex>", "<rex_1>"])
    assert weights["text_encoder"].shape == (2, WIDTH) and (weights["text_encoder"] > 0).all()
    made, _ = read(base, rex, text, Tea(weights="context"))
    anchor = vocabulary_rows(base, "dog")["text_encoder"][0]
    rows = adjust(rex.tensors[EMBEDDINGS]["text_encoder"], anchor, 0.2, weights=weights["text_encoder"])
    renamed = dataclasses.replace(rex, tensors={EMBEDDINGS: {"text_encoder": rows}})
    assert torch.equal(made.conditioning.embeds, plain(base, renamed, f"a {rex.word.text} in the snow").embeds)

    bo = lora(base)
    weighted, source = read(base, bo, text, Tea(weights="context", alpha=0.4))
    equal, _ = read(base, bo, text, Tea(alpha=0.4))
    assert not torch.equal(weighted.conditioning.embeds, equal.conditioning.embeds)
    norms = weighted.conditioning.embeds.norm(dim=-1), equal.conditioning.embeds.norm(dim=-1)
    assert torch.allclose(*norms, rtol=1e-5)


def test_weights_of_a_row_are_its_influence(base):
    """By finite differences along one dimension, on the average over all directions."""
    rex = word(base)
    filled = Prompt("a {subject} in the snow").fill({"subject": rex.word})
    with rex.attach(base), torch.no_grad():
        positions = list(filled.tokenize(base.tokenizer).where("context", "eos"))
        rows = rows_of(base, ["<rex>"])
        moved = []
        for d in range(WIDTH):
            step = torch.zeros(1, WIDTH)
            step[0, d] = 1e-3
            ends = []
            for sign in (1, -1):
                with overridden_rows(base, ["<rex>"], {"text_encoder": rows["text_encoder"] + sign * step}):
                    ends.append(encode(base, filled).embeds[0, positions])
            moved.append(((ends[0] - ends[1]) / 2e-3).norm().item())
        estimated = tea_weights.of_rows(base, filled, ["<rex>"])["text_encoder"][0]
    assert np.corrcoef(moved, estimated.numpy())[0, 1] > 0.6  # 8 random directions


@pytest.mark.parametrize("threshold", [0.03, 0.21, 0.5, 0.83, 0.99])
def test_search_finds_the_threshold_of_a_monotone_score(threshold):
    asked = []

    def score(alpha):
        asked.append(alpha)
        return Score(float(alpha >= threshold), 1.0)

    found = search(score, Score(0.0, 1.0), wanted=1.0, floor=0.5)
    assert len(asked) <= 6
    if threshold <= 1 - 1 / 32:
        assert found.followed and 0 <= found.alpha - threshold <= 1 / 32
    else:
        assert not found.followed and found.alpha == 0.0


def test_search_keeps_the_identity_and_the_budget():
    def score(alpha):
        return Score(alpha, 1.0 - alpha)

    found = search(score, Score(0.0, 1.0), wanted=0.9, floor=0.7)
    assert not found.followed and 0.25 <= found.alpha <= 0.3  # the best that keeps 0.7
    assert search(score, Score(1.0, 1.0), wanted=0.9, floor=0.7).tried == ()
    jumping = search(lambda alpha: Score((alpha * 7919) % 1, 1.0), Score(0.0, 1.0), wanted=2.0, floor=0.0, budget=4)
    assert len(jumping.tried) == 4 and not jumping.followed
    assert max(each.context for _, each in jumping.tried) == dict(jumping.tried)[jumping.alpha].context
    assert jumping == search(lambda a: Score((a * 7919) % 1, 1.0), Score(0.0, 1.0), wanted=2.0, floor=0.0, budget=4)


class Colours:
    """Stands in for an encoder: mean colour, against a fixed direction."""

    name = "colours"

    def images(self, pictures):
        return torch.stack([torch.tensor(np.asarray(each)).float().mean((0, 1)) for each in pictures])

    def text(self, sentences):
        self.asked = sentences
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(sentences), 3)


def test_auto_chooses_records_and_replays(base, monkeypatch):
    encoder = Colours()
    monkeypatch.setattr("thisness.evaluation.encoders.open_encoder", lambda name, **more: encoder)
    rex = word(base)
    ask = {"concept": rex, "options": OPTIONS, "adjust": "tea:alpha=auto,previews=3,preview_steps=1,identity=0"}
    made = generate(base, "a {subject} in the snow", **ask)
    again = generate(base, "a {subject} in the snow", seeds=(7,), **ask)
    assert encoder.asked == ["in the snow"]
    (report,), (spec,) = made.record["adjusted"], made.record["recipe"]["adjustments"]
    alpha = spec["settings"]["alpha"]
    assert report["alpha"] == alpha == again.record["recipe"]["adjustments"][0]["settings"]["alpha"]
    assert (
        "auto: " in report["says"]
        and len(report["auto"]["tried"]) <= 3
        and (alpha == 0 or alpha in [t["alpha"] for t in report["auto"]["tried"]])
    )
    monkeypatch.setattr(tea_auto, "choose", None)  # a replay does not search again
    replayed = replay(made.record, base, rex)
    assert np.array_equal(array(replayed), array(made)) and replayed.differences == ()
    with pytest.raises(ConfigurationError, match="has none"):
        monkeypatch.undo()
        generate(base, "a photo of a {subject}", **ask)


# --- with the rest ---


def test_generate_records_and_replays(base):
    rex = word(base, vectors=2)
    made = generate(base, "a {subject} in the snow", concept=rex, adjust="tea:alpha=0.4,beta=1.5", options=OPTIONS)
    by_object = generate(
        base, "a {subject} in the snow", concept=rex, adjust=[Tea(alpha=0.4, beta=1.5)], options=OPTIONS
    )
    baked = generate(
        base, "a {subject} in the snow", concept=bake(rex, base, Tea(alpha=0.4, beta=1.5)), options=OPTIONS
    )
    without = generate(base, "a {subject} in the snow", concept=rex, options=OPTIONS)
    assert np.array_equal(array(made), array(by_object)) and np.array_equal(array(made), array(baked))
    assert not np.array_equal(array(made), array(without)) and "adjusted" not in without.record
    assert made.record == by_object.record and made.record["unsaid"] == []
    replayed = replay(made.record, base, rex)
    assert np.array_equal(array(replayed), array(made)) and replayed.differences == ()


def test_19_the_negative_prompt_is_not_touched(base, monkeypatch):
    import thisness.generation.make as make

    seen = []
    monkeypatch.setattr(
        make, "sample", lambda base, cond, negative, *rest, **more: seen.append(negative) or torch.zeros(1, 4, 8, 8)
    )
    rex = word(base)
    for adjusting in ((), ("tea",)):
        generate(base, "a {subject}", concept=rex, negative="a <rex> dog", adjust=adjusting, options=OPTIONS)
    assert torch.equal(seen[0].embeds, seen[1].embeds)


def test_21_what_comes_after_acts_on_what_tea_made(base):
    def heavier(conditioning):
        return conditioning.with_embeds(2 * conditioning.embeds)

    bo = lora(base)
    first, _ = read(base, bo, "a {subject}", Tea(alpha=0.3))
    both, _ = read(base, bo, "a {subject}", Tea(alpha=0.3), heavier)
    assert torch.equal(both.conditioning.embeds, 2 * first.conditioning.embeds)


def test_bake_is_noted_saved_and_exported(base, tmp_path):
    rex = word(base, vectors=2, keep_noun=True)
    baked = bake(rex, base, Tea(alpha=0.3))
    assert baked.settings["tea"] == {
        "alpha": 0.3, "gamma": 0.5, "beta": None, "norm": None, "noun": "dog", "multi_vector": "each",
        "several": "mean", "lookup": "word",
    }  # fmt: skip
    assert Concept.load(baked.save(tmp_path / "rex"), base).hash == baked.hash != rex.hash
    baked.export(tmp_path / "export")
    with pytest.raises(ConfigurationError, match="baked already"):
        bake(baked, base, Tea())
    with pytest.raises(ConfigurationError, match="no learned word"):
        bake(lora(base), base, Tea())
    with pytest.raises(ConfigurationError, match="give a number"):
        bake(rex, base, Tea(alpha="auto"))


# --- bad input: one clear line each ---


def refuse(match, error=ConfigurationError):
    return pytest.raises(error, match=match)


def test_what_is_refused(base):
    rex, bo = word(base), lora(base)
    text = "a {subject} in the snow"
    with refuse(r"alpha 1\.2 is not in 0 \.\.\. 1"):
        generate(base, text, concept=rex, adjust="tea:alpha=1.2")
    with refuse("did you mean 'alpha'"):
        generate(base, text, concept=rex, adjust="tea:alhpa=0.2")
    with refuse("did you mean 'tea'"):
        generate(base, text, concept=rex, adjust="teaa")
    with refuse("no concept is given"):
        generate(base, "a dog", adjust="tea")
    with refuse("no such placeholder.*subject"):
        generate(base, text, concept=rex, adjust="tea:slot=subjekt")
    nameless = dataclasses.replace(rex, manifest={**rex.manifest, "noun": ""})
    with refuse(r"'rex' has no noun to turn its word toward: say one, tea:noun=dog"):
        generate(base, text, concept=nameless, adjust="tea")
    assert generate(base, text, concept=nameless, adjust="tea:noun=dog", options=OPTIONS).images
    with refuse("is an article"):
        generate(base, text, concept=rex, adjust="tea:noun=the")
    with refuse(r"'bo' \(dreambooth-lora\) has no learned word.*use level=prompt"):
        generate(base, text, concept=bo, adjust="tea:level=token")
    with refuse(r"beta=1\.5 at prompt level scales keys and values.*force=true"):
        generate(base, text, concept=bo, adjust="tea:beta=1.5")
    assert generate(base, text, concept=bo, adjust="tea:beta=1.5,force=true", options=OPTIONS).images
    with refuse("norm=ratio needs beta"):
        generate(base, text, concept=rex, adjust="tea:norm=ratio")


def test_sentences_over_the_limit(base):
    rex = word(base)
    long = "a {subject} " + "red " * 20
    with refuse("tokens but the encoder takes 24", PromptError):
        generate(base, long + "hat", concept=rex, adjust="tea")
    with refuse("tea, the sentence with nouns .* tokens but the encoder takes 24", PromptError):
        generate(base, long, concept=rex, adjust="tea:level=prompt,noun=red dog")


def test_a_concept_that_the_text_encoder_knows_nothing_of(base):
    """Its word is the noun, and only the denoiser was trained: nothing at all. With another word: that alone."""
    text = "a {subject} in the snow"
    with refuse("nothing to adjust at prompt level: the text encoder reads 'dog' exactly as 'dog'"):
        generate(base, text, concept=lora(base, "dog", part=UNET_PART), adjust="tea")
    made, _ = read(base, lora(base, "sks dog", part=UNET_PART), text, Tea())
    assert "the text encoder is the base's own: only the words 'sks dog' differ" in made.reports[0]["says"]


def test_the_report_says_what_was_done(base):
    rex = word(base)
    made, _ = read(base, rex, "a {subject}", Tea())
    (said,) = made.reports
    v, c = rex.tensors[EMBEDDINGS]["text_encoder"][0], vocabulary_rows(base, "dog")["text_encoder"][0]
    degrees = math.degrees(math.acos(torch.cosine_similarity(v, c, dim=0).item()))
    assert said["words"][0]["degrees"] == pytest.approx(degrees, rel=1e-3)
    assert said["words"][0]["norm_after"] == pytest.approx((v.norm() / 2 + c.norm() / 2).item(), rel=1e-3)
    assert said["says"].startswith("tea, alpha 0.2: <rex> toward 'dog' (token level)")


def test_the_command_says_what_was_done(base_folder, concept_folder, tmp_path, capsys):
    words = ["generate", "a {subject} in the snow", "--concept", str(concept_folder), "--base", str(base_folder)]
    more = ["--seeds", "0", "--steps", "2", "--out", str(tmp_path / "out")]
    assert cli.run([*words, *more, "--adjust", "tea:alpha=0.3"]) == 0
    assert "tea, alpha 0.3: " in capsys.readouterr().err
    record = read_record(tmp_path / "out" / "000-seed-0.png")
    assert (
        record["recipe"]["adjustments"][0]["name"] == "tea" and record["adjusted"][0]["words"][0]["level"] == "prompt"
    )


def test_a_command_that_cannot_adjust(base_folder, concept_folder, refused):
    words = ["generate", "a {subject} in the snow", "--concept", str(concept_folder), "--base", str(base_folder)]
    assert "alpha 2 is not in 0 ... 1" in refused(*words, "--adjust", "tea:alpha=2")
    assert "did you mean 'tea'" in refused(*words, "--adjust", "tee")
