"""`thisness export`. Oracle: plain diffusers, and what the concept holds."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from thisness import cli
from thisness.concept import Concept


@pytest.fixture(scope="module")
def whole_folder(base_folder, photos, tmp_path_factory):
    """A fine-tuned model, in one step."""
    folder = tmp_path_factory.mktemp("concepts") / "rex"
    words = ["learn", "dreambooth", str(photos), "--noun", "dog", "--base", str(base_folder), "--out", str(folder)]
    assert cli.run([*words, "--steps", "1", "--set", "prior_pictures=0"]) == 0
    return folder


@pytest.mark.parametrize("to, file", [("diffusers", "pytorch_lora_weights"), ("kohya", "rex_lora")])
def test_low_rank_weights_beside_the_concept(concept_folder, tmp_path, capsys, to, file):
    out = tmp_path / "out"
    assert cli.run(["export", str(concept_folder), "--to", to, "--out", str(out)]) == 0
    assert f"{file}.safetensors" in capsys.readouterr().out
    learned = Concept.load(concept_folder).tensors["lora.safetensors"]
    written = load_file(out / f"{file}.safetensors")
    assert sum(t.numel() for t in written.values() if t.ndim) == sum(t.numel() for t in learned.values())


def test_a_whole_model_with_nothing_of_this_machine_in_it(whole_folder, base_folder, tmp_path, refused):
    said = refused("export", whole_folder, "--out", tmp_path / "out")
    assert "'tiny-sd', is needed" in said and "--base FOLDER" in said
    assert cli.run(["export", str(whole_folder), "--base", str(base_folder), "--out", str(tmp_path / "out")]) == 0
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    learned = Concept.load(whole_folder).tensors["replaced.safetensors"]
    state = pipe.unet.state_dict()
    assert {f"unet.{name}" for name in state} == set(learned)
    assert all(torch.equal(tensor.float(), learned[f"unet.{name}"].float()) for name, tensor in state.items())
    for file in (tmp_path / "out").rglob("*.json"):
        assert str(base_folder.parent) not in file.read_text(), file
    assert json.loads((tmp_path / "out/model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_refusals_are_one_line(concept_folder, whole_folder, tmp_path, refused):
    assert "did you mean 'kohya'?" in refused("export", concept_folder, "--to", "kohia", "--out", tmp_path / "x")
    assert "use diffusers" in refused("export", whole_folder, "--to", "kohya", "--out", tmp_path / "x")
    assert "none" in refused("export", tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "was not written by thisness" in refused("export", concept_folder, "--out", tmp_path / "full")
    assert not (tmp_path / "x").exists()
