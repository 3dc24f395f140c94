"""Where the toy is in a made picture: a ridge regression on what the embedded denoiser makes of it.

The Playroom gives exact masks of renders, and none of made pictures. So a picture gets a little noise, the denoiser
looks at it without words, and a linear map from its inner states to the mask's share of each of 16x16 cells, fitted
on renders of training toys, says where the toy is. How well it does is measured on held-out toys (`accuracy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FIT_ON, STEP, RIDGE, INSIDE = 192, 60, 1.0, 0.5


class ProbeMasker:
    """A masker for `make_metrics`: from a picture and its noun to a mask.

    Attributes:
        identity: what its masks depend on.
    """

    identity: Mapping[str, Any]

    def __init__(self, base: Any, count: int = FIT_ON) -> None:
        """count: renders that it is fitted on."""
        from thisness.playroom.render import render
        from thisness.playroom.world import random_scene

        self.base = base
        made = render([random_scene(4 * seed, companion=0.0, styled=0.0) for seed in range(count)], base.resolution)
        pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in made.images]
        states = self.states(pictures)  # (n, width, 16, 16)
        side = states.shape[-1]
        wanted = F.adaptive_avg_pool2d(made.masks[:, :1].float() / 255, side).flatten().double()
        rows = states.movedim(1, -1).flatten(0, 2).double()
        self.mean, self.std = rows.mean(0), rows.std(0).clamp(min=1e-6)
        rows = torch.cat([(rows - self.mean) / self.std, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        gram = rows.T @ rows + RIDGE * torch.eye(rows.shape[1], dtype=torch.float64)
        self.weights = torch.linalg.solve(gram, rows.T @ wanted)
        self.identity = {"masker": "ridge on the denoiser's states", "base": base.signature}

    @classmethod
    def kept(cls, file: Path, base: Any, count: int = FIT_ON) -> tuple[ProbeMasker, float]:
        """The one that a file keeps, or a new one, which it keeps then; and its accuracy."""
        from thisness.files import load_tensors, save_tensors

        if file.is_file():
            made = object.__new__(cls)
            tensors = load_tensors(file)
            made.base, made.mean, made.std, made.weights = base, tensors["mean"], tensors["std"], tensors["weights"]
            made.identity = {"masker": "ridge on the denoiser's states", "base": base.signature}
            return made, float(tensors["accuracy"])
        made = cls(base, count)
        right = accuracy(made)
        tensors = {name: getattr(made, name) for name in ("mean", "std", "weights")}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, tensors | {"accuracy": torch.tensor([right])})
        return made, right

    def __call__(self, image: Image.Image, noun: str = "") -> np.ndarray:
        """(H, W) float32 of 0 and 1."""
        return self.masks([image])[0]

    def masks(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        found = []
        for image, states in zip(images, self.states(images), strict=True):
            rows = (states.movedim(0, -1).double() - self.mean) / self.std
            share = rows @ self.weights[:-1] + self.weights[-1]
            size = (image.height, image.width)
            whole = F.interpolate(share[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
            found.append((whole > INSIDE).float().numpy())
        return found

    @torch.no_grad()
    def states(self, images: Sequence[Image.Image], batch: int = 16) -> Tensor:
        """What leaves the blocks with attention, at the latents' size: (n, width, h, w)."""
        from thisness.conditioning import encode
        from thisness.training.diffusion import cumulative_alphas, noised

        base, found = self.base, []
        words, alpha = encode(base, ""), cumulative_alphas(base.scheduler)[STEP]
        noise: Tensor | None = None
        kept: list[Tensor] = []
        blocks = [each for each in base.denoiser.modules() if type(each).__name__ == "Transformer2DModel"]
        hooks = [each.register_forward_hook(lambda module, args, out: kept.append(out[0])) for each in blocks]
        try:
            for start in range(0, len(images), batch):
                some = [np.array(each.convert("RGB"), np.float32) for each in images[start : start + batch]]
                clean = base.encode_images(torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) / 127.5 - 1)
                if noise is None:
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


def accuracy(masker: ProbeMasker, toys: int = 12) -> float:
    """Mean intersection over union on references of held-out toys, whose masks are exact."""
    from thisness.evaluation.benchmarks import playroom

    shares = []
    for index in range(toys):
        subject = playroom.toy(index).load()
        for mask, true in zip(masker.masks(subject.images), subject.masks, strict=True):
            assert true is not None
            one, other = mask > INSIDE, true > INSIDE
            shares.append(float((one & other).sum() / max((one | other).sum(), 1)))
    return float(np.mean(shares))
