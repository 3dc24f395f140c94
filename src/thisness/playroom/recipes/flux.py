"""The transformer of the embedded FLUX: flow matching on cached latents, then guidance as an input, as in dev.

It is trained on pictures in which most toys of a class look alike (`world.USUAL_LOOKS`), so that a noun alone brings
a look with it. Beside the flow's loss, and thrown away afterwards: a block in the middle is led toward the teacher's
features of the clean picture (Yu et al., REPA, 2024), and a mask is read off it.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bases.flux import pack, position_ids, shift_of, unpack
from ...training.loop import LoopConfig, Task
from ...training.optimizers import matrices_apart
from ...training.precision import fastest
from ..captions import OFTEN, caption, renamed
from ..data import PlayroomData
from ..flux_models import CHANNELS, GUIDED, POOLED_LENGTH, SENTENCE, make_flow_scheduler, make_transformer
from ..models import LATENT_SIZE
from ..render import worn_cells
from .common import draw, picture_grid
from .flux_text import called, ids_of
from .unet import WORN_WEIGHT, preview_captions

if TYPE_CHECKING:
    from .flux_campaign import FluxParts

FLUX = LoopConfig(
    steps=6000,
    lr=2e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    warmup=200,
    schedule="linear-tail",
    tail=0.4,
    final_fraction=0.01,
    clip=1.0,
    ema=0.999,
    precision="auto",
    seed=23,
    preview_every=800,
)
GUIDANCE = LoopConfig(
    steps=500,
    lr=4e-4,
    betas=(0.9, 0.98),
    weight_decay=0.0,
    warmup=50,
    schedule="linear-tail",
    tail=0.5,
    final_fraction=0.02,
    clip=1.0,
    ema=0.995,
    precision="auto",
    seed=24,
    preview_every=500,
)
MENTIONED = OFTEN | {"colour": 0.5, "pattern": 0.4}
"""Looks go unsaid more often than elsewhere: then the noun decides."""
FEATURES, MASK = 0.5, 0.2
SUBJECT_WEIGHT = 1.5
GUIDED_BELOW = 0.75
DROP_CAPTION = 0.1
NOISIER = 1.0
"""Mean of the logit of t: which toy stands how is decided above 0.7, where the model was worst with 0.3."""
STRONGEST = 5.0  # guidance that the second stage knows
SIDE = LATENT_SIZE // 2  # tokens on a side


def started(transformer: Any) -> Any:
    """Blocks that change nothing at first (Peebles & Xie, adaLN-Zero), and a prediction of zero."""
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name in ("norm1", "norm1_context", "norm"):
            if hasattr(block, name):
                nn.init.zeros_(getattr(block, name).linear.weight)
                nn.init.zeros_(getattr(block, name).linear.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def scaled(latents: np.ndarray, vae: Any) -> Tensor:
    """Rows of `encoded("flux-latents")` in the transformer's scale, (B, 16, 16, 16)."""
    return (torch.from_numpy(np.asarray(latents)).float() - vae.config.shift_factor) * vae.config.scaling_factor


