"""Where the toy is in a picture of the Playroom: a linear readout of what the embedded denoiser makes of it.

Renders have exact masks, generated pictures none. So the picture gets a little noise, the denoiser looks at it without
words, and a linear map from what leaves its blocks with attention says for each of 16x16 places how much of it is toy.
The map is fitted in closed form on renders of training toys (`recipes/finder.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArtefactError
from ..files import load_tensors, read_json, save_tensors, sha256, write_json

if TYPE_CHECKING:
    from PIL import Image

    from ..bases import Base

STEP = 60  # of the base's noise schedule
INSIDE = 0.5  # share of toy from which on a pixel is inside
LEAST = 0.005  # of the picture: less is nothing
FILE = "model.safetensors"


@torch.no_grad()
def states(base: Base, images: Tensor, batch_size: int = 16) -> Tensor:
    """What leaves the denoiser's blocks with attention, at the latents' size, without words.

    Args:
        base: the embedded one, or another of its family.
        images: (n, 3, H, W) in [-1, 1].

    Returns:
        (n, width, h, w) float32 on the CPU.
    """
    from ..conditioning import encode
    from ..training.diffusion import cumulative_alphas, noised

    words, alpha = encode(base, ""), cumulative_alphas(base.scheduler)[STEP]
    kept: list[Tensor] = []
    found: list[Tensor] = []
    blocks = [each for each in base.denoiser.modules() if type(each).__name__ == "Transformer2DModel"]
    hooks = [each.register_forward_hook(lambda module, args, out: kept.append(out[0])) for each in blocks]
    try:
        for part in images.split(batch_size):
            clean = base.encode_images(part)
            noise = torch.randn(clean[:1].shape, generator=torch.Generator().manual_seed(0)).to(clean)
            noisy = noised(clean, noise.expand_as(clean), alpha.to(clean.device).expand(len(clean)))
            kept.clear()
            base.predict(noisy, torch.tensor(STEP, device=base.device), words.expand(len(clean)))
            size = clean.shape[-2:]
            bigger = [F.interpolate(each.float(), size, mode="bilinear", align_corners=False) for each in kept]
            found.append(torch.cat(bigger, 1).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


class PlayroomMasker:
    """Finds the toys in pictures of the Playroom: a `Masker` of the metrics. Of two toys it finds both.

    Args:
        folder: of the readout; the package's by default.
        base: that it reads; the embedded one by default.

    Attributes:
        identity: JSON: what decides its masks.

    Raises:
        ArtefactError: no readout there, or that of another base.
    """

    def __init__(self, folder: Path | None = None, base: Base | None = None) -> None:
        from ..bases import load_base
        from .recipes.common import WEIGHTS

        folder = folder or WEIGHTS / "finder"
        if not (folder / "config.json").is_file():
            raise ArtefactError(f"{folder} holds no finder of toys: install the package with its weights")
        self.base = base or load_base("playroom-sd")
        config = read_json(folder / "config.json")
        if config.get("base") != self.base.signature:
            raise ArtefactError(
                f"{folder} reads another base ({config.get('base')}) than {self.base.name} ({self.base.signature}): "
                "fit it anew (thisness playroom train finder, then assemble)"
            )
        self.weight = load_tensors(folder / FILE)["weight"].float()  # (width + 1,), the last alone
        self.identity: Mapping[str, Any] = {
            "masker": "playroom",
            "weights": sha256(folder / FILE),
            "base": self.base.signature,
            "rule": {"noise": STEP, "inside": INSIDE, "least": LEAST},
        }

    def __call__(self, image: Image.Image, noun: str = "") -> np.ndarray | None:
        """(H, W) float32 of 0 and 1; None where no toy is found. The noun makes no difference."""
        return self.masks([image])[0]

    def masks(self, images: Sequence[Image.Image]) -> list[np.ndarray | None]:
        """As a call, of several pictures of one size."""
        stacked = np.stack([np.asarray(each.convert("RGB")) for each in images])
        return self.found(torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1)

    def found(self, images: Tensor) -> list[np.ndarray | None]:
        """As `masks`, of (n, 3, H, W) in [-1, 1]."""
        side = self.base.resolution
        small = images
        if images.shape[-2:] != (side, side):
            small = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
        share = torch.einsum("nchw,c->nhw", states(self.base, small), self.weight[:-1]) + self.weight[-1]
        whole = F.interpolate(share[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        masks = (whole >= INSIDE).float().numpy()
        return [mask if mask.mean() >= LEAST else None for mask in masks]


@cache
def playroom_masker() -> PlayroomMasker:
    """The package's, opened once."""
    return PlayroomMasker()


def save_finder(weight: Tensor, base: Base, fitted_on: int, folder: Path) -> None:
    """weight: (width + 1,), of the states and alone; half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / FILE, {"weight": weight.half().contiguous()})
    write_json(folder / "config.json", {"base": base.signature, "noise": STEP, "renders": fitted_on})


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks, inside from 0.5 on; 1 for two empty ones."""
    a, b = one >= 0.5, other >= 0.5
    return float((a & b).sum() / union) if (union := (a | b).sum()) else 1.0
