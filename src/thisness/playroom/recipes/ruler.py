"""What the two encoders of the ruler share: small vision transformers that learn from little.

A vision transformer of this size learns slowly from 50,000 pictures. While it trains, its patch tokens half-way up are
therefore drawn to the features of the teacher, a small convolutional network, at the same place of the picture
(locality guidance: Li et al., ECCV 2022, arXiv 2207.10026); the projection that compares them is thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...files import write_json
from ...training.task import Task
from ..captions import ATTRIBUTES, UNKNOWN
from ..data import PlayroomData
from .reader import WEIGHT, unambiguous

GUIDED_LAYER = 3
"""Of the six: the hidden state after it is compared with the teacher's."""
GREY_BACKGROUND = 0.15
"""Fraction of batches in which only the subject is shown, on grey: masked metrics show such pictures."""


class Guidance(nn.Module):
    """1 - cos between projected patch tokens and the teacher's features of the same places."""

    def __init__(self, width: int, features: np.ndarray) -> None:
        """width: of the tokens; features: rows of `cache.encoded("features", ...)` (N, 96, 8, 8)."""
        super().__init__()
        self.project = nn.Linear(width, features.shape[1])

    def forward(self, tokens: Tensor, shown: Tensor, where: Tensor) -> Tensor:
        """tokens: (B, 1 + 64, width), the class token first; shown: (B, 96, 8, 8); where: (B, 64) weights."""
        said = self.project(tokens[:, 1:]).float()
        off = 1 - F.cosine_similarity(said, shown.flatten(2).transpose(1, 2), dim=-1)
        return (off * where).sum() / where.sum().clamp(min=1)


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


def patches(hidden: tuple[Tensor, ...]) -> Tensor:
    """The hidden state that is guided. hidden: of every layer, the embeddings first."""
    return hidden[GUIDED_LAYER]
