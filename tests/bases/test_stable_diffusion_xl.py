"""SDXL. Oracle: diffusers' StableDiffusionXLPipeline over the same parts, bit for bit."""

import copy
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

import tiny
from thisness.attention import CaptureMaps, attached, rows_of
from thisness.attention.sites import sites_of
from thisness.bases import Base, StableDiffusionXL, known, load_base
from thisness.bases.registry import find
from thisness.conditioning import encode, encode_negative
from thisness.errors import ConfigurationError, ThisnessError
from thisness.generation import generate, replay
from thisness.sampling import SamplingOptions, decode_images, sample

PROMPT = "a photo of a dog on the beach"
CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipe(request):
    return tiny.pipeline_xl(request.param)


@pytest.fixture(scope="module")
def base():
    return tiny.base_xl()


def stock(pipe, base, options, count, negative, output="latent", **more):
    if options.scheduler is None:
        pipe.scheduler = copy.deepcopy(base.scheduler)
    else:
        pipe.scheduler = getattr(diffusers, CLASSES[options.scheduler]).from_config(base.scheduler.config)
    return pipe(
        PROMPT,
        negative_prompt=negative,
        num_images_per_prompt=count,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        height=options.height,
        width=options.width,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        output_type=output,
        **more,
    ).images


@pytest.mark.parametrize("negative", ["cat", None])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", list(CLASSES))
def test_latents_are_those_of_the_stock_pipeline(pipe, scheduler, guidance, negative):
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=3, guidance=guidance, scheduler=scheduler).resolved(base)
    unwanted = None if negative is None else encode(base, negative)
    ours = sample(base, encode(base, PROMPT), unwanted, range(2), options)
    assert torch.equal(ours, stock(pipe, base, options, 2, negative))


def test_pictures_are_those_of_the_stock_pipeline_in_other_sides_too(pipe):
    base = Base.from_pipeline(pipe)
    for height, width in ((16, 16), (24, 8)):
        options = SamplingOptions(steps=2, guidance=3.0, height=height, width=width).resolved(base)
        expected = stock(pipe, base, options, 2, None, output="pil")
        ours = decode_images(base, sample(base, encode(base, PROMPT), None, range(2), options))
        assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_generate_makes_the_same_picture_and_replay_makes_it_again(pipe, scheduler, tmp_path):
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=2, guidance=3.0, scheduler=scheduler)
    made = generate(base, "a photo of a {subject} on the beach", subject=tiny.toy(), seeds=(0, 1), options=options)
    expected = stock(pipe, base, options.resolved(base), 2, None, output="pil")
    assert all(np.array_equal(a, b) for a, b in zip(made.images, expected, strict=True))
    png = next(path for path in made.save(tmp_path) if path.suffix == ".png")
    again = replay(png, base, subject=tiny.toy())
    assert np.array_equal(again.images[0], made.images[0]) and not again.differences


def test_conditioning_is_that_of_encode_prompt(pipe):
    base = Base.from_pipeline(pipe)
    wanted, unwanted, pooled, unwanted_pooled = pipe.encode_prompt(PROMPT, negative_prompt="a cat")
    ours, other = encode(base, PROMPT), encode_negative(base, "a cat")
    assert torch.equal(ours.embeds, wanted) and torch.equal(ours.pooled, pooled)
    assert torch.equal(other.embeds, unwanted) and torch.equal(other.pooled, unwanted_pooled)
    assert ours.embeds.shape[-1] == sum(tiny.XL_WIDTHS)
    assert ours.spans[0].piece(ours.spans[0].where("context")[-1]) == "beach"


