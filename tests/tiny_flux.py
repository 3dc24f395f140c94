"""The tiniest FLUX: real architecture, random weights."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

import tiny
from thisness.bases import Base

RESOLUTION = 32  # 16x16 latents, 8x8 tokens
TEXT_LENGTH = 24
CLIP_LENGTH = 40
WIDTH = 32  # of T5
CLIP_WIDTH = 16
PIECES = ("dog", "cat", "photo", "of", "on", "the", "beach", "snow", "sleep", "ing", "hat", "in", "red", "robot")


def tokenizer(length: int = TEXT_LENGTH) -> T5Tokenizer:
    """Knows characters and PIECES, with and without the mark of a word's beginning."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    for character in string.ascii_lowercase + string.digits + "-.,!?'<>_":
        pieces += [(character, -9.0), ("\u2581" + character, -9.5)]
    pieces += [(piece, -5.0) for piece in PIECES] + [("\u2581" + piece, -4.0) for piece in (*PIECES, "a", "an")]
    made = T5Tokenizer(vocab=list(dict(pieces).items()), extra_ids=0)
    made.model_max_length = length
    return made


def text_encoder(tokens: T5Tokenizer) -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokens) + 4, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, dropout_rate=0.1,
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def transformer(seed: int = 0, **config: Any) -> FluxTransformer2DModel:
    """2 dual and 2 single blocks of 4 heads of 12."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 64, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 12,
        "num_attention_heads": 4, "joint_attention_dim": WIDTH, "pooled_projection_dim": CLIP_WIDTH,
        "guidance_embeds": True, "axes_dims_rope": (4, 4, 4),
    }  # fmt: skip
    model = FluxTransformer2DModel(**settings | config).eval()
    for parameter in model.parameters():  # the initial attention is nearly uniform: sharpen it, so that edits show
        if parameter.ndim == 2:
            parameter.data *= 2.0
    return model


def pipeline(*, dev: bool = True, length: int = TEXT_LENGTH, **config: Any) -> FluxPipeline:
    """A stock pipeline: 32x32 pixels, 24 tokens of T5, 40 of CLIP.

    dev: guidance is an input and the shift is dynamic; else as schnell.
    """
    words, clip = tokenizer(length), tiny.tokenizer(length=CLIP_LENGTH)
    torch.manual_seed(1)
    # as published: end mark 2, for which transformers takes the largest number
    encoder = CLIPTextModel(tiny.text_config(clip, CLIP_WIDTH, eos_token_id=clip.eos_token_id)).eval()
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if dev else {"shift": 1.0}
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
        vae=vae(),
        text_encoder=encoder,
        tokenizer=clip,
        text_encoder_2=text_encoder(words),
        tokenizer_2=words,
        transformer=transformer(**{"guidance_embeds": dev} | config),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def base(**config: Any) -> Base:
    """The same as a base."""
    return Base.from_pipeline(pipeline(**config), name="tiny-flux")


def redux_folder(folder: Path, width: int = WIDTH, seed: int = 5) -> Path:
    """A random Redux in the layout of `FluxPriorReduxPipeline`: 12 pixels, 3 by 3 patches."""
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(seed)
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4
    )
    SiglipVisionModel(config).eval().save_pretrained(folder / "image_encoder")
    ReduxImageEncoder(16, width).save_pretrained(folder / "image_embedder")
    SiglipImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(folder / "feature_extractor")
    return folder
