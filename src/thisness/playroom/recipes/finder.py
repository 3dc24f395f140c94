"""The finder of toys: ridge regression from the denoiser's states to the exact masks of renders, in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..finder import save_finder, states
from ..render import render
from ..world import random_scene
from .common import Workplace

RENDERS, RIDGE = 192, 1.0


def fitted(found: Tensor, masks: Tensor, ridge: float = RIDGE) -> Tensor:
    """The linear map that is nearest to the masks' shares in squared error, on standardised states.

    Args:
        found: (n, width, h, w).
        masks: (n, 1, H, W) in [0, 1].
        ridge: penalty on the map's squared length.

    Returns:
        (width + 1,) float64: for the states as they are; the last is added.
    """
    wanted = F.adaptive_avg_pool2d(masks, found.shape[-1]).flatten().double()
    rows = found.movedim(1, -1).flatten(0, 2).double()
    mean, std = rows.mean(0), rows.std(0).clamp(min=1e-6)
    rows = torch.cat([(rows - mean) / std, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    weight = torch.linalg.solve(rows.T @ rows + ridge * torch.eye(rows.shape[1], dtype=torch.float64), rows.T @ wanted)
    plain = weight[:-1] / std
    return torch.cat([plain, (weight[-1] - (plain * mean).sum())[None]])


def train_finder(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    """Fit it on `steps` renders, at once: it is not resumed."""
    from ...bases import load_base

    base, count = load_base("playroom-sd", device=place.device), steps or RENDERS
    made = render([random_scene(4 * seed, companion=0.0, styled=0.0) for seed in range(count)], base.resolution)
    found = states(base, made.images.float().to(place.device) / 127.5 - 1)
    save_finder(fitted(found, made.masks[:, :1].float() / 255), base, count, place.built("finder"))
    return True
