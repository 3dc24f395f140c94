"""The denoising objective as pure functions, named as in the papers.

    z_t = sqrt(a_t) z + sqrt(1 - a_t) eps            a_t: cumulative alpha at step t       `noised`
    eps-prediction: target eps                                                             `target`
    v-prediction:   target sqrt(a_t) eps - sqrt(1 - a_t) z
    L = E || prediction - target ||^2, rows weighted by min(SNR, gamma)                    `row_losses`, `min_snr`
    flow matching:  z_t = (1 - t) z + t eps, target eps - z        `interpolated`, `target`
                    t = sigmoid(N(0, 1))                           `draw_flow`

Sources: Ho et al., Denoising Diffusion Probabilistic Models (2020), eq. 4 and 14; Salimans and Ho, Progressive
Distillation for Fast Sampling of Diffusion Models (2022), appendix D; Hang et al., Efficient Diffusion Training via
Min-SNR Weighting Strategy (2023), eq. 7; Esser et al., Scaling Rectified Flow Transformers (2024), eq. 1, 13 and 19.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bases import FLOW
from ..errors import ConfigurationError


def cumulative_alphas(scheduler: Any) -> Tensor:
    """a_t for each step of training, (steps,) float32, from the configuration of any scheduler of a noise schedule.

    Raises:
        ConfigurationError: the scheduler has none (flow matching).
    """
    if "beta_schedule" not in scheduler.config:
        raise ConfigurationError(f"{type(scheduler).__name__} has no noise schedule to learn with")
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(scheduler.config).alphas_cumprod.float()


def _like(alpha: Tensor, latents: Tensor) -> Tensor:
    return alpha.view(-1, *[1] * (latents.ndim - 1))


def noised(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """z_t. clean, noise: (B, ...); alpha: (B,)."""
    a = _like(alpha, clean)
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def interpolated(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """z_t of flow matching. clean, noise: (B, ...); time: (B,) in [0, 1]."""
    t = _like(time, clean)
    return (1 - t) * clean + t * noise


def target(clean: Tensor, noise: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """What the denoiser should answer. clean, noise: (B, ...); alpha: (B,); prediction_type as of a base."""
    if prediction_type == FLOW:
        return noise - clean
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        a = _like(alpha, clean)
        return a.sqrt() * noise - (1 - a).sqrt() * clean
    raise ConfigurationError(f"prediction type {prediction_type!r}: expected epsilon, v_prediction or {FLOW}")


def min_snr(alpha: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weights min(SNR, gamma) / SNR for eps, / (SNR + 1) for v, with SNR = a / (1 - a). (B,) -> (B,)."""
    snr = alpha / (1 - alpha).clamp(min=1e-8)
    least = snr.clamp(max=gamma)
    return least / (snr + 1) if prediction_type == "v_prediction" else least / snr.clamp(min=1e-8)


def row_losses(prediction: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each row, positions weighted.

    Args:
        prediction, wanted: (B, C, h, w).
        weight: (B, 1, h, w), at least 0, or None for all 1. Rows are divided by the mean of their weights, so that
            small subjects count as much as large ones.

    Returns:
        (B,) float32.
    """
    error = (prediction.float() - wanted.float()).square().mean(1)  # (B, h, w)
    if weight is None:
        return error.mean((1, 2))
    weight = weight[:, 0]
    return (error * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)


def draw_flow(count: int, rng: torch.Generator) -> Tensor:
    """Noise levels of flow matching, sigmoid(N(0, 1)): (count,) float32 on the CPU, in (0, 1)."""
    return torch.randn(count, generator=rng).sigmoid()


def draw_timesteps(count: int, steps: int, rng: torch.Generator) -> Tensor:
    """Uniform in 0 ... steps - 1, (count,) int64 on the CPU, one in each of `count` equal parts of the range in turn.

    Each row alone is uniform; together they cover the range, which steadies small batches.
    """
    start = torch.rand((), generator=rng)
    return (((torch.arange(count) + torch.rand(count, generator=rng)) / count + start) % 1 * steps).long()
