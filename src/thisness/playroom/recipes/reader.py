"""The attribute readers: the teacher, whose features guide the UNet's training, and the judge, which measures and
never teaches."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig, Task
from ..captions import ATTRIBUTES, UNKNOWN
from ..data import PlayroomData
from ..models import Reader, read
from .common import draw

TEACHER = LoopConfig(
    steps=2600,
    lr=3e-3,
    weight_decay=0.02,
    warmup=50,
    schedule="cosine",
    final_fraction=0.01,
    clip=5.0,
    precision="auto",
    seed=3,
    preview_every=500,
)
JUDGE = LoopConfig(
    steps=5000,
    lr=3e-3,
    weight_decay=0.02,
    warmup=50,
    schedule="cosine",
    final_fraction=0.01,
    clip=5.0,
    precision="auto",
    seed=4,
    preview_every=750,
)
JUDGE_MORE = LoopConfig(
    steps=2200,
    lr=1.5e-3,
    weight_decay=0.02,
    warmup=100,
    schedule="cosine",
    final_fraction=0.01,
    clip=5.0,
    precision="auto",
    seed=8,
    preview_every=550,
)
"""A second round, from the end of the first, on gentler pictures."""
JUDGE_AGAIN = LoopConfig(
    steps=5000,
    lr=2e-3,
    weight_decay=0.02,
    warmup=100,
    schedule="cosine",
    final_fraction=0.01,
    clip=5.0,
    precision="auto",
    seed=9,
    preview_every=500,
)
"""From an adopted judge."""
WEIGHT = {
    "class": 2.0,
    "pose": 2.0,
    "facing": 1.0,
    "background": 0.7,
    "accessory": 2.5,
    "object": 1.0,
    "colour": 1.5,
    "second colour": 1.0,
    "accessory colour": 1.0,
    "pattern": 1.5,
}
"""Of the attributes' losses; the others have 0.5."""


def accuracy(reader: Reader, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Fraction right per attribute, over pictures that have it. images in [-1, 1]; labels: (N, len(ATTRIBUTES))."""
    said = read(reader, images)
    out = {}
    for i, name in enumerate(ATTRIBUTES):
        has = labels[:, i] != UNKNOWN
        out[name] = float((said[name][has] == labels[has, i]).float().mean()) if has.any() else float("nan")
    return out


def unambiguous(labels: Tensor) -> Tensor:
    """Labels (N, len(ATTRIBUTES)) without what a picture cannot tell: which of two toys is the subject, and the
    colours of a pencil sketch.
    """
    names = list(ATTRIBUTES)
    pair = labels[:, names.index("companion")] != ATTRIBUTES["companion"].index("none")
    sketch = labels[:, names.index("style")] == ATTRIBUTES["style"].index("pencil sketch")
    labels = labels.clone()
    for i, name in enumerate(names):
        if name not in ("background", "style"):
            labels[pair, i] = UNKNOWN
        if "colour" in name:
            labels[sketch, i] = UNKNOWN
    return labels


def _augment(x: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """What decoders and samplers do to pictures: blur, loss of resolution, noise; and small shifts."""
    kind = float(torch.rand((), generator=rng)) / strength
    if kind < 0.25:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    elif kind < 0.5:
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    elif kind < 0.6:
        x = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")
    if float(torch.rand((), generator=rng)) < 0.4:
        x = x + 0.12 * strength * torch.randn(x.shape, generator=rng).to(x.device)
    dy, dx = (int(v) for v in torch.randint(-4, 5, (2,), generator=rng))
    return torch.roll(x, (dy, dx), (2, 3))


class ReaderTask(Task):
    """Cross-entropy of every attribute that the picture has."""

    def __init__(
        self, kind: str, data: PlayroomData, held_out: PlayroomData, batch_size: int = 64, strength: float = 1.0
    ) -> None:
        """strength: of the augmentation, in (0, 1]."""
        self.name, self.data, self.held_out, self.batch_size = kind, data, held_out, batch_size
        self.strength = strength
        self.reader = Reader(kind)
        self.labels = unambiguous(torch.from_numpy(data.labels).long())

    def modules(self) -> dict[str, nn.Module]:
        return {"reader": self.reader}

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        self.reader.train()
        device = next(self.reader.parameters()).device
        rows = draw(rng, len(self.data), self.batch_size)
        images, labels = self.data.pictures(rows).to(device), self.labels[rows].to(device)
        logits = self.reader(_augment(images, rng, self.strength))
        total = images.new_zeros(())
        for i, name in enumerate(ATTRIBUTES):
            # a mean over present labels; the guard keeps an attribute absent from the whole batch at zero
            summed = F.cross_entropy(
                logits[name].float(), labels[:, i], ignore_index=UNKNOWN, reduction="sum", label_smoothing=0.02
            )
            total = total + WEIGHT.get(name, 0.5) * summed / (labels[:, i] != UNKNOWN).sum().clamp(min=1)
        return {"loss": total}

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        self.reader.eval()
        device = next(self.reader.parameters()).device
        images = self.held_out.pictures(range(512)).to(device)
        return accuracy(
            self.reader, images, unambiguous(torch.from_numpy(self.held_out.labels[:512]).long()).to(device)
        )
