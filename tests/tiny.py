"""The tiniest models of the real architectures, with random weights: for tests that ask how code treats models."""

from __future__ import annotations

import atexit
import shutil
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from thisness.bases import Base
from thisness.prompt import SlotWord
from thisness.subject import Subject

torch.set_num_threads(1)  # models this small only wait for a second thread

WORDS = (
    "dog", "cat", "photo", "a", "of", "on", "the", "beach", "snow", "sleeping", "sks", "an", "hat", "in", "with", "red",
)  # fmt: skip
RESOLUTION = 16
TEXT_LENGTH = 24


def tokenizer(pad: str | None = None, length: int = TEXT_LENGTH, size: int = 0) -> CLIPTokenizer:
    """Knows single characters and WORDS as one token each.

    pad: another padding token, as SD 2.x has ("!"). size: filled up to so many tokens, which no sentence contains.
    """
    vocabulary: dict[str, int] = {}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    for character in string.ascii_lowercase + string.digits + string.punctuation:
        for token in (character, character + "</w>"):
            vocabulary[token] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0]
        for number, character in enumerate(word[1:], 2):
            right = character + ("</w>" if number == len(word) else "")
            if (left, right) not in merges:
                merges.append((left, right))
                vocabulary.setdefault(left + right, len(vocabulary))
            left += right
    while len(vocabulary) < size:
        vocabulary[f"\u2603{len(vocabulary)}</w>"] = len(vocabulary)
    more = {"pad_token": pad} if pad else {}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length, **more)


def text_config(tokens: CLIPTokenizer, width: int = 16, **config: Any) -> CLIPTextConfig:
    settings: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokens.model_max_length,
        "projection_dim": width,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    return CLIPTextConfig(**settings | config)


def text_encoder(tokens: CLIPTokenizer, width: int = 16, seed: int = 0) -> CLIPTextModel:
    torch.manual_seed(seed)
    return CLIPTextModel(text_config(tokens, width)).eval()


def vae(channels: int = 4, seed: int = 0) -> AutoencoderKL:
    """2 pixels for each latent."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=RESOLUTION,
    ).eval()


def unet(width: int = 16, seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """8x8 latents; attention at 8x8 and, in the middle, 4x4: 4 transformer blocks, so 8 sites."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "sample_size": RESOLUTION // 2,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "cross_attention_dim": width,
        "norm_num_groups": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
    }
    model = UNet2DConditionModel(**settings | config).eval()
    for parameter in model.parameters():  # the initial attention is nearly uniform: sharpen it, so that edits show
        if parameter.ndim == 2:
            parameter.data *= 2.0
    return model


@cache
def clip_folder() -> str:
    """A folder with the image side of a CLIP model: 16x16 pixels in 4 patches, features of 12."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=RESOLUTION,
        patch_size=8, projection_dim=12,
    )  # fmt: skip
    folder = tempfile.mkdtemp(prefix="thisness-tiny-clip-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    size = {"shortest_edge": RESOLUTION}
    CLIPImageProcessorPil(size=size, crop_size={"height": RESOLUTION, "width": RESOLUTION}).save_pretrained(folder)
    return folder


def scheduler(kind: str = "epsilon") -> DDIMScheduler:
    """kind: "epsilon" as SD 1.x, "v_prediction" as SD 2.x, "zero-snr" as the embedded model (v, trailing)."""
    shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    special = {
        "epsilon": {"set_alpha_to_one": False, "steps_offset": 1},
        "v_prediction": {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"},
        "zero-snr": {
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    }[kind]
    return DDIMScheduler(**shared | special)


def pipeline(kind: str = "epsilon", *, pad: str | None = None, **unet_config: Any) -> StableDiffusionPipeline:
    """A stock pipeline: 16x16 pixels, 8x8 latents, 24 tokens."""
    tokens = tokenizer(pad)
    pipe = StableDiffusionPipeline(
        tokenizer=tokens,
        text_encoder=text_encoder(tokens),
        unet=unet(**unet_config),
        vae=vae(),
        scheduler=scheduler(kind),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def base(kind: str = "epsilon", **config: Any) -> Base:
    """The same as a base."""
    return Base.from_pipeline(pipeline(kind, **config), name="tiny")


XL_WIDTHS = (16, 24)  # of SDXL's two text encoders


def pipeline_xl(
    kind: str = "epsilon", *, zeros: bool = True, eos: int | None = None, **unet_config: Any
) -> StableDiffusionXLPipeline:
    """A stock pipeline of SDXL: 16x16 pixels, two text encoders of 3 layers, padded differently; two transformer blocks
    deep in the second down block, the middle and the first up block, which alone attend.

    zeros: force_zeros_for_empty_prompt. eos: what the second encoder's config says of its end mark; published: 2.
    """
    one, two = tokenizer(), tokenizer("!")
    torch.manual_seed(0)
    first = CLIPTextModel(text_config(one, XL_WIDTHS[0], num_hidden_layers=3)).eval()
    ends = two.eos_token_id if eos is None else eos
    wide = text_config(two, XL_WIDTHS[1], num_hidden_layers=3, projection_dim=20, eos_token_id=ends)
    second = CLIPTextModelWithProjection(wide).eval()
    settings: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    pipe = StableDiffusionXLPipeline(
        tokenizer=one,
        tokenizer_2=two,
        text_encoder=first,
        text_encoder_2=second,
        unet=unet(sum(XL_WIDTHS), **settings | unet_config),
        vae=vae(),
        scheduler=scheduler(kind),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def base_xl(kind: str = "epsilon", **config: Any) -> Base:
    """The same as a base."""
    return Base.from_pipeline(pipeline_xl(kind, **config), name="tiny-xl")


def toy(noun: str = "dog", name: str = "rex") -> Subject:
    """One red picture."""
    return Subject(name, noun, (Image.new("RGB", (RESOLUTION, RESOLUTION), "red"),))


class Louder:
    """Stands in for a concept: another word, and weights that are changed while it is attached."""

    name, method, hash = "rex", "test", "0" * 64
    word = SlotWord("sks dog", "dog")

    @contextmanager
    def attach(self, base: Base) -> Iterator[None]:
        weight = base.denoiser.conv_out.weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.5)
        try:
            yield
        finally:
            with torch.no_grad():
                weight.copy_(before)
