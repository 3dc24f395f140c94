"""What the recipes share: where things lie, latents on disk, previews."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import PlayroomData, dataset

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Workplace:
    """Folders of one training campaign, and its size.

    Args:
        root: everything that training writes lies under it (`data/`, one folder a model).
        pictures: rendered training pictures.
        workers: processes that render and encode.
        device: where models train.
    """

    root: Path = Path(".train")
    pictures: int = 65536
    workers: int = 2
    device: str = "cpu"

    def train_data(self) -> PlayroomData:
        return dataset(self.root / "data" / "train", self.pictures, workers=self.workers)

    def held_out_data(self) -> PlayroomData:
        return dataset(self.root / "data" / "held-out", 2048, split="held-out", workers=self.workers)

    def usual_data(self) -> PlayroomData:
        """Most toys of a class look alike here: what the embedded FLUX is trained on."""
        return dataset(self.root / "data" / "usual", self.pictures, split="usual", workers=self.workers)

    def built(self, name: str) -> Path:
        """Folder of a finished model."""
        return self.root / "built" / name


def draw(rng: torch.Generator, high: int, count: int) -> np.ndarray:
    """`count` row numbers below `high`."""
    return torch.randint(0, high, (count,), generator=rng).numpy()


def picture_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write pictures (N, 3, H, W) in [-1, 1] as one PNG, row by row, with a white line between them."""
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    n, _, h, w = pixels.shape
    rows = -(-n // columns)
    sheet = torch.full((3, rows * (h + 2), columns * (w + 2)), 255, dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        y, x = i // columns * (h + 2), i % columns * (w + 2)
        sheet[:, y : y + h, x : x + w] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
