"""The autoencoder, in two stages: encoder and decoder together, then the encoder is frozen and the decoder alone
goes on.

After the first stage the latents are fixed, so the UNet can train on them while pictures still sharpen. Loss: (|e| +
e^2) weighted by 1 + 2 x subject mask, plus the L1 of the error's gradient, plus a tiny KL.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...training.loop import LoopConfig, Task
from ...training.precision import fastest
from ..data import PlayroomData
from ..models import SIZE, make_vae
from .common import draw, picture_grid

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

JOINT = LoopConfig(
    steps=5200,
    lr=2e-3,
    betas=(0.9, 0.97),
    weight_decay=0.0,
    warmup=60,
    schedule="linear-tail",
    tail=0.4,
    final_fraction=0.25,
    clip=1.0,
    precision="auto",
    seed=1,
    preview_every=1000,
)
DECODER = LoopConfig(
    steps=9000,
    lr=1.5e-3,
    betas=(0.9, 0.98),
    weight_decay=0.0,
    warmup=60,
    schedule="cosine",
    final_fraction=0.01,
    clip=1.0,
    precision="auto",
    seed=2,
    ema=0.995,
    preview_every=1000,
)


def psnr(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, mean over pictures. x, y: (N, 3, H, W) in [-1, 1]; mask: (N, 1, H, W)
    weights in [0, 1]."""
    error = (x.clamp(-1, 1) - y) ** 2 / 4
    if mask is None:
        mean = error.mean((1, 2, 3))
    else:
        kept = mask.sum((1, 2, 3)) > 0
        error, mask = error[kept], mask[kept]
        mean = (error * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    return (-10 * mean.clamp(min=1e-10).log10()).mean()


def reconstruction_loss(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """(|e| + e^2) x weight + 0.5 x |grad e|. y, x: (B, 3, H, W) in [-1, 1]; weight: (B, 1, H, W)."""
    error = y - x
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return ((error.abs() + error * error) * weight).mean() + 0.5 * (across.abs().mean() + down.abs().mean())


def _crops(data: PlayroomData, rows: np.ndarray, at: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    y, x = at
    images = torch.from_numpy(data.images[rows, :, y : y + size, x : x + size]).float() / 127.5 - 1
    masks = torch.from_numpy(data.masks[rows, :, y : y + size, x : x + size]).float().amax(1, keepdim=True) / 255
    return images, 1 + 2 * masks


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior. images: (N, 3, H, W) in [-1, 1] -> two of (N, C, h, w),
    unscaled."""
    means, stds = [], []
    with fastest(images.device):
        for part in images.split(batch_size):
            posterior = vae.encode(part).latent_dist
            means.append(posterior.mean.float())
            stds.append(posterior.std.float())
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch_size: int = 16) -> Tensor:
    """latents (N, C, h, w), unscaled -> images (N, 3, H, W), about [-1, 1]."""
    with fastest(latents.device):
        return torch.cat([vae.decode(part).sample.float() for part in latents.split(batch_size)])


class VaeTask(Task):
    """Stage one: everything, on crops of 64 px (they hold 4 x 4 latents' neighbourhoods and cost a quarter), last
    third on whole pictures."""

    name = "vae"
    crop = 64

    def __init__(
        self, data: PlayroomData, held_out: PlayroomData, steps: int = JOINT.steps, batch_size: int = 16
    ) -> None:
        self.data, self.held_out, self.steps, self.batch_size = data, held_out, steps, batch_size
        self.vae = make_vae()

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.vae.device
        whole = step >= self.steps * 0.75
        size = SIZE if whole else self.crop
        rows = draw(rng, len(self.data), self.batch_size // (4 if whole else 1))
        y, x = (int(v) * 8 for v in torch.randint(0, (SIZE - size) // 8 + 1, (2,), generator=rng))
        images, weight = (t.to(device) for t in _crops(self.data, rows, (y, x), size))
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample
        rec = reconstruction_loss(decoded.float(), images, weight)
        kl = posterior.kl().float().mean() / images[0].numel()
        return {"loss": rec + 0.02 * kl, "reconstruction": rec.detach(), "kl": kl.detach()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        vae: Any = self.ema.get("vae", self.vae)
        images = self.held_out.pictures(range(96)).to(vae.device)
        masks = torch.from_numpy(self.held_out.masks[:96, :1]).float().to(vae.device) / 255
        mean, std = encode(vae, images)
        decoded = decode(vae, mean)
        picture_grid(torch.stack([images[:24], decoded[:24]], 1).flatten(0, 1), folder / f"preview-{step:06d}.png", 12)
        return {
            "psnr": float(psnr(decoded, images)),
            "psnr subject": float(psnr(decoded, images, masks)),
            "latent std": float(mean.std()),
            "posterior std": float(std.mean()),
        }


class DecoderTask(VaeTask):
    """Stage two: the encoder is fixed, its latents are on disk; the decoder alone, on whole pictures and crops by
    turns."""

    name = "vae-decoder"

    def __init__(
        self,
        vae: AutoencoderKL,
        data: PlayroomData,
        held_out: PlayroomData,
        latents: np.ndarray,
        steps: int,
        batch_size: int = 16,
    ) -> None:
        super().__init__(data, held_out, steps, batch_size)
        self.vae, self.latents = vae.requires_grad_(False), latents
        self.vae.decoder.requires_grad_(True)
        self.vae.post_quant_conv.requires_grad_(True)

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.vae.device
        rows = draw(rng, len(self.data), self.batch_size)
        whole = step >= self.steps * 0.8
        side = SIZE // 8 if whole else 8
        if whole:
            rows = rows[: max(1, self.batch_size // 4)]
        y, x = (int(v) for v in torch.randint(0, SIZE // 8 - side + 1, (2,), generator=rng))
        images, weight = (t.to(device) for t in _crops(self.data, rows, (y * 8, x * 8), side * 8))
        latents = torch.from_numpy(self.latents[rows][:, :, y : y + side, x : x + side]).float().to(device)
        decoded = self.vae.decode(latents).sample.float()
        if not whole:  # latents saw the whole picture, the decoder sees a crop: judge it away from the cut
            decoded, images, weight = (t[..., 8:-8, 8:-8] for t in (decoded, images, weight))
        rec = reconstruction_loss(decoded, images, weight)
        return {"loss": rec}
