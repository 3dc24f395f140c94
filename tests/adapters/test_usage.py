"""`usage.txt` of an export. Oracle: its line that opens the base, run as it stands in plain diffusers."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import tiny
from thisness.adapters.handler import usage
from thisness.concept import Concept


def opened(monkeypatch, name: str) -> str:
    """What plain diffusers is asked for by the usage of a concept of the base of that name."""
    asked: list[str] = []
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda source: asked.append(str(source)))
    base = tiny.base()
    words = {"embeddings.safetensors": {"text_encoder": torch.zeros(1, 32)}}
    made = Concept.create("textual-inversion", tiny.toy(), base, word="<toy>", tensors=words, tokens=("<toy>",))
    made = dataclasses.replace(made, manifest={**made.manifest, "base": {**made.manifest["base"], "name": name}})
    exec("\n".join(line for line in usage(made, {}).splitlines() if line.startswith(("from ", "pipe = "))), {})
    (source,) = asked
    return source


@pytest.mark.parametrize("name, hub", [("sd1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5"), ("a/b", "a/b")])
def test_short_names_become_hub_ids(monkeypatch, name, hub):
    assert opened(monkeypatch, name) == hub


def test_the_embedded_base_is_a_folder_of_the_package(monkeypatch):
    assert (Path(opened(monkeypatch, "playroom-sd")) / "model_index.json").is_file()
