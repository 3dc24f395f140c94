"""`ip-adapter` and `ip-adapter-plus` for the embedded base: draw a picture again, told what is in it and shown it.

As the paper trains: base and image encoder frozen, to_k_ip and to_v_ip begin as the base's to_k and to_v, the picture,
the text, or both are dropped in 5 % of the rows each. The picture that is shown is the one that is drawn, and the pose
is left unsaid in half of the captions: so the tokens carry the pose, too, which is the bias that Harmonizing is about.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...attention import ImageTokens
from ...bases import Base
from ...conditioning import encode
from ...methods.image_encoders import EMBEDDED, open_encoder
from ...methods.ip_adapter_training import (
    TOKENS,
    Batch,
    IPAdapterTraining,
    drops,
    make_adapter,
    save_weights,
    without,
)
from ...methods.ip_adapter_weights import encoded, encoder_signature
from ...training.loop import LoopConfig, Task
from ..captions import ATTRIBUTES, OFTEN, caption
from ..data import PlayroomData
from .common import draw, picture_grid
from .unet import sample_timesteps

IP_ADAPTER = LoopConfig(
    steps=2000,
    lr=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=50,
    schedule="linear-tail",
    tail=0.4,
    final_fraction=0.02,
    clip=1.0,
    ema=0.998,
    precision="auto",
    seed=13,
    preview_every=400,
)
WIDTH = 64  # of the resampler, one head; its depth is the published one, which diffusers' loader takes for granted
SUBJECT_WEIGHT = 1.5
MENTION = {**OFTEN, "pose": 0.5}
SHOWN = 8  # toys of a preview


class IPAdapterTask(Task):
    """Draw a picture that is shown."""

    def __init__(
        self, method: str, base: Base, data: PlayroomData, held_out: PlayroomData, latents: np.ndarray,
        batch_size: int = 16,
    ) -> None:  # fmt: skip
        """latents: of the pictures, (N, *latent_shape) unscaled."""
        from diffusers.models.attention_processor import AttnProcessor

        self.name, self.base, self.data, self.held_out = method, base, data, held_out
        self.latents, self.batch_size = latents, batch_size
        base.denoiser.requires_grad_(False).set_attn_processor(AttnProcessor())  # its backward is faster on a CPU
        self.vision, _ = open_encoder(EMBEDDED)
        torch.manual_seed(IP_ADAPTER.seed)
        self.adapter = make_adapter(method, base, self.vision, TOKENS[method], WIDTH)
        self.training = IPAdapterTraining(base, self.adapter, SUBJECT_WEIGHT, sample_timesteps)
        self.reads, self.sites = self.training.reads, self.training.sites

    def modules(self) -> dict[str, nn.Module]:
        return {"adapter": self.adapter}

    def settings(self) -> dict[str, Any]:
        return {"base": self.base.signature, "encoder": encoder_signature(), "batch_size": self.batch_size}

    def on_start(self, device: torch.device) -> None:
        self.base.to(device)
        self.vision.to(device)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.base.device
        rows = draw(rng, len(self.data), self.batch_size)
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        no_picture, no_text = drops(len(rows), rng)
        sentences = [
            "" if drop else caption(self.data.scene(int(row)), words, MENTION)
            for row, drop in zip(rows, no_text, strict=True)
        ]
        clean = torch.from_numpy(self.latents[rows]).float() * self.base.vae.config.scaling_factor
        with torch.no_grad():
            features, null = encoded(self.vision, self.data.pictures(rows).to(device), self.reads)
        mask = torch.from_numpy(self.data.masks[rows].max(1)).float()[:, None] / 255
        return self.training.loss(Batch(clean, sentences, without(features, null, no_picture), mask), rng)

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out toys: shown; drawn in another pose; drawn in another place."""
        from ...sampling import SamplingOptions, sample

        adapter: Any = self.ema.get("adapter", self.adapter)
        options, rows = SamplingOptions(steps=20, guidance=3.0), range(0, 4 * SHOWN, 4)
        pictures = self.held_out.pictures(rows)
        features, null = encoded(self.vision, pictures.to(self.base.device), self.reads)
        tokens, nothing = adapter["image_proj"](features), adapter["image_proj"](null)[0]
        pairs = {name: adapter["ip_adapter"][k] for name, k in self.sites.items()}
        layers = {name: (pair["to_k_ip"], pair["to_v_ip"]) for name, pair in pairs.items()}
        made = [pictures]
        for ending in ("sleeping", "in the snow"):
            drawn = []
            for number, row in enumerate(rows):
                noun = ATTRIBUTES["class"][int(self.held_out.labels[row, 0])]
                acting = ImageTokens(layers, tokens[number], nothing)
                text = encode(self.base, f"a photo of a {noun} {ending}")
                latents = sample(self.base, text, None, [number], options, interventions=[acting])
                drawn.append(self.base.decode(latents).float().cpu())
            made.append(torch.cat(drawn))
        picture_grid(torch.cat(made), folder / f"preview-{step:06d}.png", len(pictures))
        return {}

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors with the averaged weights in half precision."""
        adapter: Any = self.ema.get("adapter", self.adapter)
        encoder = {"name": EMBEDDED, "signature": encoder_signature()}
        save_weights(folder, self.name, self.base, adapter, encoder)
