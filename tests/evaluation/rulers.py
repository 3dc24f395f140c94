"""The tiniest encoders of the real architectures as folders, and pictures with masks: for tests of what measures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tiny
from thisness.evaluation.items import Item, Picture

SIZE, PATCH = 32, 8
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.3, 0.35]
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}


def _preprocessor(folder: Path, processor: str, **more: object) -> None:
    said = {
        "image_processor_type": processor,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        **more,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def _louder(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights answer all pictures alike: sharpen them, so that differences show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)
    return model.eval()


def save_clip(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPModel

    tokens = tiny.tokenizer()
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(tokens),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokens.model_max_length,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    model = _louder(CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=12)))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    _preprocessor(folder, "CLIPImageProcessor", size={"shortest_edge": SIZE}, do_center_crop=True, crop_size=size)
    return folder


def save_vit(folder: Path, seed: int = 1) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    _louder(ViTModel(ViTConfig(**_VISION), add_pooling_layer=False)).save_pretrained(folder)
    _preprocessor(folder, "ViTImageProcessor", size={"height": SIZE, "width": SIZE})
    return folder


def save_dino2(folder: Path, registers: bool = False) -> Path:
    import transformers

    torch.manual_seed(2)
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(**{k: v for k, v in _VISION.items() if k != "intermediate_size"})
    _louder(getattr(transformers, f"{kind}Model")(config)).save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    _preprocessor(folder, "BitImageProcessor", size={"shortest_edge": 36}, do_center_crop=True, crop_size=size)
    return folder


def noise(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Blocks of random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def left_half(size: tuple[int, int] = (40, 40)) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), np.float32)
    mask[:, : size[0] // 2] = 1
    return mask


def item(seed: int = 0, **given: object) -> Item:
    """A made picture of noise and two references of noise; anything else may be given."""
    defaults: dict[str, object] = {
        "id": f"row-{seed}",
        "recipe": "r",
        "subject": "rex",
        "case": "c",
        "seed": seed,
        "picture": Picture(noise(seed)),
        "references": (Picture(noise(100), left_half()), Picture(noise(101), left_half())),
        "noun": "dog",
        "sentence": "a photo of a dog",
        "concept": "a dog",
        "context": "on the beach",
    }
    return Item(**{**defaults, **given})  # type: ignore[arg-type]
