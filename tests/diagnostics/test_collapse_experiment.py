"""Collapse of real (tiny) concepts. Oracles: a word that is the noun; a planted row; the encoder by hand; a run that
was not looked at."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.adapters import EMBEDDINGS, LORA
from thisness.adapters.words import vocabulary_rows
from thisness.concept import Concept
from thisness.conditioning import encode
from thisness.diagnostics.collapse_experiment import diagnose_collapse
from thisness.diagnostics.collapse_features import features, pooled, read_records
from thisness.errors import ArtefactError, ConfigurationError, PromptError
from thisness.files import load_tensors
from thisness.methods import Stopped, learn
from thisness.prompt import Prompt, SlotWord
from thisness.subject import Subject

QUICK = {"steps": 6, "lr": 0.05, "precision": "fp32", "captions": "plain", "preset": "default"}
NOUN = SlotWord("dog", "dog")


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def subject() -> Subject:
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2))
    return Subject("rufus", "dog", images, (None, None))


def word_of(base, subject, row: torch.Tensor) -> Concept:
    """A concept that is nothing but a row in the noun's place. row: (width,)."""
    tensors = {EMBEDDINGS: {"text_encoder": row[None].clone()}}
    return Concept.create("textual-inversion", subject, base, word="<rufus>", tokens=["<rufus>"], tensors=tensors)


def test_a_word_that_is_the_noun_has_not_moved(base, subject):
    row = vocabulary_rows(base, "dog")["text_encoder"][0]
    found = diagnose_collapse(base, word_of(base, subject, row), count=12)
    assert found.verdicts[0].word == "not collapsed" and found.touched and found.encoder_drift is None
    assert found.distances["between"]["paired"].value == pytest.approx(0, abs=1e-6)
    assert found.distances["within"]["l2"].value == pytest.approx(found.distances["class_within"]["l2"].value, rel=1e-6)
    assert found.rows["text_encoder"].angle == pytest.approx([0], abs=1e-3)
    assert found.rows["text_encoder"].log_ratio == pytest.approx([0], abs=1e-6)
    assert all(abs(place["l2"]) < 1e-5 for place in found.concept_gap.values())


def test_a_planted_row(base, subject):
    """30 times as long as the noun's, and at right angles to it."""
    noun = vocabulary_rows(base, "dog")["text_encoder"][0]
    away = torch.randn(len(noun), generator=torch.Generator().manual_seed(0))
    away = away - (away @ noun) / (noun @ noun) * noun
    found = diagnose_collapse(base, word_of(base, subject, 30 * noun.norm() * away / away.norm()), count=12)
    assert found.rows["text_encoder"].angle == pytest.approx([90], abs=1e-3)
    assert found.rows["text_encoder"].log_ratio == pytest.approx([np.log(30)], rel=1e-5)
    assert found.rows["text_encoder"].percentile == [100.0]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["verdict"] == found.verdicts[0].word and data["order"]["between"] == ["P_c", "P_V*"]
    assert any("99.5 %" in note for note in data["notes"]) and any("cosine" in note for note in data["notes"])


def test_what_stands_for_a_sentence(base):
    prompt = Prompt("a {subject} on the beach").fill({"subject": NOUN})
    with torch.no_grad():
        encoded = encode(base, prompt)
    states = encoded.embeds[0].double()
    end = base.tokenizer(prompt.text)["input_ids"].index(base.tokenizer.eos_token_id)
    assert torch.equal(pooled(encoded, "eos")[0], states[end]) and torch.equal(pooled(encoded, "last")[0], states[-1])
    torch.testing.assert_close(pooled(encoded, "mean")[0], states[1:end].mean(0))
    assert pooled(encoded, "flat").shape == (1, states.numel())


def test_an_encoder_that_was_tuned(base, subject):
    """encoder_drift: the same sentence on both encoders. concept_gap: the class's sentence on the untouched one."""
    concept = learn(
        "dreambooth-lora", subject, base, progress=False, **QUICK, identifier="sks", text_encoder=True, prior_pictures=0
    )
    found = diagnose_collapse(base, concept, count=12)
    assert found.touched and not found.rows and found.encoder_drift is not None
    text = found.prompts["context"][0]
    ours, plain = (Prompt(text).fill({"subject": word}) for word in (concept.word, NOUN))
    with torch.no_grad():
        before = encode(base, ours).embeds[0].double()
        with concept.attach(base):
            encoded = encode(base, ours)
    spans, after = encoded.spans[0], encoded.embeds[0].double()
    one = diagnose_collapse(base, concept, context=[text] * 2, simple=found.prompts["simple"])
    first = min(spans.of("subject"))
    wanted = (after - before).norm(dim=1)[first:].mean()
    assert one.encoder_drift["all"]["l2"] == pytest.approx(float(wanted), rel=1e-5)
    with torch.no_grad():
        noun = encode(base, plain)
    gap = (after[spans.end] - noun.embeds[0, noun.spans[0].end].double()).norm()
    assert one.concept_gap["end"]["l2"] == pytest.approx(float(gap), rel=1e-5)


