"""Styles as filters over a finished picture: pencil sketch, watercolour, pixel art."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _blur(x: Tensor, radius: int, times: int = 2) -> Tensor:
    for _ in range(times):
        padded = F.pad(x, (radius,) * 4, mode="replicate")
        x = F.avg_pool2d(padded, 2 * radius + 1, 1)
    return x


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor([0.3, 0.59, 0.11]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def pencil_sketch(x: Tensor) -> Tensor:
    """Dark outlines on warm paper with a little grey shading. x: (N, 3, H, W) in [0, 1]."""
    unit = max(1, x.shape[-1] // 128)
    grey = _luma(x)
    smooth = _blur(grey, unit, 1)
    dx = F.pad(smooth, (1, 1, 0, 0), mode="replicate")
    dy = F.pad(smooth, (0, 0, 1, 1), mode="replicate")
    edge = torch.sqrt((dx[..., 2:] - dx[..., :-2]) ** 2 + (dy[..., 2:, :] - dy[..., :-2, :]) ** 2 + 1e-6)
    tone = 0.97 - 0.22 * (1 - smooth) - (2.2 * edge * unit).clamp(0, 0.75)
    return tone.clamp(0.1, 1) * x.new_tensor([1.0, 0.99, 0.95]).view(1, 3, 1, 1)


def watercolour(x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Washed, spread colours with soft darker borders and uneven pigment. x: (N, 3, H, W) in [0, 1]."""
    unit = max(1, x.shape[-1] // 128)
    wash = _blur(x, unit, 1)
    border = (_luma(_blur(wash, 2 * unit, 1)) - _luma(wash)).abs()
    pigment = torch.stack([torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(x)
    pigment = F.interpolate(pigment, size=x.shape[-2:], mode="bicubic", align_corners=False)
    return (0.30 + 0.68 * wash + 0.10 * (pigment - 0.5) - 0.9 * border).clamp(0, 1)


def pixel_art(x: Tensor) -> Tensor:
    """Blocks of a 32nd of the side, eight levels a channel. x: (N, 3, H, W) in [0, 1]."""
    block = max(1, x.shape[-1] // 32)
    small = F.avg_pool2d(x, block)
    return F.interpolate((small * 7).round() / 7, size=x.shape[-2:], mode="nearest")


def apply_style(x: Tensor, styles: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Filter each picture by its style's name; `photo` stays as it is. x: (N, 3, H, W) in [0, 1]."""
    out = x.clone()
    for style in set(styles) - {"photo"}:
        rows = [i for i, name in enumerate(styles) if name == style]
        chosen = x[rows]
        if style == "pencil sketch":
            out[rows] = pencil_sketch(chosen)
        elif style == "watercolour":
            out[rows] = watercolour(chosen, [seeds[i] for i in rows])
        else:
            out[rows] = pixel_art(chosen)
    return out
