"""Oracle: diffusers' StableDiffusionPipeline. With nothing attached, latents and pictures are its own, bit for bit."""

import diffusers
import numpy as np
import pytest
import torch

import tiny
from thisness.attention import Intervention
from thisness.bases import Base
from thisness.conditioning import encode
from thisness.sampling import SCHEDULERS, SamplingOptions, decode_images, sample

PROMPT = "a photo of a dog on the beach"
CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++-sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
    "heun": "HeunDiscreteScheduler",
}
KINDS = ("epsilon", "v_prediction", "zero-snr")


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    return tiny.pipeline(request.param, pad="!" if request.param == "v_prediction" else None)


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def stock(pipe, base, options, count, negative="", output="latent", **more):
    special = {"algorithm_type": "sde-dpmsolver++"} if options.scheduler == "dpm++-sde" else {}
    cls = getattr(diffusers, CLASSES[options.scheduler or "ddim"])
    pipe.scheduler = cls.from_config(base.scheduler.config, **special)
    return pipe(
        PROMPT,
        negative_prompt=negative,
        num_images_per_prompt=count,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        guidance_rescale=options.guidance_rescale,
        eta=options.eta,
        height=options.height,
        width=options.width,
        generator=generators(count),
        output_type=output,
        **more,
    ).images


class TouchesNothing(Intervention):
    """Acts at every site and returns what it was given."""

    calls = 0

    def qkv(self, site, attn, q, k, v, context):
        self.calls += 1
        return q, k, v


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler-a", "dpm++", "unipc"])
def test_latents_are_those_of_the_stock_pipeline(pipe, scheduler, guidance, count):
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=3, guidance=guidance, scheduler=scheduler).resolved(base)
    expected = stock(pipe, base, options, count, negative="cat")
    conditioning, negative = encode(base, PROMPT), encode(base, "cat")
    ours = sample(base, conditioning, negative, range(count), options)
    assert torch.equal(ours, expected)
    idle = TouchesNothing()
    hooked = sample(base, conditioning, negative, range(count), options, interventions=[idle])
    assert torch.equal(hooked, expected)
    assert idle.calls == 8 * 3  # every site in every step


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(steps=3, guidance=4.0, eta=0.7),
        SamplingOptions(steps=3, guidance=4.0, guidance_rescale=0.6),
        SamplingOptions(steps=3, guidance=4.0, height=24, width=8),
        SamplingOptions(steps=3, guidance=4.0, scheduler="dpm++-sde"),
        SamplingOptions(steps=3, guidance=4.0, scheduler="ddpm"),
    ],
    ids=["eta", "rescale", "sides", "sde", "ddpm"],
)
def test_options_are_those_of_the_stock_pipeline(options):
    pipe = tiny.pipeline("epsilon")
    base = Base.from_pipeline(pipe)
    options = options.resolved(base)
    plain = sample(base, encode(base, PROMPT), None, range(2), SamplingOptions(steps=3, guidance=4.0))
    ours = sample(base, encode(base, PROMPT), None, range(2), options)
    assert torch.equal(ours, stock(pipe, base, options, 2))
    assert ours.shape != plain.shape or not torch.equal(ours, plain)  # the option does something


@pytest.mark.parametrize("scheduler", ["pndm", "heun"])
def test_schedulers_of_other_orders(scheduler):
    pipe = tiny.pipeline("epsilon")
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=4, guidance=3.0, scheduler=scheduler).resolved(base)
    assert torch.equal(sample(base, encode(base, PROMPT), None, [0], options), stock(pipe, base, options, 1))


def test_given_latents_are_those_of_the_stock_pipeline():
    pipe = tiny.pipeline("epsilon")
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=2, guidance=3.0, scheduler="euler").resolved(base)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    ours = sample(base, encode(base, PROMPT), None, range(2), options, latents=noise.clone())
    assert torch.equal(ours, stock(pipe, base, options, 2, latents=noise.clone()))


def test_pictures_are_those_of_the_stock_pipeline():
    pipe = tiny.pipeline("zero-snr")
    base = Base.from_pipeline(pipe)
    options = SamplingOptions(steps=2, guidance=3.0).resolved(base)
    expected = stock(pipe, base, options, 3, output="pil")
    ours = decode_images(base, sample(base, encode(base, PROMPT), None, range(3), options))
    assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert len({image.tobytes() for image in ours}) == 3


def test_nothing_of_a_run_stays_in_the_base():
    """Multistep schedulers remember earlier predictions: a second run must not see them."""
    base = tiny.base("epsilon")
    for name in SCHEDULERS:
        options = SamplingOptions(steps=4, guidance=3.0, scheduler=name)
        runs = [sample(base, encode(base, PROMPT), None, [1], options) for _ in range(2)]
        assert torch.equal(*runs), name
    before = dict(vars(base.scheduler))
    sample(base, encode(base, PROMPT), None, [1], SamplingOptions(steps=3))
    assert dict(vars(base.scheduler)) == before