def test_nothing_that_is_read_was_learned(base, subject):
    concept = learn("dreambooth-lora", subject, base, progress=False, **QUICK, identifier="sks", prior_pictures=0)
    assert not any(key.startswith("text_encoder") for key in concept.tensors[LORA])
    found = diagnose_collapse(base, concept, count=12)
    assert not found.touched and "nothing that the text encoder reads was learned" in found.sentences[0]


def test_bad_input(base, subject):
    row = vocabulary_rows(base, "dog")["text_encoder"][0]
    concept = word_of(base, subject, row)
    with pytest.raises(PromptError, match="no token for"):
        diagnose_collapse(base, concept, anchor="\u00e9", count=12)
    with pytest.raises(ConfigurationError, match="pool 'middle'"):
        diagnose_collapse(base, concept, pool="middle", count=12)
    nameless = Concept({**concept.manifest, "noun": ""}, concept.tensors)
    with pytest.raises(ConfigurationError, match="--anchor dog"):
        diagnose_collapse(base, nameless, count=12)
    assert diagnose_collapse(base, nameless, anchor="dog", count=12).anchor == "dog"
    assert any("only an article" in note for note in diagnose_collapse(base, concept, anchor="a", count=12).notes)
    several = diagnose_collapse(base, concept, anchor="red cat", count=12)
    rows = vocabulary_rows(base, "red cat")["text_encoder"]
    assert any("2 tokens" in note for note in several.notes)
    assert several.known["text_encoder"].anchor_norm == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-6)


# --- while it learns ---


@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth-lora"])
def test_tracking_changes_nothing_and_is_there_afterwards(base, subject, tmp_path, method):
    more = {"identifier": "new", "identifier_lr": 0.05, "text_encoder": True, "prior_pictures": 0}
    settings = QUICK | (more if method == "dreambooth-lora" else {"vectors": 2})
    plain = learn(method, subject, base, folder=tmp_path / "plain", progress=False, **settings)
    tracked = learn(method, subject, base, folder=tmp_path / "rufus", progress=False, track_collapse=1, **settings)
    assert tracked.manifest == plain.manifest
    for file, group in plain.tensors.items():
        assert all(torch.equal(tensor, tracked.tensors[file][name]) for name, tensor in group.items())
    loaded = Concept.load(tmp_path / "rufus", base)
    records = read_records(tmp_path / "rufus", loaded.word.text)
    assert sorted(records.times) == list(range(7))
    with loaded.attach(base):
        last = features(base, records.context, loaded.word)
    torch.testing.assert_close(records.times[6].context, last, rtol=0, atol=1e-5)
    assert torch.equal(records.rows[6]["text_encoder"], loaded.tensors[EMBEDDINGS]["text_encoder"])
    log = [json.loads(line) for line in (tmp_path / "rufus" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["collapse/paired"] > 0 and "norm/text_encoder" in log[-1]
    found = diagnose_collapse(base, loaded, folder=tmp_path / "rufus", count=12)
    assert found.verdicts[0].basis == "training" and sorted(found.times) == list(range(7))
    assert read_records(tmp_path / "plain", loaded.word.text) is None
    with pytest.raises(ArtefactError, match="tells of the word"):
        read_records(tmp_path / "rufus", "<mimi>")


def test_the_first_record_is_of_the_start(base, subject, tmp_path):
    """One row that starts as the noun's: before any update, sentences with it are those with the noun."""
    learn("textual-inversion", subject, base, folder=tmp_path / "x", progress=False, track_collapse=3, **QUICK)
    records = read_records(tmp_path / "x", "<rufus>")
    assert sorted(records.times) == [0, 3, 6]
    torch.testing.assert_close(records.times[0].context, features(base, records.context, NOUN), rtol=0, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_with_its_records(base, subject, tmp_path):
    settings = QUICK | {"steps": 3, "track_collapse": 1}
    learn("textual-inversion", subject, base, folder=tmp_path / "whole", progress=False, **settings)
    for _ in range(2):
        with pytest.raises(Stopped):
            learn("textual-inversion", subject, base, folder=tmp_path / "x", progress=False, stop_after=0.0, **settings)
    learn("textual-inversion", subject, base, folder=tmp_path / "x", progress=False, **settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole", "x"]
    names = [sorted(p.name for p in (tmp_path / each / "collapse").iterdir()) for each in ("whole", "x")]
    assert names[0] == names[1] and len(names[0]) == 5
    for name in names[0][1:]:
        one, other = (load_tensors(tmp_path / each / "collapse" / name) for each in ("whole", "x"))
        assert all(torch.equal(one[key], other[key]) for key in one)
