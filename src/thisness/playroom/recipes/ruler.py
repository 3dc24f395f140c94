"""What the two encoders of the ruler share: small vision transformers that learn from little.

A vision transformer of this size learns slowly from 50,000 pictures. While it trains, its patch tokens are therefore
drawn to the features of the teacher, a small convolutional network, at the same place of the picture (locality
guidance: Li et al., ECCV 2022, arXiv 2207.10026): half-way up to its third stage, near the end to its fourth; where
asked, the class token to what the teacher's heads read. The projections that compare them are thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...files import write_json
from ...training.task import Task
from ..captions import ATTRIBUTES, UNKNOWN
from ..data import PlayroomData
from ..models import Reader
from .reader import WEIGHT, unambiguous

EARLY_CHANNELS, LATE_CHANNELS = 96, 160
EARLY_LAYER, LATE_LAYER = 3, 5
"""Of the six: the hidden states after them are compared with the teacher's."""
GREY_BACKGROUND = 0.15
"""Fraction of batches in which only the subject is shown, on grey: masked metrics show such pictures."""


class Guidance(nn.Module):
    """1 - cos between projected patch tokens and a convolutional network's features of the same places."""

    def __init__(self, width: int, channels: int) -> None:
        """width: of the tokens; channels: of the features."""
        super().__init__()
        self.project = nn.Linear(width, channels)

    def forward(self, tokens: Tensor, shown: Tensor, where: Tensor) -> Tensor:
        """tokens: (B, 1 + 64, width), the class token first; shown: (B, channels, h, w), h and w 8 or a divisor of it;
        where: (B, 64) weights."""
        side = shown.shape[-1]
        grid = self.project(tokens[:, 1:]).float().transpose(1, 2).unflatten(2, (8, 8))
        weights = where.view(-1, 1, 8, 8)
        if side != 8:
            grid, weights = (F.adaptive_avg_pool2d(x, side) for x in (grid, weights))
        off = 1 - F.cosine_similarity(grid, shown, dim=1)
        return (off * weights[:, 0]).sum() / weights.sum().clamp(min=1)


@dataclass
class Unkept:
    """What guides but is neither trained nor checkpointed."""

    teacher: Reader
    grid_mean: Tensor = field(default_factory=lambda: torch.zeros(1, LATE_CHANNELS, 1, 1))
    read_mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    read_spread: Tensor = field(default_factory=lambda: torch.ones(()))


