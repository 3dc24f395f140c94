"""EZIGen's adapter for the embedded base: two scenes of one toy, the one read, the other drawn.

Every training toy is in four scenes (`world.random_scene`), so pairs of another pose and place are there already:
subjects are cut out by their masks, put before white, encoded once and kept (`data/subjects.f16`). The reference goes
through the frozen UNet at the least noisy step; the loss is the UNet's own, on the other scene, the subject weighing
more. Captions seldom name colours and patterns: those are to be seen. In one row of five the subject is absent: its
keys are not there (not zero), which is what a guidance of the subject's own needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...bases import Base
from ...conditioning import Conditioning, encode
from ...methods.ezigen import prepared, subject_features
from ...methods.ezigen_adapter import EZIGenAdapter, SubjectAttention
from ...methods.ezigen_loops import to_tensor
from ...methods.ezigen_training import (
    PROMPT,
    Batch,
    EZIGenTraining,
    drops,
    parameter_groups,
    save_weights,
)
from ...training.loop import LoopConfig, Task
from ..captions import ATTRIBUTES, OFTEN, caption
from ..data import PlayroomData
from ..world import BACKGROUNDS
from .common import picture_grid

EZIGEN = LoopConfig(
    steps=1500,
    lr=5e-4,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=50,
    schedule="linear-tail",
    tail=0.4,
    final_fraction=0.02,
    clip=1.0,
    ema=0.998,
    precision="auto",
    seed=9,
    preview_every=300,
)
SCENES = 4  # of each toy
PICTURES = 16384  # of the training set, whose toys are read: 4,096 toys
MENTION = {**OFTEN, "colour": 0.15, "pattern": 0.1}
SEEN = 0.02  # least share of the picture that a subject to be read must have


def cut_out(data: PlayroomData, row: int) -> Image.Image | None:
    """The subject of a training picture before white; None where there is too little of it, or it is no photo."""
    mask = data.masks[row, 0].astype(np.float32) / 255
    styled = data.labels[row, list(ATTRIBUTES).index("style")] != ATTRIBUTES["style"].index("photo")
    if styled or float(mask.mean()) < SEEN or not (mask >= 0.5).any():
        return None
    return prepared(Image.fromarray(data.images[row].transpose(1, 2, 0)), mask, data.size)[0]


def encoded_subjects(vae: Any, data: PlayroomData, rows: Iterable[int]) -> Tensor:
    """Latents of the cut-outs, unscaled, (rows, C, h, w); zeros where there is none."""
    from .vae import encode as encode_pictures

    images = [cut_out(data, row) for row in rows]
    shown = torch.stack([to_tensor(i) if i is not None else torch.zeros(3, data.size, data.size) for i in images])
    there = torch.tensor([image is not None for image in images], device=vae.device)
    return encode_pictures(vae, shown.to(vae.device))[0] * there.view(-1, 1, 1, 1)


class EZIGenTask(Task):
    """Draw one scene of a toy with another to look at."""

    name = "ezigen"

    def __init__(
        self, base: Base, data: PlayroomData, held_out: PlayroomData, latents: np.ndarray, subjects: np.ndarray,
        batch_size: int = 16,
    ) -> None:  # fmt: skip
        """latents: of the pictures, (N, *latent_shape) unscaled; subjects: of the cut-outs, zeros for none."""
        from diffusers.models.attention_processor import AttnProcessor

        self.base, self.data, self.held_out, self.batch_size = base, data, held_out, batch_size
        self.latents, self.subjects = latents, subjects
        base.denoiser.set_attn_processor(AttnProcessor())  # the fused kernel's backward is slow on a CPU
        self.adapter = EZIGenAdapter.of(base.denoiser)
        self.usable = np.flatnonzero(np.asarray(subjects).reshape(len(subjects), -1).any(1))
        self.training = EZIGenTraining(base, self.adapter)
        self.nouns = encode_nouns(base)

    def modules(self) -> dict[str, nn.Module]:
        return {"adapter": self.adapter}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.adapter)

    def settings(self) -> dict[str, Any]:
        return {"base": self.base.signature, "pictures": len(self.subjects), "batch_size": self.batch_size}

    def on_start(self, device: torch.device) -> None:
        self.base.to(device)
        self.nouns = self.nouns.to(device)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        read = self.usable[torch.randint(0, len(self.usable), (self.batch_size,), generator=rng).numpy()]
        other = torch.randint(1, SCENES, (self.batch_size,), generator=rng).numpy()
        drawn = read - read % SCENES + (read % SCENES + other) % SCENES
        no_subject, no_text = drops(self.batch_size, rng)
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        sentences = [
            "" if drop else caption(self.data.scene(int(i)), words, MENTION)
            for i, drop in zip(drawn, no_text, strict=True)
        ]
        scale = self.base.vae.config.scaling_factor
        told = read[~no_subject]
        batch = Batch(
            torch.from_numpy(self.latents[drawn]).float() * scale,
            sentences,
            [0 if drop else 1 for drop in no_subject],
            torch.from_numpy(self.subjects[told]).float() * scale,
            self.nouns.rows([int(self.data.labels[i, 0]) for i in told]) if len(told) else None,
            torch.from_numpy(self.data.masks[drawn, 0]).float()[:, None] / 255,
        )
        return self.training.loss(batch, rng)

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """The subject gap on held-out toys; a grid: read, drawn in the last 40 % of the steps, drawn with it always."""
        adapter: Any = self.ema.get("adapter", self.adapter)
        numbers = self.gap(adapter)
        picture_grid(self.drawn(adapter, 8), folder / f"preview-{step:06d}.png", 6)
        return numbers

    def gap(self, adapter: EZIGenAdapter, count: int = 48) -> dict[str, float]:
        """As `EZIGenTraining.gap`, on held-out pairs."""
        pairs = self._held_out_pairs(count)
        drawn = [row for _, row, _ in pairs]
        with torch.no_grad():
            batch = Batch(
                self.base.encode_images(self.held_out.pictures(drawn)).cpu(),
                [caption(self.held_out.scene(row), Random(row), MENTION) for row in drawn],
                [1] * len(pairs),
                self.base.encode_images(torch.stack([to_tensor(image) for _, _, image in pairs])).cpu(),
                self.nouns.rows([int(self.held_out.labels[row, 0]) for row, _, _ in pairs]),
                torch.from_numpy(self.held_out.masks[drawn, 0]).float()[:, None] / 255,
            )
        return self.training.gap(batch, torch.Generator().manual_seed(0), adapter)

    def _held_out_pairs(self, count: int) -> list[tuple[int, int, Image.Image]]:
        """(row that is read, row that is drawn, the cut-out), one of each toy."""
        pairs = []
        for first in range(0, len(self.held_out), SCENES):
            image = cut_out(self.held_out, first)
            if image is not None:
                pairs.append((first, first + 1, image))
            if len(pairs) == count:
                break
        return pairs

    def drawn(self, adapter: EZIGenAdapter, count: int) -> Tensor:
        """(3 count, 3, H, W): for each held-out toy what is read, and two drawings with another sentence."""
        from ...sampling import SamplingOptions, sample

        options = SamplingOptions(steps=20, guidance=3.0)
        pairs = self._held_out_pairs(count)
        nouns = [ATTRIBUTES["class"][int(self.held_out.labels[row, 0])] for row, _, _ in pairs]
        text = encode(self.base, [f"a photo of a {n} in the {BACKGROUNDS[i % 3]}" for i, n in enumerate(nouns)])
        words = encode(self.base, [PROMPT.replace("{noun}", noun) for noun in nouns])
        features = subject_features(self.base, [image for _, _, image in pairs], words, names=adapter.names)
        keys = adapter.project(features)
        read = torch.stack([to_tensor(image) for _, _, image in pairs])
        made = [read]
        for share in (0.4, 1.0):
            acting = SubjectAttention(adapter, keys, share)
            latents = sample(self.base, text, None, list(range(len(pairs))), options, interventions=[acting])
            made.append(self.base.decode(latents).float().cpu())
        return torch.stack(made, 1).flatten(0, 1)

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors, the averaged weights in half precision."""
        adapter: Any = self.ema.get("adapter", self.adapter)
        save_weights(folder, self.base, adapter, PROMPT)


def encode_nouns(base: Base) -> Conditioning:
    """What is read with each class, a row each."""
    with torch.no_grad():
        return encode(base, [PROMPT.replace("{noun}", noun) for noun in ATTRIBUTES["class"]])
