"""Textual Inversion. Oracles: the vocabulary's rows; the numbers of the papers."""

from __future__ import annotations

import pytest
import torch

import tiny
from thisness.adapters.words import vocabulary_rows
from thisness.methods import METHODS, learn, method_named
from thisness.methods.registry import settings_for
from thisness.methods.textual_inversion import first_rows


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def test_several_rows_start_at_the_nouns_and_apart_from_one_another(base):
    (noun,) = vocabulary_rows(base, "dog").values()
    rows = first_rows(base, "red dog", 3, seed=0)["text_encoder"]
    assert rows.shape == (3, 16) and torch.equal(rows[0], noun[0])  # the last word's
    distances = torch.cdist(rows, rows)[~torch.eye(3, dtype=torch.bool)]
    assert distances.min() > 0 and distances.max() < 0.5 * rows[0].norm()
    assert torch.equal(rows, first_rows(base, "red dog", 3, seed=0)["text_encoder"])
    assert not torch.equal(rows, first_rows(base, "red dog", 3, seed=1)["text_encoder"])


def test_all_rows_are_learned_and_written_in_the_sentence(base):
    given = {"preset": "default", "steps": 1, "lr": 0.1, "captions": "plain", "weight_decay": 0.0, "precision": "fp32"}
    concept = learn("textual-inversion", tiny.toy(), base, progress=False, vectors=3, **given)
    assert concept.word.text == "<rex> <rex_1> <rex_2>"
    moved = concept.tensors["embeddings.safetensors"]["text_encoder"] - first_rows(base, "dog", 3, 0)["text_encoder"]
    assert ((moved.abs().amax(1) - 0.1).abs() < 1e-3).all()  # the first step of AdamW is the learning rate
    other = learn(
        "textual-inversion", tiny.toy(), base, progress=False, start="cat", steps=1, lr=1e-9, preset="default"
    )
    (cat,) = vocabulary_rows(base, "cat").values()
    torch.testing.assert_close(other.tensors["embeddings.safetensors"]["text_encoder"], cat, rtol=0, atol=1e-6)


PAPERS = {  # learning rates as they are used, after whatever the papers' code multiplies them by
    ("textual-inversion", "paper"): {"steps": 5000, "lr": 0.04, "batch_size": 8, "vectors": 1},  # 0.005 x 4 x 2 GPUs
    ("textual-inversion", "tea-paper"): {"steps": 3000, "lr": 5e-4, "batch_size": 1, "vectors": 1, "start": ""},
    ("dreambooth", "paper"): {"steps": 1000, "lr": 5e-6, "prior_weight": 1.0, "prior_pictures": 1000, "batch_size": 1},
    ("dreambooth", "detex-paper"): {"steps": 1000, "lr": 1e-6, "batch_size": 1, "text_encoder": False},
    ("dreambooth-lora", "tea-paper"): {
        "steps": 3000, "lr": 1e-4, "rank": 4, "alpha": None, "targets": "attention", "text_encoder": True,
        "text_lr": None, "prior_weight": 1.0, "prior_pictures": 200, "clip": 1.0, "batch_size": 1, "identifier": "sks",
    },
    ("custom-diffusion", "paper"): {"steps": 250, "lr": 8e-5, "batch_size": 4, "prior_batch": 4},
    ("custom-diffusion", "tea-paper"): {  # 5e-6, doubled by the class pictures
        "steps": 2000, "lr": 1e-5, "flip": True, "start": "ktn", "prior_pictures": 200, "batch_size": 1,
        "prior_batch": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize(("method", "preset"), PAPERS)
def test_presets_have_the_papers_numbers(base, method, preset):
    settings = settings_for(method_named(method), base, {}, preset)
    found = {name: getattr(settings, name) for name in PAPERS[method, preset]}
    assert found == PAPERS[method, preset] and settings.schedule == "constant"


def test_every_method_has_a_preset_of_its_paper():
    ours = {name for name, method in METHODS.items() if not {"paper", "lineage"} & set(method.presets)}
    assert ours == set()  # DETEX's has two readings: "lineage" and "literal"
