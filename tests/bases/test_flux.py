"""FLUX as a base. Oracles: the stock pipeline's own functions, arithmetic on paper, a sentence known to be cut."""

import numpy as np
import pytest
import tiny_flux
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

import tiny
from thisness.bases import FAMILIES, Base, Flux, known, load_base
from thisness.bases.flux import pack, position_ids, shift_of, unpack
from thisness.bases.registry import find
from thisness.conditioning import encode
from thisness.errors import ConfigurationError, PromptError
from thisness.generation import generate
from thisness.prompt import FilledPrompt
from thisness.sampling import SamplingOptions, sample


def test_packing_is_that_of_the_stock_pipeline_and_undone_exactly():
    latents = torch.randn(2, 16, 6, 10)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(unpack(packed, 6, 10), latents)
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    assert torch.equal(position_ids(3, 5), ids)


def test_the_shift_is_that_of_the_stock_pipeline():
    assert shift_of(4096, {}) == pytest.approx(1.15) and shift_of(256, {}) == pytest.approx(0.5)
    for tokens in (64, 1024, 4096):
        assert shift_of(tokens, {}) == calculate_shift(tokens)


def test_saved_loaded_and_saved_again(tmp_path):
    pipe = tiny_flux.pipeline()
    pipe.save_pretrained(tmp_path / "flux")
    base = load_base(tmp_path / "flux")
    assert isinstance(base, Flux) and base.resolution == 32 and base.prediction_type == "flow_prediction"
    assert base.signature == Base.from_pipeline(pipe).signature
    base.to_pipeline().save_pretrained(tmp_path / "again")
    assert load_base(tmp_path / "again").signature == base.signature
    half = load_base(tmp_path / "flux", dtype=torch.bfloat16)
    assert half.signature == base.signature
    assert {p.dtype for module in half.modules.values() for p in module.parameters()} == {torch.bfloat16}
    changed = tiny_flux.pipeline(axes_dims_rope=(2, 4, 6))  # no weight tells it
    assert Base.from_pipeline(changed).signature.split("-")[0] != base.signature.split("-")[0]


def test_offloaded_parts_give_the_same_picture_and_go_back(tmp_path):
    tiny_flux.pipeline().save_pretrained(tmp_path / "flux")
    options = SamplingOptions(steps=2)
    whole = generate(load_base(tmp_path / "flux"), "a photo of a dog", options=options).images[0]
    base = load_base(tmp_path / "flux", offload=True)
    moved = []
    for name, module in base.modules.items():
        before = module._hf_hook.pre_forward

        def watched(*args, name=name, before=before, **kwargs):
            moved.append(name)
            return before(*args, **kwargs)

        module._hf_hook.pre_forward = watched
    assert np.array_equal(generate(base, "a photo of a dog", options=options).images[0], whole)
    assert list(dict.fromkeys(moved)) == ["text_encoder_2", "text_encoder", "transformer", "vae"]
    assert base.device == torch.device("cpu")


def test_in_float16_a_part_of_t5_stays_in_float32():
    base = tiny_flux.base()
    exact = [m.weight.clone() for n, m in base.text_encoder.named_modules() if n.endswith(".wo")]
    base.to(dtype=torch.float16)
    kept = [m.weight for n, m in base.text_encoder.named_modules() if n.endswith(".wo")]
    assert len(kept) == 2 and all(torch.equal(one, other) for one, other in zip(kept, exact, strict=True))
    assert torch.isfinite(encode(base, "a dog").embeds).all() and base.dtype == torch.float16


def test_pictures_to_latents_and_back_undo_each_other():
    base = tiny_flux.base()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    posterior = base.vae.encode(images).latent_dist
    latents = base.encode_images(images)
    assert torch.allclose(latents, (posterior.mode() - 0.1159) * 0.3611)
    assert torch.allclose(base.decode(latents), base.vae.decode(posterior.mode())[0], atol=1e-5)


def test_clip_is_cut_where_t5_goes_on_and_t5_is_refused():
    pipe = tiny_flux.pipeline(length=80)
    base = Base.from_pipeline(pipe)
    long = "a photo of the dog" + " on the beach in the snow" * 6
    first, second = base.tokenize(FilledPrompt.plain(long))
    assert first.length < 80 and len(second.ids) == tiny_flux.CLIP_LENGTH
    embeds, pooled, _ = pipe.encode_prompt(long, None, "cpu", max_sequence_length=80)
    found = encode(base, long)
    assert torch.equal(found.embeds, embeds) and torch.equal(found.pooled, pooled)
    assert len(base.tokenizers[1](long)["input_ids"]) > tiny_flux.CLIP_LENGTH  # so that something was cut
    with pytest.raises(PromptError, match="the encoder takes 24: .* would be cut"):
        encode(tiny_flux.base(), long)


def test_pooled_text_is_read_at_the_end_mark_whatever_the_config_says():
    plain = tiny_flux.pipeline()
    ends = plain.tokenizer.eos_token_id
    plain.text_encoder.config.eos_token_id = plain.text_encoder.eos_token_id = 2
    base = Base.from_pipeline(plain)
    found = encode(base, "a dog").pooled
    assert torch.equal(found, encode(tiny_flux.base(), "a dog").pooled)
    assert ends != 2


def test_the_text_is_as_long_as_in_the_official_code():
    for dev, expected in ((True, 512), (False, 256)):
        pipe = tiny_flux.pipeline(dev=dev, length=1000)
        base = Base.from_pipeline(pipe)
        assert base.tokenizer.model_max_length == expected and pipe.tokenizer_2.model_max_length == 1000
        assert encode(base, "a dog").embeds.shape[1] == expected


def test_parts_that_do_not_fit_are_named():
    components = tiny_flux.pipeline().components

    def refused(**parts):
        with pytest.raises(ConfigurationError) as caught:
            Flux({**components, **parts}, "wrong")
        return str(caught.value)

    assert "reads text of width 16, T5's is 32" in refused(transformer=tiny_flux.transformer(joint_attention_dim=16))
    assert "pooled text of width 8" in refused(transformer=tiny_flux.transformer(pooled_projection_dim=8))
    filling = refused(transformer=tiny_flux.transformer(in_channels=96, out_channels=64))
    assert "takes 96 channels, packed latents have 64: a model for filling" in filling
    assert "the VAE is not one of FLUX" in refused(vae=tiny.vae(16))
    with pytest.raises(ConfigurationError, match="height 30 must be a multiple of 4 .* try 32"):
        sample(tiny_flux.base(), encode(tiny_flux.base(), "a dog"), None, [0], SamplingOptions(height=30))


def test_the_registered_ones_are_of_this_family():
    for name, steps, guidance in (("flux-dev", 28, 3.5), ("flux-schnell", 4, 0.0)):
        facts = known()[name]
        assert (facts.family, facts.steps, facts.guidance) == ("flux", steps, guidance)
        assert find(facts.hub.upper()) is facts and FAMILIES["flux"] is Flux
