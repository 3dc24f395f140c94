"""Stable Diffusion 1.5 in its full size, with random weights, through the code that the tiny models go through.

Oracles: the published numbers of parameters; the stock pipeline, bit for bit.
"""

import json
import resource
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import tiny
from thisness.attention import CaptureMaps, sites_of
from thisness.bases import Base
from thisness.conditioning import encode
from thisness.generation import generate
from thisness.sampling import SamplingOptions, sample

SIDE = 256  # a quarter of the pixels it is used with, for speed


@pytest.fixture(scope="module")
def base():
    config = json.loads(Path(__file__).with_name("data").joinpath("sd15.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # half of the memory while it is built
    try:
        unet = UNet2DConditionModel.from_config(config["unet"])
        vae = AutoencoderKL.from_config(config["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
    finally:
        torch.set_default_dtype(default)
    pipe = StableDiffusionPipeline(
        tokenizer=tiny.tokenizer(length=77, size=49408),
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        scheduler=PNDMScheduler.from_config(config["scheduler"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.expected = config["parameters"]
    base = Base.from_pipeline(pipe, name="sd15-random")
    base.pipe = pipe
    return base


def memory():
    """Peak of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@pytest.mark.slow
def test_it_is_the_published_model(base):
    for name, module in base.modules.items():
        assert sum(parameter.numel() for parameter in module.parameters()) == base.pipe.expected[name]
    assert (base.resolution, base.prediction_type, base.dtype) == (512, "epsilon", torch.bfloat16)
    sites = list(sites_of(base.unet).values())
    assert len(sites) == 32 and [site.layer for site in sites if site.kind == "cross"] == list(range(16))
    grids = [site.resolution for site in sites if site.kind == "cross"]
    assert grids == [64, 64, 32, 32, 16, 16, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64]


@pytest.mark.slow
def test_one_step_is_that_of_the_stock_pipeline(base):
    options = SamplingOptions(steps=1, guidance=7.5, height=SIDE, width=SIDE)
    start = time.monotonic()
    maps = CaptureMaps()
    ours = sample(base, encode(base, "a photo of a dog"), None, (0,), options, interventions=[maps])
    seconds = time.monotonic() - start
    stock = base.pipe(
        "a photo of a dog",
        num_inference_steps=1,
        guidance_scale=7.5,
        height=SIDE,
        width=SIDE,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    assert torch.equal(ours, stock) and ours.shape == (1, 4, SIDE // 8, SIDE // 8)
    assert len(maps.maps) == 16 and maps.average().shape == (1, (SIDE // 8) ** 2, 77)
    print(f"\nfull-size SD 1.5, bf16, {SIDE} px: one guided step {seconds:.1f} s, peak {memory():.1f} GiB")


@pytest.mark.slow
def test_a_picture_is_made(base):
    options = SamplingOptions(steps=1, guidance=1.0, height=SIDE, width=SIDE)
    made = generate(base, "a photo of a {subject}", subject=tiny.toy(), options=options)
    assert made.images[0].size == (SIDE, SIDE) and made.record["machine"]["dtype"] == "bfloat16"
    assert len(set(made.images[0].tobytes())) > 8  # not one flat colour
    print(f"\nfull-size SD 1.5, bf16, {SIDE} px: a picture of one step, peak {memory():.1f} GiB")


@pytest.mark.slow
def test_elite_in_its_published_sizes_loads_and_takes_a_step(base):
    from thisness.attention import attached, rows_of
    from thisness.methods.elite import GlobalMapper, LocalAttention, LocalMapper, keys_and_values, open_mappers
    from thisness.methods.zero_shot import AdapterWeights

    tensors = {}
    for part, kind in (("global", GlobalMapper), ("local", LocalMapper)):
        mapper = kind(5, 1024, 1024, 768, keys_and_values(base.denoiser))
        tensors |= {f"{part}.{name}": value for name, value in mapper.state_dict().items()}
    whole, local = open_mappers(AdapterWeights("random", {}, tensors, ""), base)
    states = [torch.randn(1, 257, 1024) for _ in range(5)]
    with torch.no_grad():
        assert whole(states).shape == (1, 5, 768)
        read = local(states).to(base.dtype)
        projected = {
            name: torch.nn.functional.linear(read, local.projection(name).to(base.dtype)) for name in local.names
        }
        acting = LocalAttention(
            "dog", lambda site: (projected[f"{site}.to_k.weight"], projected[f"{site}.to_v.weight"]), 0.8
        )
        text = encode(base, "a photo of a dog")
        latents = torch.randn(1, 4, SIDE // 8, SIDE // 8, dtype=base.dtype)
        plain = base.denoiser(latents, 500, text.embeds, return_dict=False)[0]
        with attached(base.denoiser, acting) as context:
            context.rows, context.spans = rows_of(["cond"], 1), {"cond": text.spans}
            found = base.denoiser(latents, 500, text.embeds, return_dict=False)[0]
    assert torch.isfinite(found).all() and not torch.equal(found, plain)


@pytest.mark.slow
def test_blip_diffusions_encoder_in_its_published_size_loads_and_reads(base):
    from thisness.methods.blip_diffusion import build
    from thisness.methods.blip_qformer import QFormer, QFormerConfig, VisionConfig
    from thisness.methods.zero_shot import AdapterWeights

    with torch.device("meta"):
        sizes = {name: value.shape for name, value in QFormer(QFormerConfig(), VisionConfig()).state_dict().items()}
    tensors = {name: 0.02 * torch.randn(shape) for name, shape in sizes.items()}
    model = build(AdapterWeights("random", {"qformer": {}, "vision": {}}, tensors, ""), base)
    with torch.no_grad():
        states = model.visual_encoder(torch.randn(1, 3, 224, 224))
        rows = model(states, torch.tensor([[101, 3899, 102]]))
    assert states.shape == (1, 257, 1024) and rows.shape == (1, 16, 768) and torch.isfinite(rows).all()
