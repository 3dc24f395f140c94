"""Low-rank weights as kohya-ss writes them. Oracles: plain diffusers loads the file and makes the same picture; the
matrices multiplied out into SDXL's weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import tiny
from thisness.adapters.kohya import kohya_lora, kohya_words
from thisness.concept import Concept
from thisness.conditioning import encode
from thisness.errors import ConfigurationError
from thisness.methods.dreambooth import TARGETS, TEXT_TARGETS, target_modules
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions, decode_images, sample

LORA = "lora.safetensors"


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def random_lora(parts: dict[str, torch.nn.Module], size: float = 0.3) -> dict[str, torch.Tensor]:
    """Rank 2 on every module that any setting may train."""
    generator, found = torch.Generator().manual_seed(0), {}
    for part, model in parts.items():
        for name in target_modules(model, TARGETS["all"] if part == "unet" else TEXT_TARGETS):
            out, inside, *window = model.get_submodule(name).weight.shape
            found[f"{part}.{name}.lora_A.weight"] = torch.randn(2, inside, *window, generator=generator) * size
            ones = [1] * len(window)
            found[f"{part}.{name}.lora_B.weight"] = torch.randn(out, 2, *ones, generator=generator) * size
    return found


def concept_of(base, **tensors) -> Concept:
    tokens = ("<rex>", "<rex_1>") if "words" in tensors else ()
    word = f"{' '.join(tokens) or 'sks'} dog"
    files = {LORA: tensors["lora"]} if "lora" in tensors else {}
    files |= {"embeddings.safetensors": {"text_encoder": tensors["words"]}} if tokens else {}
    return Concept.create("dreambooth-lora", tiny.toy(), base, word=word, tensors=files, tokens=tokens)


def ours(base, *concepts) -> np.ndarray:
    """The first one's word, all of them attached."""
    filled = Prompt("a {subject} on the beach").fill({"subject": concepts[0].word})
    if not concepts[1:]:
        with concepts[0].attach(base):
            return drawn(base, filled)
    with concepts[0].attach(base), concepts[1].attach(base):
        return drawn(base, filled)


def drawn(base, filled) -> np.ndarray:
    options = SamplingOptions(steps=2, guidance=2.0, scheduler="ddim")
    return np.asarray(decode_images(base, sample(base, encode(base, filled), None, [0], options))[0], np.float32)


def theirs(pipe, text: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    made = pipe(text, num_inference_steps=2, guidance_scale=2.0, generator=generator, height=16, width=16)
    return np.asarray(made.images[0], np.float32)


def test_diffusers_and_we_read_what_we_write(base, tmp_path):
    concept = concept_of(base, lora=random_lora({"unet": base.unet, "text_encoder": base.text_encoder}, size=0.1))
    files = concept.export(tmp_path / "out", to="kohya")
    assert [file.name for file in files] == ["rex_lora.safetensors", "usage.txt"]
    expected = ours(base, concept)
    pipe = tiny.pipeline()
    before = theirs(pipe, "a sks dog on the beach")
    pipe.load_lora_weights(tmp_path / "out", weight_name="rex_lora.safetensors")
    assert np.abs(theirs(pipe, "a sks dog on the beach") - before).max() > 4
    assert np.abs(theirs(pipe, "a sks dog on the beach") - expected).max() <= 1
    again = Concept.from_lora(tmp_path / "out/rex_lora.safetensors", base, "dog", word="sks dog")
    assert again.tensors[LORA].keys() == concept.tensors[LORA].keys()
    assert all(torch.equal(tensor, concept.tensors[LORA][key]) for key, tensor in again.tensors[LORA].items())
    with safe_open(tmp_path / "out/rex_lora.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["ss_network_dim"], facts["ss_network_alpha"], facts["ss_output_name"]) == ("2", "2", "rex")


def test_a_word_goes_into_a_file_of_its_own(base, tmp_path):
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    concept = concept_of(base, lora=random_lora({"unet": base.unet}, size=0.1), words=rows)
    concept.export(tmp_path / "out", to="kohya")
    assert torch.equal(load_file(tmp_path / "out/rex.safetensors")["emb_params"], rows)
    word = Concept.from_textual_inversion(tmp_path / "out/rex.safetensors", base, "dog", keep_noun=True)
    lora = Concept.from_lora(tmp_path / "out/rex_lora.safetensors", base, "dog")
    assert np.array_equal(ours(base, word, lora), ours(base, concept))
    text = (tmp_path / "out/usage.txt").read_text()
    assert "prompt: a photo of a rex dog <lora:rex_lora:1>" in text and "rex.safetensors: into embeddings" in text


def xl_pipeline() -> StableDiffusionXLPipeline:
    """SDXL with random weights: two text encoders, the second with a projection."""
    tokens = tiny.tokenizer()
    torch.manual_seed(1)
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=tokens.model_max_length, projection_dim=16, bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
        )
    ).eval()  # fmt: skip
    unet = tiny.unet(
        width=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16, use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=tiny.vae(), text_encoder=tiny.text_encoder(tokens), text_encoder_2=second, tokenizer=tokens,
        tokenizer_2=tiny.tokenizer(), unet=unet, scheduler=tiny.scheduler(), add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_sdxl_names_as_plain_diffusers_reads_them(tmp_path):
    pipe = xl_pipeline()
    parts = {name: getattr(pipe, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    lora = random_lora(parts, size=0.1)
    written, facts = kohya_lora(lora, two_encoders=True, name="rex")
    starts = {key.split("_")[1] for key in written}
    assert starts == {"unet", "te1", "te2"}
    save_file({key: tensor.contiguous() for key, tensor in written.items()}, tmp_path / "rex.safetensors", facts)

    merged = StableDiffusionXLPipeline(**{k: copy.deepcopy(v) for k, v in pipe.components.items()})
    merged.set_progress_bar_config(disable=True)
    before = theirs(merged, "a sks dog on the beach")
    for key, a in lora.items():
        if key.endswith("lora_A.weight"):
            part, _, module = key.removesuffix(".lora_A.weight").partition(".")
            weight = getattr(merged, part).get_submodule(module).weight
            change = lora[key.replace("lora_A", "lora_B")].flatten(1) @ a.flatten(1)
            weight.data += change.view(weight.shape)
    expected = theirs(merged, "a sks dog on the beach")
    assert np.abs(expected - before).max() > 4
    pipe.load_lora_weights(tmp_path, weight_name="rex.safetensors")
    assert np.abs(theirs(pipe, "a sks dog on the beach") - expected).max() <= 1


def test_words_of_two_encoders_have_sdxls_names():
    rows = {"text_encoder_2": torch.ones(1, 3), "text_encoder": torch.zeros(1, 2)}
    assert {key: tensor.shape[1] for key, tensor in kohya_words(rows).items()} == {"clip_l": 2, "clip_g": 3}


def test_what_has_no_place_in_the_format_is_refused(base, tmp_path):
    weights = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(8, 16)}
    concept = Concept.create(
        "custom-diffusion", tiny.toy(), base, word="dog", tensors={"replaced.safetensors": weights}
    )
    with pytest.raises(ConfigurationError, match="words and low-rank weights only: export to diffusers"):
        concept.export(tmp_path / "out", to="kohya")
    with pytest.raises(ConfigurationError, match=r"no export to 'kohia' \(did you mean 'kohya'"):
        concept.export(tmp_path / "out", to="kohia")
    assert not (tmp_path / "out").exists()
