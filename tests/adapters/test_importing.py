"""Oracle: plain diffusers loads the same file and makes the same picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tiny
from thisness.concept import Concept
from thisness.conditioning import encode
from thisness.errors import ArtefactError
from thisness.files import save_tensors
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions, decode_images, sample

UNET = "down_blocks.0.attentions.0.transformer_blocks.0"
MODULES = {  # ours: rank
    f"unet.{UNET}.attn1.to_q": 2,
    f"unet.{UNET}.attn1.to_out.0": 2,
    f"unet.{UNET}.attn2.to_k": 2,
    "text_encoder.encoder.layers.0.self_attn.q_proj": 2,
    "text_encoder.encoder.layers.1.self_attn.out_proj": 2,
}


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def weights(base) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator, found = torch.Generator().manual_seed(0), {}
    for name, rank in MODULES.items():
        part, _, module = name.partition(".")
        out, inside = base.modules[part].get_submodule(module).weight.shape
        found[name] = (torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator))
    return found


def legacy(name: str) -> str:
    return name.replace("text_encoder.", "text_encoder.text_model.")


def written(base, form: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The same random weights as files of other tools hold them."""
    tensors, metadata = {}, {}
    for name, (a, b) in weights(base).items():
        if form == "peft":
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        elif form == "peft-alpha":
            tensors |= {f"{legacy(name)}.lora_A.weight": a, f"{legacy(name)}.lora_B.weight": b}
        elif form == "diffusers-old":
            ends = (
                ("lora.down", "lora.up")
                if name.startswith("unet")
                else ("lora_linear_layer.down", "lora_linear_layer.up")
            )
            tensors |= {f"{legacy(name)}.{end}.weight": t for end, t in zip(ends, (a, b), strict=True)}
        elif form == "processors" and name.startswith("unet"):
            before, _, kind = name.replace(".to_out.0", ".to_out").rpartition(".")
            tensors |= {
                f"{before}.processor.{kind}_lora.down.weight": a,
                f"{before}.processor.{kind}_lora.up.weight": b,
            }
        elif form == "kohya":
            stem = legacy(name).replace("text_encoder.", "lora_te.").replace("unet.", "lora_unet.").replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(0.5)}
    if form == "peft-alpha":
        facts = {"r": 2, "lora_alpha": 1.0, "target_modules": ["to_q", "to_k", "to_out.0", "q_proj", "out_proj"]}
        both = {f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in facts.items()}
        metadata = {"lora_adapter_metadata": json.dumps(both)}
    return tensors, metadata


def ours(base, concept) -> np.ndarray:
    filled = Prompt("a {subject} on the beach").fill({"subject": concept.word})
    with concept.attach(base):
        options = SamplingOptions(steps=2, guidance=2.0, scheduler="ddim")
        return np.asarray(decode_images(base, sample(base, encode(base, filled), None, [0], options))[0], np.float32)


def theirs(pipe, text: str) -> np.ndarray:
    made = pipe(
        text, num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(0), height=16, width=16
    )
    return np.asarray(made.images[0], np.float32)


@pytest.mark.parametrize("form", ["peft", "peft-alpha", "diffusers-old", "processors", "kohya"])
def test_lora_of_every_format_as_plain_diffusers_reads_it(form, base, tmp_path):
    tensors, metadata = written(base, form)
    save_tensors(tmp_path / "sks.safetensors", tensors, {"format": "pt"} | metadata)
    concept = Concept.from_lora(tmp_path / "sks.safetensors", base, "dog", word="sks dog")
    pipe = tiny.pipeline()
    before = theirs(pipe, "a sks dog on the beach")
    pipe.load_lora_weights(tmp_path, weight_name="sks.safetensors")
    expected = theirs(pipe, "a sks dog on the beach")
    assert np.abs(expected - before).max() > 4  # the file has an effect
    assert np.abs(ours(base, concept) - expected).max() <= 1
    concept.save(tmp_path / "kept")
    assert np.array_equal(ours(base, Concept.load(tmp_path / "kept", base)), ours(base, concept))


@pytest.mark.parametrize("key", ["<thing>", "emb_params"])
def test_words_as_plain_diffusers_reads_them(key, base, tmp_path):
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    save_tensors(tmp_path / "thing.safetensors", {key: rows})
    concept = Concept.from_textual_inversion(tmp_path / "thing.safetensors", base, "dog")
    assert concept.tokens == ("<thing>", "<thing_1>")
    pipe = tiny.pipeline()
    pipe.load_textual_inversion({"<thing>": rows})
    assert np.abs(ours(base, concept) - theirs(pipe, "a <thing> on the beach")).max() <= 1


def test_nothing_that_matches_is_an_error_and_so_is_a_part(base, tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"transformer.blocks.0.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(ArtefactError, match="none of its 1 tensors belongs to tiny"):
        Concept.from_lora(path, base, "dog")
    tensors, _ = written(base, "peft")
    save_tensors(path, tensors | {"unet.nowhere.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(ArtefactError, match="unet.nowhere.lora_A.weight belong to nothing in tiny"):
        Concept.from_lora(path, base, "dog")
    first = next(iter(tensors))
    save_tensors(path, tensors | {first: torch.ones(2, 3)})
    with pytest.raises(ArtefactError, match=r"is \(2, 3\): expected \(2, 8\)"):
        Concept.from_lora(path, base, "dog")
    save_tensors(path, {"<thing>": torch.ones(1, 768)})
    with pytest.raises(ArtefactError, match="another family"):
        Concept.from_textual_inversion(path, base, "dog")
