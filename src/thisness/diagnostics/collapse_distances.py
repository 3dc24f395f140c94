"""Distances between sets of encoded sentences, as semantic collapse is measured with (Bui et al., arXiv 2506.22685).

    L2, mean over all pairs              `l2`, `l2_within`
    Hausdorff                            `hausdorff`, `hausdorff_within`
    Mahalanobis                          `mahalanobis` under one fixed `reference`; without: the paper's own, `pinv`
    KL of softmaxed cosines              `kl`, `spread_of_cosines`
    sentence by sentence (ours)          `paired`, `paired_cosine`
    intervals over sentences (ours)      `draws`, `interval`: every distance takes how often each sentence counts

P and Q are (n, width) and (m, width), float64. `counts`, (draws, n), says how often each sentence is in a resampled
set; results are (draws,). Without counts every sentence counts once, and the result is a scalar. A pair of a sentence
with itself is never counted within a set, however often that sentence was drawn.

What the official code does otherwise: within a set its L2 counts each sentence with itself (factor (n-1)/n: `itself`);
its Mahalanobis takes each set's own covariance, whose value within a set of n <= width sentences is (n-1)/sqrt(n)
whatever the data; its KL within a set is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ThisnessError

SHRINKAGE = 0.1  # share of the covariance that is replaced by a multiple of the identity
TEMPERATURE = 0.07  # of the softmax over cosines; 1 in the official code, where rows are nearly flat
CHUNK = 4_000_000  # numbers in the largest tensor of one step


def l2(p: Tensor, q: Tensor, counts: Tensor | None = None, counts_q: Tensor | None = None) -> Tensor:
    """Mean over all pairs of |p_i - q_j|."""
    apart = torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist")
    a, b = _counts(counts, p), _counts(counts_q, q)
    return _shaped(((a @ apart) * b).sum(-1) / (a.sum(-1) * b.sum(-1)), counts)


def l2_within(p: Tensor, counts: Tensor | None = None, *, itself: bool = False) -> Tensor:
    """Mean over all pairs i != j of |p_i - p_j|; itself: with the zeros i = j, as in the official code."""
    if itself:
        return l2(p, p, counts, counts)
    apart = torch.cdist(p, p, compute_mode="donot_use_mm_for_euclid_dist")
    a = _counts(counts, p)
    others = a.sum(-1).square() - a.square().sum(-1)
    return _shaped(((a @ apart) * a).sum(-1) / others.clamp(min=1), counts)


def hausdorff(p: Tensor, q: Tensor, counts: Tensor | None = None, counts_q: Tensor | None = None) -> Tensor:
    """max(max_i min_j |p_i - q_j|, max_j min_i |p_i - q_j|); 0 only for equal sets."""
    apart = torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist")
    a, b = _counts(counts, p), _counts(counts_q, q)
    there = _farthest_of_nearest(apart, a, b)
    return _shaped(torch.maximum(there, _farthest_of_nearest(apart.T, b, a)), counts)


def hausdorff_within(p: Tensor, counts: Tensor | None = None) -> Tensor:
    """max_i min_{j != i} |p_i - p_j|: how alone the loneliest sentence is."""
    apart = torch.cdist(p, p, compute_mode="donot_use_mm_for_euclid_dist")
    apart.fill_diagonal_(math.inf)
    a = _counts(counts, p)
    return _shaped(_farthest_of_nearest(apart, a, a), counts)


@dataclass(frozen=True, eq=False)
class Reference:
    """A covariance that is the same for all sets and times. whitener: (width, width), S^-1 = W W^T."""

    whitener: Tensor


def reference(p: Tensor, shrinkage: float = SHRINKAGE) -> Reference:
    """Of a set, p (n, width): S_l = (1-l) S + l (tr S / width) I, with S unbiased.

    One for all: the paper's form measures every set in its own covariance, where shrinking a set changes nothing.
    """
    covariance = torch.cov(p.T).reshape(p.shape[1], p.shape[1])
    size = p.shape[1]
    shrunk = (1 - shrinkage) * covariance
    shrunk.diagonal().add_((shrinkage * covariance.trace() / size).clamp(min=1e-12))
    values, vectors = torch.linalg.eigh(shrunk)
    return Reference(vectors * values.clamp(min=1e-12).rsqrt())


def mahalanobis(
    p: Tensor, q: Tensor, fixed: Reference | None, counts: Tensor | None = None, counts_q: Tensor | None = None
) -> Tensor:
    """mean_i sqrt((p_i - mu_Q)^T S^-1 (p_i - mu_Q)): not symmetric.

    Args:
        fixed: S; None for the paper's: Q's own covariance, pseudo-inverted, for which there are no counts.
    """
    if fixed is None:
        if counts is not None:
            raise ThisnessError("the paper's Mahalanobis distance has no resampling: pass a reference")
        _, sizes, axes = torch.linalg.svd(q - q.mean(0), full_matrices=False)
        there = sizes > 1e-10 * sizes.max().clamp(min=1e-12)  # the directions that S^-1 does not know are left out
        return ((len(q) - 1) ** 0.5 * (p - q.mean(0)) @ axes[there].T / sizes[there]).norm(dim=1).mean()
    p, q = p @ fixed.whitener, q @ fixed.whitener
    a, b = _counts(counts, p), _counts(counts_q, q)
    middle = (b @ q) / b.sum(-1, keepdim=True)
    apart = torch.cdist(middle, p, compute_mode="donot_use_mm_for_euclid_dist")
    return _shaped((a * apart).sum(-1) / a.sum(-1), counts)


def kl(
    p: Tensor, q: Tensor, temperature: float = TEMPERATURE, counts: Tensor | None = None, *, floor: float = 0.0
) -> Tensor:
    """mean_i KL(softmax_j cos(p_i, p_j)/t || softmax_j cos(q_i, q_j)/t): how differently two sets hang together.

    Args:
        p, q: of equal size, sentence i of one belonging to sentence i of the other. Not symmetric.
        floor: added to both probabilities (1e-8 in the official code).

    Raises:
        ThisnessError: sets of different sizes.
    """
    if len(p) != len(q):
        raise ThisnessError(f"KL of {len(p)} and {len(q)} sentences: sentence i of both must belong together")
    one, other = _cosines(p) / temperature, _cosines(q) / temperature
    itself = torch.eye(len(p), dtype=torch.bool)
    a = _counts(counts, p)
    found = []
    for part in a.split(max(CHUNK // len(p) ** 2, 1)):
        weights = part[:, None, :].masked_fill(itself, 1)  # of the copies of itself, one
        log_p, log_q = (F.log_softmax(cosines + weights.log(), -1) - weights.log() for cosines in (one, other))
        mass = torch.where(weights > 0, weights * log_p.exp(), 0)
        if floor:
            log_p, log_q = (log_p.exp() + floor).log(), (log_q.exp() + floor).log()
        rows = torch.where(mass > 0, mass * (log_p - log_q), 0).sum(-1)
        found.append((part * rows).sum(-1) / part.sum(-1))
    return _shaped(torch.cat(found), counts)


def spread_of_cosines(p: Tensor, temperature: float = TEMPERATURE, counts: Tensor | None = None) -> Tensor:
    """log(n-1) - mean_i entropy(softmax_{j != i} cos(p_i, p_j)/t): 0 where all cosines are equal.

    In the place of a KL distance within a set, which is 0 by definition.
    """
    similar = _cosines(p) / temperature
    itself = torch.eye(len(p), dtype=torch.bool)
    a = _counts(counts, p)
    found = []
    for part in a.split(max(CHUNK // len(p) ** 2, 1)):
        weights = part[:, None, :].masked_fill(itself, 0)
        log_mass = F.log_softmax(similar + weights.log(), -1)
        mass = torch.where(weights > 0, log_mass.exp(), 0)
        each = torch.where(weights > 0, log_mass - weights.log(), 0)  # of one of the copies of a sentence
        entropy = -(mass * each).sum(-1)
        rows = weights.sum(-1).clamp(min=1).log() - entropy
        found.append((part * rows).sum(-1) / part.sum(-1))
    return _shaped(torch.cat(found), counts)


def paired(p: Tensor, q: Tensor, counts: Tensor | None = None) -> Tensor:
    """mean_i |p_i - q_i|."""
    return _mean((p - q).norm(dim=-1), counts)


def paired_cosine(p: Tensor, q: Tensor, counts: Tensor | None = None) -> Tensor:
    """mean_i cos(p_i, q_i)."""
    return _mean(F.cosine_similarity(p, q, dim=-1, eps=1e-12), counts)


def draws(size: int, number: int, seed: int = 0) -> Tensor:
    """How often each of `size` sentences is in each of `number` resampled sets: (number, size) float64."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, size, (number, size), generator=generator)
    return torch.zeros(number, size, dtype=torch.float64).scatter_add_(1, chosen, torch.ones(chosen.shape).double())


def interval(values: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of resampled values, (draws,)."""
    tail = (1 - confidence) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype))
    return float(low), float(high)


def _counts(counts: Tensor | None, p: Tensor) -> Tensor:
    return torch.ones(1, len(p), dtype=p.dtype) if counts is None else counts.to(p.dtype)


def _shaped(values: Tensor, counts: Tensor | None) -> Tensor:
    return values[0] if counts is None else values


def _mean(values: Tensor, counts: Tensor | None) -> Tensor:
    a = _counts(counts, values)
    return _shaped((a * values).sum(-1) / a.sum(-1), counts)


def _cosines(p: Tensor) -> Tensor:
    unit = F.normalize(p, dim=-1, eps=1e-12)
    return unit @ unit.T


def _farthest_of_nearest(apart: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """max_i min_j over the sentences that were drawn: (draws,). apart: (n, m), a: (draws, n), b: (draws, m)."""
    found = []
    for rows, columns in zip(*(each.split(max(CHUNK // apart.numel(), 1)) for each in (a, b)), strict=True):
        nearest = apart[None].masked_fill(columns[:, None, :] == 0, math.inf).amin(-1)
        found.append(nearest.masked_fill(rows == 0, -math.inf).amax(-1))
    return torch.cat(found)
