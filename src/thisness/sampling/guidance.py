"""Combining the predictions of the branches."""

from __future__ import annotations

from torch import Tensor


def guided(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """uncond + scale * (cond - uncond); all (samples, ...).

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance (2022), eq. 6, with scale = 1 + w.
    """
    return uncond + scale * (cond - uncond)


def rescaled(prediction: Tensor, cond: Tensor, amount: float) -> Tensor:
    """Bring the standard deviation of each sample back towards that of the conditional prediction.

    Args:
        prediction: guided, (samples, ...).
        cond: of the same shape.
        amount: 0 changes nothing, 1 gives the deviation of `cond`.

    Source: Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed (2024), eq. 14-16.
    """
    axes = list(range(1, cond.ndim))
    matched = prediction * (cond.std(dim=axes, keepdim=True) / prediction.std(dim=axes, keepdim=True))
    return amount * matched + (1 - amount) * prediction
