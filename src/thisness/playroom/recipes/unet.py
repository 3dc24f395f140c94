"""The denoiser: v-prediction with zero terminal SNR on cached latents, guided while it trains by the teacher's
features.

Auxiliary losses, only below t = 750 and only in training (their heads are thrown away): the first up block toward
the teacher's features of the clean picture (1 - cos), the second toward the subject's mask, the pooled middle
toward class, pose, facing and accessory. The main loss weighs the subject more than the background, which moves
capacity, not the optimum.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig, Task
from ...training.precision import fastest
from ..captions import ALWAYS, ATTRIBUTES, caption
from ..data import PlayroomData
from ..models import LATENT_CHANNELS, LATENT_SIZE, make_scheduler, make_unet
from ..render import worn_cells
from .common import draw, picture_grid
from .text import tokenize

UNET = LoopConfig(
    steps=7000,
    lr=8e-4,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=100,
    schedule="linear-tail",
    tail=0.3,
    final_fraction=0.02,
    clip=1.0,
    ema=0.999,
    precision="auto",
    seed=6,
    preview_every=1000,
)
FEATURES, MASK, POOLED = 0.5, 0.2, 0.05  # weights of the auxiliary losses
SUBJECT_WEIGHT = 1.5
WORN_WEIGHT = 4.0
"""What toys wear is small, and was drawn worst by far without it (docs/weights.md)."""
GUIDED_BELOW = 750
DROP_CAPTION = 0.1
POOLED_ATTRIBUTES = ("class", "pose", "facing", "accessory")


def sample_timesteps(count: int, rng: torch.Generator) -> Tensor:
    """1000 sigmoid(0.3 + N(0, 1)), one in ten uniform. Returns int64 (count,) in [0, 999]."""
    t = (1000 * torch.sigmoid(0.3 + torch.randn(count, generator=rng))).long().clamp(0, 999)
    uniform = torch.rand(count, generator=rng) < 0.1
    return torch.where(uniform, torch.randint(0, 1000, (count,), generator=rng), t)


class UNetTask(Task):
    """Noise, predict v, compare; with the auxiliary losses above."""

    name = "unet"

    def __init__(
        self, parts, data: PlayroomData, latents: np.ndarray, features: np.ndarray, batch_size: int = 32
    ) -> None:
        """parts: the finished `vae` (with its scaling factor), `text_encoder`, `tokenizer`; latents, features: rows
        of `cache.encoded`."""
        from diffusers.models.attention_processor import AttnProcessor

        self.data, self.latents, self.features, self.batch_size = data, latents, features, batch_size
        self.vae, self.text_encoder, self.tokenizer = (
            parts.vae,
            parts.text_encoder.eval().requires_grad_(False),
            parts.tokenizer,
        )
        self.unet = make_unet()
        self.unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward costs 41 % of a step on a CPU
        self.scheduler = make_scheduler()
        self.alphas = self.scheduler.alphas_cumprod
        self.labels = torch.from_numpy(data.labels).long()
        low, middle = self.unet.config.block_out_channels[-1], self.unet.config.block_out_channels[-2]
        self.guides = nn.ModuleDict(
            {
                "features": nn.Sequential(nn.Conv2d(low, 192, 1), nn.SiLU(), nn.Conv2d(192, features.shape[1], 1)),
                "mask": nn.Conv2d(middle, 1, 1),
                **{name: nn.Linear(low, len(ATTRIBUTES[name])) for name in POOLED_ATTRIBUTES},
            }
        )

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "guides": self.guides}

    def on_start(self, device) -> None:
        """Taps for the auxiliary losses; copies of the UNet (EMA) must not carry them."""
        self.taps: dict[str, Tensor] = {}
        self.text_encoder.to(device)
        self.alphas = self.alphas.to(device)

        def tap(name: str):
            return lambda module, args, output: self.taps.__setitem__(name, output)

        self.unet.up_blocks[0].register_forward_hook(tap("low"))
        self.unet.up_blocks[1].register_forward_hook(tap("middle"))
        self.unet.mid_block.register_forward_hook(tap("pooled"))

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.unet.device
        rows = draw(rng, len(self.data), self.batch_size)
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        sentences = ["" if words.random() < DROP_CAPTION else caption(self.data.scene(int(i)), words) for i in rows]
        clean = torch.from_numpy(self.latents[rows]).float() * self.vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=rng)
        t = sample_timesteps(len(rows), rng)
        ids = tokenize(self.tokenizer, sentences)
        clean, noise, t, ids = clean.to(device), noise.to(device), t.to(device), ids.to(device)
        mask = F.avg_pool2d(
            torch.from_numpy(self.data.masks[rows].max(1)).float().to(device)[:, None] / 255,
            self.data.size // LATENT_SIZE,
        )
        with torch.no_grad():
            text = self.text_encoder(input_ids=ids).last_hidden_state
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        noisy, target = (
            alpha.sqrt() * clean + (1 - alpha).sqrt() * noise,
            alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,
        )
        prediction = self.unet(noisy, t, text, return_dict=False)[0]
        worn = torch.from_numpy(np.stack([worn_cells(self.data.scene(int(i)), LATENT_SIZE) for i in rows]))
        weight = 1 + SUBJECT_WEIGHT * mask + WORN_WEIGHT * worn[:, None].to(device)
        main = ((prediction.float() - target) ** 2 * weight).mean() / weight.mean()

        guided = (t < GUIDED_BELOW).float()
        guided = guided / guided.sum().clamp(min=1)
        seen = self.guides["features"](self.taps["low"]).float()
        shown = torch.from_numpy(self.features[rows]).float().to(device)
        features = ((1 - F.cosine_similarity(seen, shown, dim=1).mean((1, 2))) * guided).sum()
        outline = F.adaptive_avg_pool2d(self.guides["mask"](self.taps["middle"]).float(), mask.shape[-1])
        outlined = (F.binary_cross_entropy_with_logits(outline, mask, reduction="none").mean((1, 2, 3)) * guided).sum()
        pooled, labels = self.taps["pooled"].float().mean((2, 3)), self.labels[rows].to(device)
        named = pooled.new_zeros(())
        for name in POOLED_ATTRIBUTES:
            wanted = labels[:, list(ATTRIBUTES).index(name)]
            logits = self.guides[name](pooled).float()
            named = named + (F.cross_entropy(logits, wanted, reduction="none") * guided).sum()
        total = main + FEATURES * features + MASK * outlined + POOLED * named
        return {
            "loss": total,
            "main": main.detach(),
            "features": features.detach(),
            "mask": outlined.detach(),
            "named": named.detach(),
        }

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """48 held-out captions drawn at guidance 3 in 25 steps."""
        unet: Any = self.ema.get("unet", self.unet)
        latents = sample_latents(unet, self.text_encoder, self.tokenizer, preview_captions(48), steps=25, seed=1)
        from .vae import decode

        picture_grid(decode(self.vae, latents / self.vae.config.scaling_factor), folder / f"preview-{step:06d}.png", 12)
        return {}


def preview_captions(count: int) -> list[str]:
    from ..world import random_scene, rng_of

    scenes = [random_scene(4 * i, "held-out", companion=0, styled=0) for i in range(count)]
    return [caption(scene, rng_of("preview", i), ALWAYS) for i, scene in enumerate(scenes)]


@torch.no_grad()
def sample_latents(
    unet, text_encoder, tokenizer, sentences: list[str], *, steps: int = 25, guidance: float = 3.0, seed: int = 0
) -> Tensor:
    """DDIM with guidance, in batches of 32, for measuring while training (people's pictures come from
    `thisness.generate`). Scaled latents."""
    scheduler, device = make_scheduler(), unet.device
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    out = []
    with fastest(device):
        for start in range(0, len(sentences), 32):
            part = sentences[start : start + 32]
            ids = tokenize(tokenizer, [""] * len(part) + part).to(device)
            text = text_encoder(input_ids=ids).last_hidden_state
            latents = torch.randn(len(part), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=generator).to(device)
            for t in scheduler.timesteps:
                free, told = unet(torch.cat([latents] * 2), t, text, return_dict=False)[0].float().chunk(2)
                latents = scheduler.step(free + guidance * (told - free), t, latents).prev_sample
            out.append(latents)
    return torch.cat(out)
