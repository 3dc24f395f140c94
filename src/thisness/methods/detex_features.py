"""What DETEX's mappers read of each picture: the image side of a CLIP model, run once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..bases import Base
from .image_encoders import EMBEDDED, open_encoder

if TYPE_CHECKING:
    from PIL.Image import Image

STANDARD = "openai/clip-vit-large-patch14"  # the text encoder of Stable Diffusion 1.x is this model's other side


def encoder_for(base: Base) -> str:
    """The image encoder that fits a base, by name."""
    return EMBEDDED if base.facts.folder.startswith("playroom/") else STANDARD


@torch.no_grad()
def image_features(images: Sequence[Image], encoder: str) -> Tensor:
    """Projected image embeddings, of length 1.

    Args:
        images: RGB.
        encoder: "playroom-clip", a folder, or a hub id of a CLIP model; safetensors only.

    Returns:
        (images, features) float32 on the CPU.

    Raises:
        UserError: no such encoder, or it cannot be had.
        ConfigurationError: the model there has no image side of CLIP.
    """
    model, prepare = open_encoder(encoder)
    pixels = prepare(images=list(images), return_tensors="pt")["pixel_values"]
    found = torch.cat([model(pixel_values=part).image_embeds.float() for part in pixels.split(8)])
    return torch.nn.functional.normalize(found, dim=-1)
