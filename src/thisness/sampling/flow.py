"""Flow matching's scheduler, called like those of noise schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..bases.flux import PATCH, shift_of

if TYPE_CHECKING:
    from ..bases import Base


class FlowMatchEuler(FlowMatchEulerDiscreteScheduler):
    """diffusers' `FlowMatchEulerDiscreteScheduler` with the noise levels of the stock FLUX pipeline.

    Attributes:
        init_noise_sigma: 1: it starts from standard normal noise.
        shift_by: mu, used where the configuration says that the shift is dynamic.
    """

    init_noise_sigma = 1.0
    shift_by: float = 0.0

    @classmethod
    def of(cls, base: Base, height: int, width: int) -> FlowMatchEuler:
        """For pictures of so many pixels."""
        made: FlowMatchEuler = cls.from_config(base.scheduler.config)
        _, rows, columns = base.latent_shape(height, width)
        made.shift_by = shift_of((rows // PATCH) * (columns // PATCH), made.config)
        return made

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **more: Any) -> None:
        """As the stock pipeline sets them: levels from 1 down to 1 / steps, shifted."""
        levels = None
        if not self.config.get("use_flow_sigmas", False):
            levels = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        super().set_timesteps(num_inference_steps, device=device, sigmas=levels, mu=self.shift_by)
        self.set_begin_index(0)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The denoiser takes latents as they are."""
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: torch.Tensor) -> Tensor:
        """(1 - t) original + t noise, at the step that the scheduler begins at."""
        return self.scale_noise(original, timesteps, noise)