class Words:
    """Sentences as the transformer reads them. parts: with t5, clip, t5_tokenizer and clip_tokenizer."""

    def __init__(self, parts: Any, device: Any = "cpu") -> None:
        self.t5, self.clip = parts.t5.to(device), parts.clip.to(device)
        self.t5_tokenizer, self.clip_tokenizer = parts.t5_tokenizer, parts.clip_tokenizer
        self.device = device
        self.t5.requires_grad_(False), self.clip.requires_grad_(False)

    @torch.no_grad()
    def __call__(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        """T5's states (B, 40, width), CLIP's at its end mark (B, width)."""
        t5 = self.t5(input_ids=ids_of(self.t5_tokenizer, sentences, SENTENCE).to(self.device))[0]
        clip = self.clip(input_ids=ids_of(self.clip_tokenizer, sentences, POOLED_LENGTH).to(self.device))
        return t5, clip.pooler_output


def velocity(transformer: Any, noisy: Tensor, t: Tensor, words: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
    """noisy: (B, 16, 16, 16); t: (B,) in [0, 1]; guidance: (B,). The same shape as noisy."""
    height, width = noisy.shape[-2:]
    answer = transformer(
        hidden_states=pack(noisy),
        timestep=t,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=words,
        txt_ids=torch.zeros(words.shape[1], 3, device=noisy.device),
        img_ids=position_ids(height // 2, width // 2, noisy.device),
        return_dict=False,
    )[0]
    return unpack(answer, height, width)


class FluxTask(Task):
    """Noise, predict noise minus picture, compare."""

    name = "flux"

    def __init__(
        self, parts: FluxParts, data: PlayroomData, latents: np.ndarray, features: np.ndarray, batch_size: int = 32
    ) -> None:
        """latents, features: rows of `cache.encoded`, of the split "usual"."""
        self.parts, self.data, self.latents, self.features = parts, data, latents, features
        self.batch_size, self.vae = batch_size, parts.vae
        self.transformer = started(make_transformer())
        width = self.transformer.inner_dim
        self.guides = nn.ModuleDict(
            {
                "features": nn.Sequential(nn.Linear(width, 192), nn.SiLU(), nn.Linear(192, features.shape[1])),
                "mask": nn.Linear(width, 1),
            }
        )

    def modules(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "guides": self.guides}

    def parameter_groups(self) -> list[dict[str, Any]]:
        blocks = nn.ModuleList([self.transformer.transformer_blocks, self.transformer.single_transformer_blocks])
        return matrices_apart(blocks, list(self.modules().values()))

    def on_start(self, device: torch.device) -> None:
        self.words = Words(self.parts, device)
        self.seen: Tensor | None = None

        def tap(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
            self.seen = output[1]

        self.transformer.single_transformer_blocks[0].register_forward_hook(tap)

    def sentences(self, rows: np.ndarray, rng: torch.Generator) -> list[str]:
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        found = []
        for row in rows:
            scene = self.data.scene(int(row))
            noun = scene.subject.identity.noun
            said = renamed(caption(scene, words, MENTIONED), noun, called(noun, words))
            found.append("" if words.random() < DROP_CAPTION else said)
        return found

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.device
        rows = draw(rng, len(self.data), self.batch_size)
        sentences = self.sentences(rows, rng)
        clean = scaled(self.latents[rows], self.vae)
        noise = torch.randn(clean.shape, generator=rng)
        t = torch.sigmoid(NOISIER + torch.randn(len(rows), generator=rng))
        clean, noise, t = clean.to(device), noise.to(device), t.to(device)
        mask = F.avg_pool2d(torch.from_numpy(self.data.masks[rows].max(1)).float().to(device)[:, None] / 255, 8)
        at = t.view(-1, 1, 1, 1)
        noisy = (1 - at) * clean + at * noise
        found = velocity(self.transformer, noisy, t, *self.words(sentences), torch.ones_like(t))
        worn = torch.from_numpy(np.stack([worn_cells(self.data.scene(int(i)), LATENT_SIZE) for i in rows]))
        weight = 1 + SUBJECT_WEIGHT * mask + WORN_WEIGHT * worn[:, None].to(device)
        main = ((found.float() - (noise - clean)) ** 2 * weight).mean() / weight.mean()

        guided = (t < GUIDED_BELOW).float()
        guided = guided / guided.sum().clamp(min=1)
        assert self.seen is not None
        middle = self.seen[:, -SIDE * SIDE :]
        shown = torch.from_numpy(np.asarray(self.features[rows])).float().to(device).flatten(2).transpose(1, 2)
        features = self.guides["features"](middle).float()
        features = ((1 - F.cosine_similarity(features, shown, dim=-1).mean(1)) * guided).sum()
        outline = self.guides["mask"](middle).float()[..., 0]
        wanted = F.avg_pool2d(mask, 2).flatten(1)
        outlined = (F.binary_cross_entropy_with_logits(outline, wanted, reduction="none").mean(1) * guided).sum()
        return {
            "loss": main + FEATURES * features + MASK * outlined,
            "main": main.detach(),
            "features": features.detach(),
            "mask": outlined.detach(),
        }

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """24 held-out captions in 20 steps under guidance."""
        model: Any = self.ema.get("transformer", self.transformer)
        latents = sample_flux(model, self.words, preview_captions(24), steps=20, guidance=GUIDED, seed=1)
        write_preview(self.vae, latents, folder / f"preview-{step:06d}.png")
        return {}


class GuidanceTask(FluxTask):
    """Guidance becomes an input: the model learns what v + w (v_said - v_unsaid) is for a drawn w.

    Source: Meng et al., On Distillation of Guided Diffusion Models (2023), first stage; FLUX.1 dev is of this kind.
    """

    name = "flux-guidance"

    def __init__(self, parts: FluxParts, data: PlayroomData, latents: np.ndarray, batch_size: int = 24) -> None:
        self.parts, self.data, self.latents, self.batch_size, self.vae = parts, data, latents, batch_size, parts.vae
        self.transformer, self.teacher = parts.transformer("flux"), parts.transformer("flux")
        self.teacher.requires_grad_(False).eval()

    def modules(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return Task.parameter_groups(self)

    def on_start(self, device: torch.device) -> None:
        self.words, self.teacher = Words(self.parts, device), self.teacher.to(device)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.device
        rows = draw(rng, len(self.data), self.batch_size)
        sentences = self.sentences(rows, rng)
        clean = scaled(self.latents[rows], self.vae)
        noise = torch.randn(clean.shape, generator=rng)
        t = torch.sigmoid(NOISIER + torch.randn(len(rows), generator=rng))
        w = 1 + (STRONGEST - 1) * torch.rand(len(rows), generator=rng)
        clean, noise, t, w = clean.to(device), noise.to(device), t.to(device), w.to(device)
        at = t.view(-1, 1, 1, 1)
        noisy = (1 - at) * clean + at * noise
        words, pooled = self.words(["" for _ in sentences] + sentences)
        with torch.no_grad():
            unsaid, said = velocity(
                self.teacher,
                noisy.repeat(2, 1, 1, 1),
                t.repeat(2),
                words,
                pooled,
                torch.ones(2 * len(t), device=device),
            ).chunk(2)
            wanted = unsaid + w.view(-1, 1, 1, 1) * (said - unsaid)
        found = velocity(self.transformer, noisy, t, words[len(rows) :], pooled[len(rows) :], w)
        return {"loss": F.mse_loss(found.float(), wanted)}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        model: Any = self.ema.get("transformer", self.transformer)
        latents = sample_flux(model, self.words, preview_captions(24), steps=20, guidance=GUIDED, seed=1, embedded=True)
        write_preview(self.vae, latents, folder / f"preview-{step:06d}.png")
        return {}


def write_preview(vae: Any, latents: Tensor, path: Path) -> None:
    from .vae import decode

    picture_grid(decode(vae, latents / vae.config.scaling_factor + vae.config.shift_factor), path, 12)


@torch.no_grad()
def sample_flux(
    transformer: Any, words: Any, sentences: list[Any], *, steps: int = 20, guidance: float = GUIDED, seed: int = 0,
    embedded: bool = False,
) -> Tensor:  # fmt: skip
    """Euler's steps, for measuring while training (people's pictures come from `thisness.generate`).

    Args:
        words: `Words`, or what gives states and pooled states of other things than sentences.
        embedded: guidance is an input; else both branches run.

    Returns:
        Latents (N, 16, 16, 16) in the transformer's scale.
    """
    scheduler = make_flow_scheduler()
    mu = shift_of(SIDE * SIDE, scheduler.config)
    generator, out = torch.Generator().manual_seed(seed), []
    with fastest(words.device):
        for start in range(0, len(sentences), 32):
            part = sentences[start : start + 32]
            scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
            x = torch.randn(len(part), CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=generator).to(words.device)
            told: tuple[Tensor, Tensor] = words(part)
            both: tuple[Tensor, Tensor] = told if embedded else words([""] * len(part) + part)
            for time in scheduler.timesteps:
                t = (time / 1000).expand(len(both[0])).to(words.device)
                if embedded:
                    v = velocity(transformer, x, t, *told, torch.full_like(t, guidance)).float()
                else:
                    free, said = velocity(transformer, torch.cat([x, x]), t, *both, torch.ones_like(t)).float().chunk(2)
                    v = free + guidance * (said - free)
                x = scheduler.step(v, time, x, return_dict=False)[0]
            out.append(x)
    return torch.cat(out)
