"""Samplers by name: diffusers' own schedulers, with the noise schedule of the base."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..bases import FLOW
from ..errors import ConfigurationError, nearest

if TYPE_CHECKING:
    import torch

    from ..bases import Base

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
"""By name: the class in diffusers, and the settings in which it differs from the base's own."""

STARTS_AT_THE_START = ("PNDMScheduler", "HeunDiscreteScheduler")  # one step of theirs is several calls
_OF_THE_MODEL = ("prediction_type", "rescale_betas_zero_snr", "beta_schedule", "timestep_spacing")


def make_scheduler(base: Base, name: str | None = None, height: int | None = None, width: int | None = None) -> Any:
    """A scheduler for one run, with nothing of earlier runs in it.

    Args:
        base: whose noise schedule and prediction type it gets.
        name: of SCHEDULERS; None for a copy of the base's own.
        height, width: of the picture in pixels, by which flow matching shifts its noise levels; the base's by default.

    Raises:
        ConfigurationError: no such name, or a scheduler that cannot do what the base was trained with.
    """
    if base.prediction_type == FLOW and name in (None, "euler"):
        from .flow import FlowMatchEuler

        return FlowMatchEuler.of(base, height or base.resolution, width or base.resolution)
    if name is None:
        return copy.deepcopy(base.scheduler)
    if name not in SCHEDULERS:
        raise ConfigurationError(f"no scheduler {name!r}{nearest(name, SCHEDULERS)}: known are {', '.join(SCHEDULERS)}")
    if base.prediction_type == FLOW:
        raise ConfigurationError(
            f"scheduler {name!r} has a noise schedule, and {base.name} was trained by flow matching: use euler, its own"
        )
    import diffusers

    kind, settings = SCHEDULERS[name]
    cls = getattr(diffusers, kind)
    taken = inspect.signature(cls.__init__).parameters
    config = base.scheduler.config
    lacking = [key for key in _OF_THE_MODEL if key not in taken and config.get(key) not in (None, False)]
    if lacking:
        raise ConfigurationError(
            f"scheduler {name!r} has no {', '.join(lacking)}, with which {base.name} was trained: its pictures would "
            "be wrong, so choose another, for instance ddim"
        )
    return cls.from_config(config, **settings)


def noised_at(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
    """Clean latents as noisy as a step finds them; after the last step they are clean.

    Args:
        scheduler: a fresh one, with its timesteps set.
        clean, noise: (samples, *latent_shape); noise is standard normal.
        step: 0 to the number of timesteps.
    """
    if step == len(scheduler.timesteps):
        return clean
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(step)
    return scheduler.add_noise(clean, noise, scheduler.timesteps[step : step + 1])


def begin_at(scheduler: Any, start: int) -> None:
    """Make a fresh scheduler, with its timesteps set, begin at a step.

    Raises:
        ConfigurationError: there is no such step, or the scheduler cannot begin there.
    """
    kind = type(scheduler).__name__
    if not 0 <= start < len(scheduler.timesteps):
        raise ConfigurationError(f"step {start} is not in 0 ... {len(scheduler.timesteps) - 1}")
    if kind in STARTS_AT_THE_START:
        raise ConfigurationError(
            f"{kind} cannot begin in the middle: use another scheduler, for instance ddim, ddpm or dpm++"
        )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)


def step_keywords(scheduler: Any, draws: Sequence[torch.Generator], eta: float) -> dict[str, Any]:
    """What this scheduler's `step` takes beside the prediction.

    Args:
        draws: a generator for each sample.
        eta: of DDIM.

    Raises:
        ConfigurationError: eta with a scheduler that has none.
    """
    taken = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in taken:
        raise ConfigurationError(f"eta is DDIM's, and {type(scheduler).__name__} has none: leave it 0, or use ddim")
    keywords = {"eta": eta, "generator": list(draws)}
    return {name: value for name, value in keywords.items() if name in taken}
