"""Harmonizing Visual and Textual Embeddings for Zero-Shot Text-to-Image Customization.

Song, Kim, Park, Shin, Rhee, Kwak (AAAI 2025, arXiv 2403.14155).

    span of the text t_1 ... t_N                             `span_of`, by singular values, not by Gram-Schmidt
    v_perp = v - sum_j <b_j, v> b_j                          `orthogonal` with `gains(span)`
    AttnSwap(z, z') * m + AttnSwap(z, z) * (1 - m)           `attention_swap`
    m, from the subject word's cross-attention map           `subject_mask`; of several subjects `assigned`
    tau_1, tau_2: the steps in which the swap acts           `window`

All pure. What of a sentence is text is in `harmonizing_words`; at work they are in `harmonizing_orchestrate` and
`harmonizing_swap`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Reduce = Literal["sum", "mean"]
FLAT = 1e-8  # a map that varies less shows no subject


class Span(NamedTuple):
    """What some vectors span.

    Attributes:
        directions: (batch, count, width), orthonormal rows; zero where a direction is not kept.
        values: (batch, count) singular values of the normalised vectors, falling; zero where not kept.
    """

    directions: Tensor
    values: Tensor

    @property
    def rank(self) -> Tensor:
        """(batch,) directions kept."""
        return (self.values > 0).sum(-1)


def span_of(
    text: Tensor,
    chosen: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    rtol: float = 1e-3,
    max_rank: int | None = None,
) -> Span:
    """An orthonormal basis of what text vectors span.

    Their lengths do not matter. Nearly parallel ones count as one direction, so that rounding is never projected on:
    a direction that is left out leaves at most rtol * sqrt(N) of each vector's cosine with the result.

    Args:
        text: (batch, N, width).
        chosen: (batch, N) of bool, which of them count; all by default.
        weights: (batch, N) factors after they were brought to length 1. A hard projection ignores them (but 0); with
            ridge they matter.
        rtol: directions of singular values below this share of the largest are left out.
        max_rank: directions kept at most, the largest ones; a quarter of the width by default, so that a long sentence
            cannot leave nothing.

    Returns:
        In float64 on a CPU, else float32; without gradient.
    """
    batch, count, width = text.shape
    rows = precise(text)
    length = rows.norm(dim=-1, keepdim=True)
    rows = torch.where(length > 0, rows / length.clamp(min=torch.finfo(rows.dtype).tiny), 0)
    if weights is not None:
        rows = rows * weights.to(rows).unsqueeze(-1)
    if chosen is not None:
        rows = rows * chosen.to(rows).unsqueeze(-1)
    if not count:
        return Span(rows.new_zeros(batch, 0, width), rows.new_zeros(batch, 0))
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    keep = (values > rtol * values[:, :1]) & (values > 0)
    keep[:, max_rank if max_rank is not None else max(width // 4, 1) :] = False
    return Span(directions * keep.unsqueeze(-1), values * keep)


def gains(span: Span, strength: float = 1.0, reduce: Reduce = "sum", ridge: float = 0.0) -> Tensor:
    """How much of each direction is taken out, (batch, count).

    Args:
        span: the directions.
        strength: 1 all (the paper), 0 nothing.
        reduce: sum of the projections (the paper's formula), or their mean, which only weakens where there are several.
        ridge: alpha of s^2 / (s^2 + alpha): spares directions that few vectors have; 0 spares none.
    """
    kept = (span.values > 0).to(span.values)
    square = span.values**2
    gain = kept * (square / (square + ridge) if ridge > 0 else 1.0) * strength
    return gain / span.rank.clamp(min=1).unsqueeze(-1) if reduce == "mean" else gain


def orthogonal(visual: Tensor, span: Span, gain: Tensor) -> Tensor:
    """v - sum_i g_i <b_i, v> b_i; with all gains 1, v_perp of the paper.

    Args:
        visual: (batch, M, width).
        span: of the text, of the same batch and width.
        gain: (batch, count) from `gains`.

    Returns:
        As `visual`, in its dtype; the very same numbers where all gains are 0.
    """
    if not bool((gain != 0).any()):
        return visual
    rows = precise(visual)
    hard = bool(((gain == 0) | (gain == 1)).all())
    for _ in range(2 if hard else 1):  # a second time for what rounding left
        rows = rows - (rows @ span.directions.transpose(1, 2) * gain.unsqueeze(1)) @ span.directions
    return rows.to(visual.dtype)


def retained(visual: Tensor, result: Tensor) -> Tensor:
    """Share of each vector's energy that is left, |v_perp|^2 / |v|^2: (batch, M); 1 for a vector without length."""
    before, after = (precise(each).square().sum(-1) for each in (visual, result))
    return torch.where(before > 0, after / before.clamp(min=torch.finfo(before.dtype).tiny), 1.0)


def restored(visual: Tensor, result: Tensor) -> Tensor:
    """The result with the length that each vector had; not in the paper."""
    before, after = (precise(each).norm(dim=-1, keepdim=True) for each in (visual, result))
    return torch.where(after > 0, precise(result) * before / after.clamp(min=1e-30), 0).to(visual.dtype)


def random_span(span: Span, seed: int = 0) -> Span:
    """Control: as many directions as kept, drawn at random. If it does as well, the text's directions say nothing."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(span.directions.shape, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(drawn.transpose(1, 2)).Q.transpose(1, 2).to(span.directions)
    return Span(directions * (span.values > 0).unsqueeze(-1), span.values)


def shrunk(visual: Tensor, result: Tensor) -> Tensor:
    """Control: v with the length of v_perp. If it does as well, only less of v was wanted."""
    return (precise(visual) * retained(visual, result).sqrt().unsqueeze(-1)).to(visual.dtype)


def window(start: float, stop: float, calls: int) -> range:
    """Numbers of the steps in which the swap acts, from fractions of the denoiser's calls (tau_1, tau_2)."""
    return range(round(start * calls), round(stop * calls))


def subject_mask(
    maps: Tensor,
    size: tuple[int, int],
    threshold: float | Literal["otsu"] = 0.3,
    resize: Literal["nearest", "bilinear"] = "nearest",
) -> Tensor:
    """Where the subject is: (batch, *size) of bool.

    Args:
        maps: (batch, h, w), the subject word's attention, averaged over heads and layers. Each is stretched to 0 ... 1
            by itself; a flat one shows no subject.
        size: grid of the layer.
        threshold: what lies above is the subject; "otsu": found for each map, where its values fall into two groups.
        resize: nearest: of the mask; bilinear: of the map, before the threshold.
    """
    return assigned(maps[None], size, threshold, resize)[0]


def assigned(
    maps: Tensor,
    size: tuple[int, int],
    threshold: float | Literal["otsu"] = 0.3,
    resize: Literal["nearest", "bilinear"] = "nearest",
) -> Tensor:
    """Where each of several subjects is, (subjects, batch, *size) of bool; no position is two subjects'.

    Where several maps are over their thresholds, the position goes to the largest of the stretched maps.

    Args:
        maps: (subjects, batch, h, w), of each subject's word; as in `subject_mask`, like the rest.
    """
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    flat = high - low < FLAT
    raw, maps = maps, torch.where(flat, 0, (maps - low) / torch.where(flat, 1, high - low))
    limit: Tensor | float = 0.0
    if threshold == "otsu":
        limit = torch.stack([torch.stack([otsu(each) for each in row]) for row in maps])[..., None, None]
    else:
        limit = threshold
    if resize == "bilinear":
        raw, maps = (F.interpolate(each, size, mode="bilinear", align_corners=False) for each in (raw, maps))
    best = torch.where(maps == maps.amax(0, keepdim=True), raw, -1.0).argmax(0)  # of equal ones the larger before
    first = best == torch.arange(len(maps), device=maps.device).view(-1, 1, 1, 1)
    mask = (maps > limit) & ~flat & first
    return F.interpolate(mask.float(), size, mode="nearest") > 0.5


def otsu(values: Tensor) -> Tensor:
    """The value that parts all values into two groups whose means are farthest apart, weighed by their sizes (Otsu)."""
    ordered = values.flatten().double().sort().values
    count = torch.arange(1, len(ordered), device=values.device)
    below = ordered.cumsum(0)[:-1]
    gap = below / count - (ordered.sum() - below) / (len(ordered) - count)
    between = count * (len(ordered) - count) * gap**2
    between = torch.where(ordered[1:] > ordered[:-1], between, -1.0)  # equal values stay together
    return ordered[int(between.argmax())].to(values)


def attention_swap(
    own: Tensor, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, gather: bool = False
) -> Tensor:
    """softmax(Q K'^T / sqrt(d)) V' where the mask is 1, else what the layer had. Positions that ask are masked, not
    keys: all of z' stays visible.

    Args:
        own: (rows, heads, L, d), softmax(Q K^T / sqrt(d)) V.
        query: (rows, heads, L, d), of z.
        keys, values: (rows, heads, L', d), of z'.
        mask: (rows, L) of bool.
        gather: compute the positions inside of the mask only, row by row; else all at once. The same result.

    Source: section on the self-attention swap.
    """
    if not gather:
        swapped = F.scaled_dot_product_attention(query, keys, values)
        return torch.where(mask[:, None, :, None], swapped, own)
    result = own.clone()
    for row, inside in enumerate(mask):
        at = inside.nonzero()[:, 0]
        if len(at):
            asked = query[row : row + 1, :, at]
            result[row, :, at] = F.scaled_dot_product_attention(asked, keys[row : row + 1], values[row : row + 1])[0]
    return result


def grid_of(size: tuple[int, int], positions: int) -> tuple[int, int]:
    """Height and width of a layer's grid, from those of the latents; each level halves them, rounding up.

    Raises:
        ValueError: no level has so many positions.
    """
    height, width = size
    while height * width > positions:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != positions:
        raise ValueError(f"no level of latents of {size[0]}x{size[1]} has {positions} positions")
    return height, width


def precise(tensor: Tensor) -> Tensor:
    """float64 on a CPU, else float32; without gradient."""
    return tensor.detach().to(torch.float64 if tensor.device.type == "cpu" else torch.float32)
