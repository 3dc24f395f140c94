"""Pictures encoded once: the moments of the VAE's posterior, from which every step draws anew.

Keeping mean and deviation instead of one sample gives the same distribution as encoding in every step, without the
encoder, which is 40 % of the work of a step at 512 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..bases import Base
from ..images import fit_square
from ..subject import Subject


@dataclass(frozen=True, eq=False)
class Latents:
    """Encoded pictures, in the denoiser's scale.

    Args:
        mean, std: (rows, C, h, w).
        mask: (rows, 1, h, w) in [0, 1], the part of each latent position that is subject; None without masks.
        picture: (rows,) which picture each row shows; several rows show one where it was augmented.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor | None
    picture: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def to(self, device: torch.device | str) -> Latents:
        mask = None if self.mask is None else self.mask.to(device)
        return Latents(self.mean.to(device), self.std.to(device), mask, self.picture)

    def draw(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Samples of the posterior. rows: (B,) int64 on the CPU; rng: on the CPU. Returns (B, C, h, w)."""
        noise = torch.randn((len(rows), *self.mean.shape[1:]), generator=rng).to(self.mean.device)
        index = rows.to(self.mean.device)
        return self.mean[index] + self.std[index] * noise


@torch.no_grad()
def encode_pictures(base: Base, images: Tensor, batch_size: int = 4) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the posterior in the denoiser's scale. images: (N, 3, H, W) in [-1, 1]."""
    config = base.vae.config
    scale, shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)
    means, stds = [], []
    for part in images.split(batch_size):
        posterior = base.vae.encode(part.to(base.vae.device, base.vae.dtype)).latent_dist
        means.append((posterior.mean.float() - shift) * scale)
        stds.append(posterior.std.float() * scale)
    return torch.cat(means), torch.cat(stds)


def encode_subject(base: Base, subject: Subject, *, flip: bool = False, crops: int = 0, seed: int = 0) -> Latents:
    """Encode a subject's pictures at the base's resolution.

    Args:
        base: whose VAE.
        subject: its pictures are cropped to squares about the subject.
        flip: also mirrored, encoded as such (a VAE is not symmetric).
        crops: further random crops of each picture, of 0.75 to 1 of its side.
        seed: of the crops.
    """
    pictures: list[Tensor] = []
    masks: list[Tensor] = []
    of: list[int] = []
    draws = np.random.default_rng(seed)
    for number, (image, mask) in enumerate(zip(subject.images, subject.masks, strict=True)):
        for view, view_mask in _views(image, mask, base.resolution, crops, draws):
            pixels = torch.from_numpy(np.array(view, np.float32)).permute(2, 0, 1) / 127.5 - 1
            inside = torch.from_numpy(np.array(view_mask if view_mask is not None else np.ones(view.size[::-1])))
            for mirrored in (False, True) if flip else (False,):
                pictures.append(pixels.flip(-1) if mirrored else pixels)
                masks.append(inside.float().flip(-1) if mirrored else inside.float())
                of.append(number)
    mean, std = encode_pictures(base, torch.stack(pictures))
    small = None
    if any(mask is not None for mask in subject.masks):  # a picture without a mask counts as subject all over
        small = F.interpolate(torch.stack(masks).unsqueeze(1), mean.shape[-2:], mode="area").to(mean.device)
    return Latents(mean, std, small, torch.tensor(of))


def _views(
    image: Image.Image, mask: np.ndarray | None, size: int, crops: int, draws: np.random.Generator
) -> Sequence[tuple[Image.Image, np.ndarray | None]]:
    """The picture as a square, and random crops of that square."""
    whole, whole_mask = fit_square(image, size, mask)
    views: list[tuple[Image.Image, np.ndarray | None]] = [(whole, whole_mask)]
    for _ in range(crops):
        side = int(size * draws.uniform(0.75, 1.0))
        x, y = (int(draws.integers(0, size - side + 1)) for _ in range(2))
        part = None if whole_mask is None else whole_mask[y : y + side, x : x + side]
        views.append(fit_square(whole.crop((x, y, x + side, y + side)), size, part))
    return views
