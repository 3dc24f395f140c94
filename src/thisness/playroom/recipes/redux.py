"""Redux of the embedded FLUX: a tower and an MLP whose tokens, given in place of a sentence's, make the transformer
draw the picture again.

First without the transformer: each token is drawn to T5's state after the caption that says everything, and linear
heads read the attributes off both alike. That puts the tokens into the space of T5's states: on loss through the
transformer alone, which sees a picture through its noise, the tower learns colours and places, but no classes. Then
through the transformer. Everything else is frozen; pooled text is that of the empty sentence, so that nothing but the
tokens tells the picture.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig, Task
from ...training.optimizers import matrices_apart
from ..captions import ALWAYS, ATTRIBUTES, caption
from ..data import PlayroomData
from ..flux_models import LOOK, SENTENCE, STATES, make_redux, make_tower
from .common import draw, picture_grid
from .flux import SUBJECT_WEIGHT, Words, scaled, velocity
from .reader import unambiguous
from .ruler import Heads

if TYPE_CHECKING:
    from .flux_campaign import FluxParts

REDUX = LoopConfig(
    steps=2800,
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
    preview_every=400,
)
SPOKEN = 2000
"""Steps without the transformer, on larger batches of pictures whose toys look anyhow."""
SPOKEN_WEIGHTS = {"features": 0.5, "read": 0.3, "words": 0.3, "state": 1.0}
DRAWN_WEIGHTS = {"features": 0.5, "read": 0.02, "main": 1.0}
"""Of the guidance by the teacher, of the heads on tokens and on T5's states, of the distance to these; then beside the
loss through the transformer, whose gradient is small."""


def looked_at(pictures: Tensor) -> Tensor:
    """(B, 3, 128, 128) in [-1, 1] as the tower sees them, (B, 3, 72, 72), by the filter of its image processor."""
    return F.interpolate(pictures, (LOOK, LOOK), mode="bicubic", antialias=True).clamp(-1, 1)


class ReduxTask(Task):
    """Noise a picture; from its own tokens, predict noise minus picture."""

    name = "redux"

    def __init__(
        self, parts: FluxParts, data: PlayroomData, latents: np.ndarray, features: np.ndarray, held_out: PlayroomData,
        spoken: PlayroomData, spoken_features: np.ndarray, batch_size: int = 16, spoken_steps: int = SPOKEN,
    ) -> None:  # fmt: skip
        """latents, features: rows of `cache.encoded` for data, of the split "usual"; spoken: what is shown first."""
        self.parts, self.data, self.latents, self.features = parts, data, latents, features
        self.spoken, self.spoken_features, self.spoken_steps = spoken, spoken_features, spoken_steps
        self.held_out, self.batch_size, self.vae = held_out, batch_size, parts.vae
        self.transformer = parts.transformer("flux").eval().requires_grad_(False)
        self.tower, self.redux = make_tower(), make_redux()
        self.guide = nn.Linear(self.tower.config.hidden_size, features.shape[1])
        self.heads = Heads(STATES)

    def modules(self) -> dict[str, nn.Module]:
        return {"tower": self.tower, "redux": self.redux, "guide": self.guide, "heads": self.heads}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return matrices_apart(self.tower.encoder, list(self.modules().values()))

    def on_start(self, device: torch.device) -> None:
        self.transformer.to(device)
        self.words = Words(self.parts, device)
        self.pooled = self.words([""])[1]
        for module in (self.guide, self.heads):
            module.to(device)
        said = self.said(self.spoken, np.arange(min(256, len(self.spoken))), Random(0))
        self.spread = said.std(0) + 1e-3

    def said(self, data: PlayroomData, rows: np.ndarray, rng: Random) -> Tensor:
        """T5's state near the end of the padding, (N, 128), after a caption that says everything."""
        captions = [caption(data.scene(int(row)), rng, ALWAYS) for row in rows]
        return self.words(captions)[0][:, SENTENCE - 2].float()

    def looked(
        self, data: PlayroomData, features: np.ndarray, rows: np.ndarray
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The pictures' tokens, (B, 81, 128), their labels, and what the teacher and the heads say."""
        seen = self.tower(pixel_values=looked_at(data.pictures(rows).to(self.device))).last_hidden_state
        tokens = self.redux(seen).image_embeds
        labels = unambiguous(torch.from_numpy(data.labels[rows]).long()).to(self.device)
        shown = torch.from_numpy(np.asarray(features[rows])).float().to(self.device)
        shown = F.interpolate(shown, (LOOK // 8, LOOK // 8), mode="bilinear").flatten(2).transpose(1, 2)
        return (
            tokens,
            labels,
            {
                "features": 1 - F.cosine_similarity(self.guide(seen).float(), shown, dim=-1).mean(),
                "read": self.heads(tokens.float().mean(1), labels),
            },
        )

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        early = step < self.spoken_steps
        parts = self._spoken(rng) if early else self._drawn(rng)
        weights = SPOKEN_WEIGHTS if early else DRAWN_WEIGHTS
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}

    def _spoken(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Every token toward what a caption says, by its numbers and as the heads read both."""
        rows = draw(rng, len(self.spoken), 4 * self.batch_size)
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        tokens, labels, parts = self.looked(self.spoken, self.spoken_features, rows)
        wanted = self.said(self.spoken, rows, words)
        off = (tokens.float() - wanted[:, None]) / self.spread
        return parts | {"state": (off**2).mean(), "words": self.heads(wanted, labels)}

    def _drawn(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Through the transformer."""
        device = self.device
        rows = draw(rng, len(self.data), self.batch_size)
        clean = scaled(self.latents[rows], self.vae)
        noise = torch.randn(clean.shape, generator=rng)
        t = torch.sigmoid(0.6 + torch.randn(len(rows), generator=rng))  # at low noise the picture tells itself
        clean, noise, t = clean.to(device), noise.to(device), t.to(device)
        mask = F.avg_pool2d(torch.from_numpy(self.data.masks[rows].max(1)).float().to(device)[:, None] / 255, 8)
        at = t.view(-1, 1, 1, 1)
        tokens, _, parts = self.looked(self.data, self.features, rows)
        noisy = (1 - at) * clean + at * noise
        pooled = self.pooled.expand(len(t), -1)
        found = velocity(self.transformer, noisy, t, tokens, pooled, torch.ones_like(t))
        weight = 1 + SUBJECT_WEIGHT * mask
        return parts | {"main": ((found.float() - (noise - clean)) ** 2 * weight).mean() / weight.mean()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out pictures and below each what is drawn from its tokens; losses with own and others' tokens; per cent
        right of the heads on tokens."""
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
        heads: Any = self.ema.get("heads", self.heads)
        seen = self.held_out.pictures(range(256)).to(self.device)
        mean = torch.cat(
            [redux(tower(pixel_values=looked_at(p)).last_hidden_state).image_embeds.mean(1) for p in seen.split(64)]
        )
        truth = unambiguous(torch.from_numpy(self.held_out.labels[:256]).long())
        for name in ("class", "pose", "colour"):
            wanted = truth[:, list(ATTRIBUTES).index(name)]
            right = heads.heads[name](mean).argmax(1).cpu() == wanted
            out[f"{name}, read"] = 100 * float(right[wanted >= 0].float().mean())
        x = noise[:12]
        for number in range(20, 0, -1):
            time = torch.full((12,), number / 20, device=self.device)
            x = x - velocity(self.transformer, x, time, tokens[:12], pooled[:12], torch.ones_like(time)) / 20
        drawn = decode(self.vae, x / config.scaling_factor + config.shift_factor)
        picture_grid(torch.cat([pictures[:12], drawn]), folder / f"preview-{step:06d}.png", 12)
        return out
