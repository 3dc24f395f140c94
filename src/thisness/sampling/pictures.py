"""Latents to pictures."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..bases import Base
from ..errors import ThisnessError


@torch.no_grad()
def decode_images(base: Base, latents: Tensor) -> list[Image.Image]:
    """Decode and round to 8 bits, as the stock pipeline does.

    Args:
        base: whose decoder.
        latents: (samples, *latent_shape).

    Raises:
        ThisnessError: the decoder gives NaN or infinity.
    """
    decoded = base.decode(latents)
    if not bool(torch.isfinite(decoded).all()):
        raise ThisnessError("NaN or infinity in the decoded picture: use bfloat16 or float32 for this base")
    levels = (decoded * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    return [Image.fromarray(each) for each in (levels * 255).round().astype("uint8")]
