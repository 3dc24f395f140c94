"""What mappers from pictures to words read: the token states of a CLIP model's image side, at several depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import ArtefactError
from ..files import sha256
from ..images import fit_square
from ..subject import Subject
from .image_encoders import encoder_folder, open_encoder

INSIDE = 0.5  # of a mask


class ImageEncoder:
    """The image side of a CLIP model, frozen.

    Args:
        name: "playroom-clip", a folder, or a hub id of a CLIP model; safetensors only.
        signature: SHA-256 of its weights that is expected; "" takes any.

    Attributes:
        size: side of the picture that it takes, in pixels.
        grid: patches along a side.
        signature: SHA-256 of its weights.

    Raises:
        UserError: no such encoder, or it cannot be had.
        ConfigurationError: the model there has no image side of CLIP.
        ArtefactError: other weights than expected.
    """

    def __init__(self, name: str, signature: str = "") -> None:
        folder = encoder_folder(name)
        weights = sorted(folder.glob("*.safetensors"))
        tower = folder / "model.safetensors"
        self.signature = sha256(tower) if tower in weights else sha256("".join(map(sha256, weights)).encode())
        if signature and signature != self.signature:
            raise ArtefactError(
                f"these weights were trained on another image encoder than the {name} that is here: use the encoder "
                "that came with them, or train them anew"
            )
        self.model, prepare = open_encoder(name)
        config = self.model.config
        self.size, self.grid = int(config.image_size), int(config.image_size // config.patch_size)
        self.width = int(config.hidden_size)
        self.mean, self.std = (
            torch.tensor(each, dtype=torch.float32).view(1, 3, 1, 1) for each in (prepare.image_mean, prepare.image_std)
        )

    @torch.no_grad()
    def states(self, pixels: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """Hidden states, without the final norm, as ELITE's code numbers them.

        Args:
            pixels: (n, 3, size, size) in [0, 1].
            levels: 0 is what enters the first layer, -1 what leaves the last one.

        Returns:
            For each level (n, 1 + patches, width) float32; the class token comes first.

        Raises:
            ArtefactError: a level that the encoder does not have.
        """
        depth = int(self.model.config.num_hidden_layers)
        wrong = [level for level in levels if not -depth - 1 <= level <= depth]
        if wrong:
            raise ArtefactError(f"levels {wrong}: the image encoder has {depth} layers")
        found: Any = self.model(
            pixel_values=((pixels - self.mean) / self.std).to(self.model.device), output_hidden_states=True
        )
        return [found.hidden_states[level].float() for level in levels]


def square(subject: Subject, size: int) -> tuple[Tensor, Tensor | None]:
    """The first picture of a subject and its mask, cut to a square about the subject.

    Returns:
        (1, 3, size, size) in [0, 1], and (1, 1, size, size) of 0 and 1, None where it has no mask.
    """
    image, mask = fit_square(subject.images[0], size, subject.masks[0])
    return pixels_of(image), None if mask is None else (torch.from_numpy(mask)[None, None] >= INSIDE).float()


def pixels_of(image: Image) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
