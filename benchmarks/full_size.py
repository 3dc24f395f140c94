"""Models in their published sizes with random weights, for what depends on sizes only: times, calls, memory.

    --base random:sd1.5, random:sd2.1-base    wherever a benchmark takes a base
    --side 256                                less than the published 512 pixels, for what has no GPU

The text encoder has the published width and depth, and the embedded model's words: rows of a table cost nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from thisness.bases import Base, load_base

RANDOM = "random:"
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "sd1.5": {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "hidden_act": "quick_gelu"},
        "scheduler": {"prediction_type": "epsilon"},
    },
    "sd2.1-base": {
        "unet": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
                 "hidden_act": "gelu"},
        "scheduler": {"prediction_type": "epsilon"},
    },
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512, "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
TEXT_LENGTH = 77


def unet(name: str) -> Any:
    """The denoiser of "sd1.5" or "sd2.1-base"; what is not said is diffusers' own default, which is SD's."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{"sample_size": 64, **SIZES[name]["unet"]})


def full_size(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Base:
    """A base with random weights.

    Args:
        name: of SIZES.
        device, dtype: of all parts.
        seed: of the weights.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = copy.deepcopy(load_base("playroom-sd").tokenizer)
    tokenizer.model_max_length = TEXT_LENGTH
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH, "projection_dim": 512}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # never twice the memory
    try:
        with torch.device(device):
            parts = {
                "unet": unet(name), "vae": AutoencoderKL(**VAE),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**words, **SIZES[name]["text"])),
            }  # fmt: skip
    finally:
        torch.set_default_dtype(default)
    for part in parts.values():
        part.to(device, dtype).eval().requires_grad_(False)
    pipe = StableDiffusionPipeline(
        tokenizer=tokenizer, scheduler=DDIMScheduler(**NOISE, **SIZES[name]["scheduler"]), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, **parts,
    )  # fmt: skip
    return Base.from_pipeline(pipe, name=f"{name} of random weights")


def opened(name: str, device: str = "cpu", dtype: str = "float32") -> Base:
    """The base of a name; "random:sd1.5" in the published size with random weights."""
    kind: torch.dtype = getattr(torch, dtype)
    if name.startswith(RANDOM):
        return full_size(name.removeprefix(RANDOM), device, kind)
    return load_base(name, device=device, dtype=kind)


def settled(device: str) -> None:
    """Wait until a device has done all that it was told: a clock would stop too soon."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak(device: str) -> str:
    """The most memory a GPU held so far; nothing on a CPU."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.startswith("cuda") else "-"
