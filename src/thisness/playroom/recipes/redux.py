"""Redux of the embedded FLUX: a tower and an MLP whose tokens, given in place of a sentence's, make the transformer
draw the picture again. That is what puts them into the space of T5's states.

Everything else is frozen; pooled text is that of the empty sentence, so that nothing but the tokens tells the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig, Task
from ..data import PlayroomData
from ..flux_models import LOOK, make_redux, make_tower
from .common import draw, picture_grid
from .flux import SUBJECT_WEIGHT, Words, scaled, velocity

if TYPE_CHECKING:
    from .flux_campaign import FluxParts

REDUX = LoopConfig(
    steps=900,
    lr=1e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    warmup=100,
    schedule="linear-tail",
    tail=0.4,
    final_fraction=0.02,
    clip=1.0,
    ema=0.995,
    precision="auto",
    seed=25,
    preview_every=300,
)
FEATURES = 0.5  # weight of the tower's guidance by the teacher


def looked_at(pictures: Tensor) -> Tensor:
    """(B, 3, 128, 128) in [-1, 1] as the tower sees them, (B, 3, 72, 72), by the filter of its image processor."""
    return F.interpolate(pictures, (LOOK, LOOK), mode="bicubic", antialias=True).clamp(-1, 1)


class ReduxTask(Task):
    """Noise a picture; from its own tokens, predict noise minus picture."""

    name = "redux"

    def __init__(
        self, parts: FluxParts, data: PlayroomData, latents: np.ndarray, features: np.ndarray, held_out: PlayroomData,
        batch_size: int = 16,
    ) -> None:  # fmt: skip
        """latents, features: rows of `cache.encoded`, of the split "usual"."""
        self.parts, self.data, self.latents, self.features = parts, data, latents, features
        self.held_out, self.batch_size, self.vae = held_out, batch_size, parts.vae
        self.transformer = parts.transformer("flux").eval().requires_grad_(False)
        self.tower, self.redux = make_tower(), make_redux()
        self.guide = nn.Linear(self.tower.config.hidden_size, features.shape[1])

    def modules(self) -> dict[str, nn.Module]:
        return {"tower": self.tower, "redux": self.redux, "guide": self.guide}

    def on_start(self, device: torch.device) -> None:
        self.transformer.to(device)
        self.pooled = Words(self.parts, device)([""])[1]
        self.guide.to(device)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.device
        rows = draw(rng, len(self.data), self.batch_size)
        clean = scaled(self.latents[rows], self.vae)
        noise = torch.randn(clean.shape, generator=rng)
        t = torch.sigmoid(0.6 + torch.randn(len(rows), generator=rng))  # at low noise the picture tells itself
        clean, noise, t = clean.to(device), noise.to(device), t.to(device)
        mask = F.avg_pool2d(torch.from_numpy(self.data.masks[rows].max(1)).float().to(device)[:, None] / 255, 8)
        at = t.view(-1, 1, 1, 1)
        seen = self.tower(pixel_values=looked_at(self.data.pictures(rows).to(device))).last_hidden_state
        tokens, pooled = self.redux(seen).image_embeds, self.pooled.expand(len(t), -1)
        noisy = (1 - at) * clean + at * noise
        found = velocity(self.transformer, noisy, t, tokens, pooled, torch.ones_like(t))
        weight = 1 + SUBJECT_WEIGHT * mask
        main = ((found.float() - (noise - clean)) ** 2 * weight).mean() / weight.mean()
        shown = torch.from_numpy(np.asarray(self.features[rows])).float().to(device)
        shown = F.interpolate(shown, (LOOK // 8, LOOK // 8), mode="bilinear").flatten(2).transpose(1, 2)
        features = 1 - F.cosine_similarity(self.guide(seen).float(), shown, dim=-1).mean()
        return {"loss": main + FEATURES * features, "main": main.detach(), "features": features.detach()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out pictures and below each what is drawn from its tokens; losses with own and others' tokens."""
        from .vae import decode, encode

        tower: Any = self.ema.get("tower", self.tower)
        redux: Any = self.ema.get("redux", self.redux)
        pictures = self.held_out.pictures(range(32)).to(self.device)
        tokens = redux(tower(pixel_values=looked_at(pictures)).last_hidden_state).image_embeds
        config = self.vae.config
        clean = (encode(self.vae, pictures)[0] - config.shift_factor) * config.scaling_factor
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        t = torch.full((32,), 0.8, device=self.device)
        pooled = self.pooled.expand(32, -1)
        out = {}
        for title, told in (("own", tokens), ("other", tokens.roll(1, 0))):
            found = velocity(self.transformer, 0.2 * clean + 0.8 * noise, t, told, pooled, torch.ones_like(t))
            out[f"loss, {title}"] = float(F.mse_loss(found, noise - clean))
        x = noise[:12]
        for number in range(20, 0, -1):
            time = torch.full((12,), number / 20, device=self.device)
            x = x - velocity(self.transformer, x, time, tokens[:12], pooled[:12], torch.ones_like(time)) / 20
        drawn = decode(self.vae, x / config.scaling_factor + config.shift_factor)
        picture_grid(torch.cat([pictures[:12], drawn]), folder / f"preview-{step:06d}.png", 12)
        return out
