"""The shipped models: small enough, plain diffusers reads them, and they know what they were taught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from thisness.playroom.captions import ALWAYS, caption
from thisness.playroom.check import FLOORS, FRESH, Measured, floating, reading
from thisness.playroom.models import Reader
from thisness.playroom.recipes.common import WEIGHTS
from thisness.playroom.recipes.unet import sample_latents
from thisness.playroom.recipes.vae import decode, encode, psnr
from thisness.playroom.render import render
from thisness.playroom.world import random_scene, rng_of

MIB = 1 << 20


@pytest.fixture(scope="module")
def base():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        WEIGHTS / "playroom-sd", safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judge() -> Reader:
    return Reader.load(WEIGHTS / "judge")


def test_files_are_safetensors_in_half_precision_and_small() -> None:
    from safetensors import safe_open

    files = [f for f in Path(WEIGHTS).rglob("*") if f.is_file()]
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    assert all(f.stat().st_size < 16_000_000 for f in files)
    assert not [f for f in files if f.name == "COMPLETE.json"]  # its hashes are of weights in single precision
    budgets = {  # MiB together
        ("playroom-sd", "judge"): 20,
        ("clip", "identity", "finder"): 6,
        ("ip-adapter", "ip-adapter-plus", "elite", "blip-diffusion"): 4,
        ("ezigen",): 4,
        ("playroom-flux", "redux", "ominicontrol", "aligngen"): 12,
    }
    folders = {f.relative_to(WEIGHTS).parts[0] for f in files}
    assert folders <= {folder for together in budgets for folder in together}
    for together, budget in budgets.items():
        size = sum(f.stat().st_size for f in files if f.relative_to(WEIGHTS).parts[0] in together)
        assert 0 < size < budget * MIB, together
    for file in (f for f in files if f.suffix == ".safetensors"):
        with safe_open(file, "pt") as tensors:
            kinds = {str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, (file, kinds)


def test_plain_diffusers_loads_in_single_precision_and_the_vocabulary_fits(base) -> None:
    assert {p.dtype for part in (base.unet, base.vae, base.text_encoder) for p in part.parameters()} == {torch.float32}
    assert len(base.tokenizer) == base.text_encoder.config.vocab_size
    assert base.tokenizer.model_max_length == base.text_encoder.config.max_position_embeddings == 48


def test_autoencoder_keeps_held_out_pictures(base) -> None:
    images = floating(render([random_scene(FRESH + 4 * i, "held-out") for i in range(12)]).images)
    decoded = decode(base.vae, encode(base.vae, images)[0])
    assert (
        float(psnr(decoded, images)) > FLOORS["vae"]["PSNR, dB"] - 2.5
    )  # twelve pictures scatter; `check` holds the floor
    shuffled = decoded.roll(1, 0)
    assert float(psnr(shuffled, images)) < 20


def test_judge_reads_held_out_renders_and_not_noise(judge: Reader) -> None:
    scenes = [random_scene(FRESH + 4 * i, "held-out", companion=0, styled=0) for i in range(48)]
    images = floating(render(scenes).images)
    right = {name: value for name, (value, _) in reading(judge, images, scenes).items()}
    assert right["class"] > 85 and right["pose"] > 85 and right["background"] > 90
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert reading(judge, noise, scenes)["class"][0] < 40


def test_base_draws_what_the_caption_says_and_guidance_helps(base, judge: Reader) -> None:
    scenes = [random_scene(FRESH + 4 * i, "held-out", companion=0, styled=0, accessory=0, prop=0) for i in range(16)]
    sentences = [caption(scene, rng_of("weights", i), ALWAYS) for i, scene in enumerate(scenes)]

    def drawn(guidance: float) -> dict[str, float]:
        latents = sample_latents(
            base.unet, base.text_encoder, base.tokenizer, sentences, steps=12, guidance=guidance, seed=3
        )
        images = decode(base.vae, latents / base.vae.config.scaling_factor)
        return {name: value for name, (value, _) in reading(judge, images, scenes).items()}

    told, untold = drawn(3.0), drawn(0.0)
    assert told["class"] >= 60 and told["background"] >= 80
    assert told["class"] > untold["class"] + 30 and told["background"] > untold["background"] + 40


def test_a_value_under_its_floor_does_not_pass() -> None:
    assert Measured("vae", "PSNR, dB", 26.9, 1, 27.0).passed is False
    assert Measured("vae", "PSNR, dB", 27.0, 1, 27.0).passed and Measured("vae", "x", 0.0, 1, None).passed


def test_scaling_factor_brings_latents_to_unit_size(base) -> None:
    images = floating(render([random_scene(FRESH + 4 * i, "held-out") for i in range(24)]).images)
    latents = (
        encode(base.vae, images)[0]
        * json.loads((WEIGHTS / "playroom-sd/vae/config.json").read_text())["scaling_factor"]
    )
    assert 0.85 < float(latents.std()) < 1.15