def test_the_padding_is_each_tokenizers_own(base):
    short, long = encode(base, "dog"), encode(base, "dog ! ! !")
    pads = [tokenizer.pad_token_id for tokenizer in base.tokenizers]
    assert pads[0] == base.tokenizers[0].eos_token_id and pads[1] == base.tokenizers[1].get_vocab()["!"]
    width = tiny.XL_WIDTHS[0]
    assert not torch.equal(short.embeds[:, 3, :width], long.embeds[:, 3, :width])
    assert torch.equal(short.embeds[:, :2], long.embeds[:, :2]) and short.spans[0].end == 2


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_negative_is_zeros_where_the_pipeline_says_so(zeros, tmp_path):
    pipe = tiny.pipeline_xl(zeros=zeros)
    pipe.save_pretrained(tmp_path / "xl")
    _, unwanted, _, pooled = pipe.encode_prompt(PROMPT)
    for base in (Base.from_pipeline(pipe), load_base(tmp_path / "xl")):
        for text in ("", "  "):
            empty = encode_negative(base, text)
            assert torch.equal(empty.embeds, unwanted) and torch.equal(empty.pooled, pooled)
            assert bool((empty.embeds == 0).all()) is zeros
        assert encode(base, "").embeds.abs().sum() > 0  # as a sentence it is one
        assert base.to_pipeline().config.force_zeros_for_empty_prompt is zeros


def test_sizes_are_told_as_the_stock_pipeline_tells_them(base):
    pipe = base.to_pipeline()
    expected = pipe._get_add_time_ids((40, 24), (3, 5), (16, 16), torch.float32, 20)
    assert torch.equal(base.time_ids(16, 16, original=(40, 24), crop=(3, 5)), expected)
    assert base.time_ids(24, 8).tolist() == [[24, 8, 0, 0, 24, 8]]
    conditioning = encode(base, PROMPT)
    cropped = replace(conditioning, extras={"time_ids": expected})
    options = SamplingOptions(steps=2, guidance=1.0)
    ours = sample(base, cropped, None, [0], options)
    told = stock(
        pipe, base, options.resolved(base), 1, None,
        original_size=(40, 24), crops_coords_top_left=(3, 5), target_size=(16, 16),
    )  # fmt: skip
    assert torch.equal(ours, told) and not torch.equal(ours, sample(base, conditioning, None, [0], options))


def test_the_pooled_text_is_read_at_the_end_mark_whatever_the_config_says_of_it():
    right, published = tiny.base_xl(), tiny.base_xl(eos=2)
    assert torch.equal(encode(right, PROMPT).pooled, encode(published, PROMPT).pooled)
    pipe = tiny.pipeline_xl(eos=2)
    pipe.tokenizer_2.add_tokens(["<new>"])
    pipe.text_encoder_2.resize_token_embeddings(len(pipe.tokenizer_2))
    pipe.tokenizer.add_tokens(["<new>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    ours = encode(Base.from_pipeline(pipe), "a <new> dog").pooled
    wrong = pipe.encode_prompt("a <new> dog", do_classifier_free_guidance=False)[2]
    pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    mended = pipe.encode_prompt("a <new> dog", do_classifier_free_guidance=False)[2]
    assert torch.equal(ours, mended) and not torch.equal(ours, wrong)


def test_a_folder_loads_to_what_the_stock_pipeline_loads(tmp_path):
    tiny.pipeline_xl("v_prediction").save_pretrained(tmp_path / "xl")
    base = load_base(tmp_path / "xl")
    assert type(base) is StableDiffusionXL and (base.family, base.resolution) == ("sdxl", 16)
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "xl", add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    options = SamplingOptions(steps=2, guidance=3.0).resolved(base)
    ours = sample(base, encode(base, PROMPT), None, [0], options)
    assert torch.equal(ours, stock(pipe, base, options, 1, None))
    base.to_pipeline().save_pretrained(tmp_path / "again")
    assert load_base(tmp_path / "again").signature == base.signature


def test_in_float16_the_vae_stays_in_float32_and_gives_the_stock_picture(tmp_path):
    tiny.pipeline_xl().save_pretrained(tmp_path / "xl")
    base = load_base(tmp_path / "xl", dtype=torch.float16)
    kinds = {name: next(module.parameters()).dtype for name, module in base.modules.items()}
    assert kinds.pop("vae") == torch.float32 and set(kinds.values()) == {torch.float16}
    whole = load_base(tmp_path / "xl")
    assert all(torch.equal(a, b) for a, b in zip(base.vae.parameters(), whole.vae.parameters(), strict=True))
    assert base.signature == whole.signature
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(base.decode(latents), whole.decode(latents.float()))
    assert base.encode_images(base.decode(latents)).dtype == torch.float16
    pipe = base.to_pipeline()
    assert pipe.vae.dtype == torch.float16 and pipe.unet is base.unet
    assert Base.from_pipeline(pipe).vae.dtype == torch.float32 and pipe.vae.dtype == torch.float16
    options = SamplingOptions(steps=2, guidance=3.0).resolved(base)
    pipe.set_progress_bar_config(disable=True)
    ours = decode_images(base, sample(base, encode(base, PROMPT), None, [0], options))[0]
    difference = np.asarray(ours, float) - np.asarray(stock(pipe, base, options, 1, None, output="pil")[0], float)
    assert np.abs(difference).max() <= 1  # the stock pipeline's VAE was rounded to float16
    assert load_base(tmp_path / "xl", dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_parts_that_do_not_fit_are_named():
    components = tiny.pipeline_xl().components

    def refused(**parts):
        with pytest.raises(ConfigurationError) as caught:
            StableDiffusionXL({**components, **parts}, "wrong")
        return str(caught.value)

    assert "width 16, the encoder's is 40" in refused(unet=tiny.unet(16))
    assert "takes no pooled text" in refused(unet=tiny.unet(40))
    assert "cut sentences in different ways" in refused(tokenizer_2=tiny.tokenizer("!", length=12))
    refiner = tiny.pipeline_xl(projection_class_embeddings_input_dim=20 + 5 * 8).unet
    assert "reads 60 numbers beside the text, expected 20 of the pooled text and 6 sizes of 8" in refused(unet=refiner)
    base = tiny.base_xl()
    with pytest.raises(ThisnessError, match="no pooled text"):
        sample(base, replace(encode(base, "dog"), pooled=None), None, [0], SamplingOptions(steps=1, guidance=1.0))


def test_the_base_brings_its_own_scheduler():
    """SDXL's own is Euler, whose input is scaled; the clean latents of a step are those that the scheduler means."""
    pipe = tiny.pipeline_xl()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    base, seen = Base.from_pipeline(pipe), []
    options = SamplingOptions(steps=3, guidance=1.0)
    last = sample(base, encode(base, PROMPT), None, [0], options, on_step=lambda step: seen.append(step.clean()))
    assert (seen[-1] - last).abs().max() < 1e-4  # after the last step no noise is left


def test_attention_sites_are_those_of_deeper_transformers(base):
    sites = list(sites_of(base.denoiser).values())
    assert [site.name for site in sites if site.kind == "cross"] == [
        *[f"down_blocks.1.attentions.0.transformer_blocks.{depth}.attn2" for depth in range(2)],
        *[f"mid_block.attentions.0.transformer_blocks.{depth}.attn2" for depth in range(2)],
        *[f"up_blocks.0.attentions.{at}.transformer_blocks.{depth}.attn2" for at in range(2) for depth in range(2)],
    ]
    capture = CaptureMaps()
    with attached(base.denoiser, capture) as context:
        context.rows, context.step = rows_of(["cond"], 1), 0
        base.predict(torch.randn(1, 4, 8, 8), 500, encode(base, PROMPT))
    for (_, name), maps in capture.maps.items():
        site = sites_of(base.denoiser)[name]
        assert maps.shape[-2:] == (site.resolution**2, tiny.TEXT_LENGTH if site.kind == "cross" else site.resolution**2)


def test_the_registered_ones_are_of_this_family():
    for name, resolution, guidance in (("sdxl", 1024, 5.0), ("sdxl-turbo", 512, 0.0)):
        facts = known()[name]
        assert (facts.family, facts.resolution, facts.guidance) == ("sdxl", resolution, guidance)
        assert find(facts.hub.upper()) is facts
