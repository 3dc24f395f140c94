"""Methods that read instead of learning: which weights they read with, and what tells recipes apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.errors import ArtefactError, ConfigurationError
from thisness.evaluation.learning import way_of
from thisness.evaluation.recipes import parse_recipe
from thisness.files import save_tensors, sha256
from thisness.methods.zero_shot import open_weights, read_subject, weights_hash
from thisness.subject import Subject


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def subject():
    pixels = np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)
    return Subject("rex", "dog", (Image.fromarray(pixels),))


def written(folder, made_for, value=1.0, **config):
    folder.mkdir(exist_ok=True)
    said = {"method": "ezigen", "base": made_for.signature, "base_name": made_for.name, **config}
    (folder / "config.json").write_text(json.dumps(said))
    save_tensors(folder / "model.safetensors", {"a": torch.full((2,), value, dtype=torch.float16)})
    return str(folder)


def test_weights_are_for_one_method_one_base_and_one_hash(base, tmp_path):
    given = written(tmp_path / "w", base)
    found = open_weights("ezigen", given, base)
    assert found.tensors["a"].dtype == torch.float32 and found.signature == sha256(tmp_path / "w" / "model.safetensors")
    assert open_weights("ezigen", given, base, expect=found.signature).signature == found.signature
    with pytest.raises(ArtefactError, match="other weights"):
        open_weights("ezigen", given, base, expect="0" * 64)
    with pytest.raises(ArtefactError, match="not for 'elite'"):
        open_weights("elite", given, base)
    other = written(tmp_path / "o", base, base="else", base_name="sd15")
    with pytest.raises(ArtefactError, match="trained on sd15"):
        open_weights("ezigen", other, base)
    (tmp_path / "w" / "config.json").unlink()
    with pytest.raises(ArtefactError, match="config.json missing"):
        open_weights("ezigen", given, base)


def test_a_benchmark_tells_retrained_weights_apart(base, tmp_path):
    """The same folder with other weights is another recipe: its pictures are made anew."""
    given = written(tmp_path / "w", base)
    way = way_of(parse_recipe(f'ezigen:weights="{given}"'))
    first = way.settings(base)
    assert first["weights_hash"] == weights_hash("ezigen", given) != ""
    assert way.settings(base) == first
    written(tmp_path / "w", base, value=2.0)
    assert way.settings(base)["weights_hash"] != first["weights_hash"]


def test_what_must_learn_says_so(base, subject):
    with pytest.raises(ConfigurationError, match="has to learn the subject first: thisness learn textual-inversion"):
        read_subject("textual-inversion", subject, base)
    with pytest.raises(ConfigurationError, match="no method 'ezigin'.*did you mean 'ezigen'"):
        read_subject("ezigin", subject, base)