class Guides(nn.Module):
    """The teacher's three ways of guiding; its own weights stay as they are."""

    def __init__(self, width: int, teacher: Reader, *, token: bool) -> None:
        """token: whether the class token is guided too, toward what the heads read (320 numbers, standardised)."""
        super().__init__()
        self.early, self.late = Guidance(width, EARLY_CHANNELS), Guidance(width, LATE_CHANNELS)
        self.token = nn.Linear(width, teacher.neck.out_features) if token else None
        self._unkept = Unkept(teacher.eval().requires_grad_(False))

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Mean and spread of what the teacher says of these pictures."""
        self._unkept.teacher.to(images.device)
        parts = [self._said(part) for part in images.split(64)]
        self._unkept.grid_mean = torch.cat([grid for grid, _ in parts]).mean((0, 2, 3))[None, :, None, None]
        read = torch.cat([read for _, read in parts])
        self._unkept.read_mean, self._unkept.read_spread = read.mean(0), read.std(0) + 1e-3

    def _said(self, images: Tensor) -> tuple[Tensor, Tensor]:
        teacher = self._unkept.teacher
        grid = teacher.features(images, stage=4).float()
        return grid, F.gelu(teacher.neck(grid.flatten(1)))

    def forward(
        self, hidden: tuple[Tensor, ...], state: Tensor, images: Tensor, shown: Tensor, where: Tensor, grey: bool
    ) -> dict[str, Tensor]:
        """hidden: of every layer, the embeddings first; state: the final class token (B, width); shown: the teacher's
        third stage. On grey only the early features are compared, inside the subject."""
        losses = {"early": self.early(hidden[EARLY_LAYER], shown, where)}
        if not grey:
            with torch.no_grad():
                grid, read = self._said(images)
            losses["late"] = self.late(hidden[LATE_LAYER], grid - self._unkept.grid_mean, where)
            if self.token is not None:
                wanted = (read - self._unkept.read_mean) / self._unkept.read_spread
                losses["token"] = 1 - F.cosine_similarity(self.token(state).float(), wanted, dim=-1).mean()
        return losses


class Heads(nn.Module):
    """One linear head per attribute, for training only."""

    def __init__(self, width: int, names: tuple[str, ...] = tuple(ATTRIBUTES)) -> None:
        super().__init__()
        self.names = names
        self.heads = nn.ModuleDict({n.replace(" ", "_"): nn.Linear(width, len(ATTRIBUTES[n])) for n in names})

    def forward(self, state: Tensor, labels: Tensor) -> Tensor:
        """state: (B, width); labels: (B, len(ATTRIBUTES)) -> the weighted sum of cross-entropies."""
        total = state.new_zeros(())
        for name in self.names:
            wanted = labels[:, list(ATTRIBUTES).index(name)]
            total = total + WEIGHT.get(name, 0.5) * attribute_loss(self.heads[name.replace(" ", "_")](state), wanted)
        return total


def attribute_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy over the pictures that have the attribute; 0 where none has."""
    summed = F.cross_entropy(logits.float(), wanted, ignore_index=UNKNOWN, reduction="sum", label_smoothing=0.02)
    return summed / (wanted != UNKNOWN).sum().clamp(min=1)


class EncoderTask(Task):
    """Pictures, labels, masks and the teacher's features of drawn rows, spoiled as samplers spoil pictures."""

    def __init__(self, data: PlayroomData, held_out: PlayroomData, features: np.ndarray, batch_size: int) -> None:
        self.data, self.held_out, self.features, self.batch_size = data, held_out, features, batch_size
        self.labels = unambiguous(torch.from_numpy(data.labels).long())

    def batch(self, rows: np.ndarray, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
        """Images (B, 3, 128, 128) in [-1, 1], labels, the teacher's features, weights of the patches (B, 64), the
        subject's share of each patch (B, 64), and whether the background is grey."""
        images, labels = self.data.pictures(rows), self.labels[rows]
        shown = torch.from_numpy(np.ascontiguousarray(self.features[rows])).float()
        mask = torch.from_numpy(self.data.masks[rows].max(1)).float()[:, None] / 255
        subject = F.avg_pool2d(mask, self.data.size // 8).flatten(1)
        grey = float(torch.rand((), generator=rng)) < GREY_BACKGROUND
        where = torch.ones_like(subject)
        if grey:
            images, where = images * mask, subject
            labels = labels.clone()
            for name in ("background", "object", "object colour", "style"):
                labels[:, list(ATTRIBUTES).index(name)] = UNKNOWN
        images = _spoiled(images, rng)
        images, labels, shown, where, subject = (x.to(self.device) for x in (images, labels, shown, where, subject))
        return images, labels, shown, where, subject, grey


def _spoiled(x: Tensor, rng: torch.Generator) -> Tensor:
    """Blur or half the resolution for a third of the batches, noise for a third; nothing moves."""
    kind = float(torch.rand((), generator=rng))
    if kind < 0.15:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    elif kind < 0.3:
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    if float(torch.rand((), generator=rng)) < 0.3:
        x = x + 0.06 * torch.randn(x.shape, generator=rng)
    return x


def write_preprocessor(folder: Path, kind: str, size: int = 128) -> None:
    """How transformers prepares pictures for the model: scaled to `size`, cropped, brought to [-1, 1]."""
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": kind,
            "do_resize": True,
            "size": {"shortest_edge": size} if kind.startswith("CLIP") else {"height": size, "width": size},
            **(
                {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
                if kind.startswith("CLIP")
                else {}
            ),
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )
