"""Oracle: diffusers' FluxPipeline. With nothing attached, latents and pictures are its own, bit for bit."""

import numpy as np
import pytest
import tiny_flux
import torch

from thisness.attention import Intervention
from thisness.bases import Base
from thisness.bases.flux import pack
from thisness.conditioning import encode, encode_negative
from thisness.errors import ConfigurationError
from thisness.generation import generate
from thisness.sampling import SamplingOptions, decode_images, make_scheduler, noised_at, sample

PROMPT = "a photo of a dog on the beach"


@pytest.fixture(scope="module", params=["dev", "schnell"])
def pipe(request):
    return tiny_flux.pipeline(dev=request.param == "dev")


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def stock(pipe, options, count, output="latent", **more):
    return pipe(
        PROMPT,
        num_images_per_prompt=count,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        height=options.height,
        width=options.width,
        generator=generators(count),
        output_type=output,
        max_sequence_length=tiny_flux.TEXT_LENGTH,
        **more,
    ).images


class TouchesNothing(Intervention):
    """Acts at every site and returns what it was given."""

    calls = 0

    def qkv(self, site, attn, q, k, v, context):
        self.calls += 1
        return q, k, v


def test_text_is_that_of_the_stock_pipeline(pipe):
    base = Base.from_pipeline(pipe)
    for prompt in (PROMPT, "", "a dog, sleeping", "red robot in a hat!"):
        embeds, pooled, _ = pipe.encode_prompt(prompt, None, "cpu", max_sequence_length=tiny_flux.TEXT_LENGTH)
        found = encode(base, prompt)
        assert torch.equal(found.embeds, embeds) and torch.equal(found.pooled, pooled)


@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 3.5])
def test_latents_are_those_of_the_stock_pipeline(pipe, count, scale, size):
    base = Base.from_pipeline(pipe)
    if not base.embedded_guidance and scale > 1:
        pytest.skip("true guidance has a test of its own")
    options = SamplingOptions(steps=3, guidance=scale, height=size[0], width=size[1]).resolved(base)
    expected = stock(pipe, options, count)
    conditioning = encode(base, PROMPT)
    ours = sample(base, conditioning, None, range(count), options)
    assert torch.equal(pack(ours), expected)
    idle = TouchesNothing()
    hooked = sample(base, conditioning, None, range(count), options, interventions=[idle])
    assert torch.equal(hooked, ours) and idle.calls == 4 * 3  # every site in every step
    named = sample(base, conditioning, None, range(count), SamplingOptions(**{**vars(options), "scheduler": "euler"}))
    assert torch.equal(named, ours)


def test_guidance_of_dev_is_an_input_and_of_schnell_two_branches():
    dev, schnell = tiny_flux.pipeline(), tiny_flux.pipeline(dev=False)
    base, other = Base.from_pipeline(dev), Base.from_pipeline(schnell)
    cond = encode(base, PROMPT)
    low, high = (sample(base, cond, None, [0], SamplingOptions(steps=2, guidance=g)) for g in (1.0, 5.0))
    assert not torch.equal(low, high)
    options = SamplingOptions(steps=2, guidance=4.0).resolved(other)
    expected = stock(schnell, options, 2, negative_prompt="cat", true_cfg_scale=4.0)
    ours = sample(other, encode(other, PROMPT), encode_negative(other, "cat"), [0, 1], options)
    assert torch.allclose(pack(ours), expected, atol=2e-5)  # one batch of two branches, not two calls
    unguided = sample(other, encode(other, PROMPT), None, [0, 1], SamplingOptions(steps=2, guidance=1.0))
    assert (pack(unguided) - expected).abs().max() > 0.01


def test_pictures_and_generate_are_those_of_the_stock_pipeline(pipe):
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=2, guidance=1.0).resolved(base)
    expected = stock(pipe, options, 2, output="pil")
    ours = decode_images(base, sample(base, encode(base, PROMPT), None, [0, 1], options))
    made = generate(base, PROMPT, seeds=(0, 1), options=options).images
    for want, one, other in zip(expected, ours, made, strict=True):
        assert np.array_equal(want, one) and np.array_equal(want, other)


def test_in_bfloat16_it_is_the_stock_pipeline(tmp_path):
    pipe = tiny_flux.pipeline().to(dtype=torch.bfloat16)
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=3, guidance=3.5).resolved(base)
    expected = stock(pipe, options, 2)
    ours = sample(base, encode(base, PROMPT), None, [0, 1], options)
    assert ours.dtype == torch.bfloat16 and torch.equal(pack(ours), expected)


def test_the_clean_latents_of_the_last_step_are_the_result():
    base, seen = tiny_flux.base(), []
    last = sample(
        base, encode(base, PROMPT), None, [0], SamplingOptions(steps=3), on_step=lambda s: seen.append(s.clean())
    )
    assert len(seen) == 3 and torch.allclose(seen[-1], last, atol=1e-5)
    assert not torch.allclose(seen[0], last, atol=1e-2)


def test_beginning_in_the_middle_is_the_same_as_going_there():
    base = tiny_flux.base()
    kept = []
    options = SamplingOptions(steps=4).resolved(base)
    whole = sample(base, encode(base, PROMPT), None, [0], options, on_step=lambda step: kept.append(step.latents))
    rest = sample(base, encode(base, PROMPT), None, [0], options, latents=kept[1], start=2)
    assert torch.equal(rest, whole)
    clean, noise = torch.randn(2, 1, 16, 16, 16).unbind()
    scheduler = make_scheduler(base)
    scheduler.set_timesteps(4)
    t = scheduler.sigmas[2]
    assert torch.allclose(noised_at(scheduler, clean, noise, 2), (1 - t) * clean + t * noise)


def test_schedulers_of_other_kinds_are_refused():
    base = tiny_flux.base()
    with pytest.raises(ConfigurationError, match="trained by flow matching: use euler"):
        sample(base, encode(base, "a dog"), None, [0], SamplingOptions(steps=1, scheduler="ddim"))
