"""How a picture is sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, nearest, raise_all
from .schedulers import SCHEDULERS

if TYPE_CHECKING:
    from ..bases import Base

MAX_STEPS = 1000


@dataclass(frozen=True)
class SamplingOptions:
    """How a picture is sampled; None takes what the base is used with.

    Args:
        steps: 1 to 1000 calls of the denoiser (second-order schedulers: about twice as many).
        guidance: scale of classifier-free guidance; 1 or less: none, half the work.
        scheduler: a name of `SCHEDULERS`; the base's own where None.
        height, width: in pixels.
        eta: noise that DDIM adds in each step, 0 to 1; other schedulers have none such.
        guidance_rescale: 0 to 1, how far the guided prediction is brought back to the spread of the unguided one.

    Raises:
        ConfigurationError: values out of range; all of them at once.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance (2022); Song et al., Denoising Diffusion Implicit Models
    (2021), eq. 16 (eta); Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed (2024), section 3.4.
    """

    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None
    eta: float = 0.0
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        wrong = []
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            wrong.append(f"steps {self.steps} is not in 1 ... {MAX_STEPS}")
        if self.guidance is not None and not (math.isfinite(self.guidance) and 0 <= self.guidance <= 100):
            wrong.append(f"guidance {self.guidance} is not in 0 ... 100")
        wrong += [
            f"{name} {value} is not in 0 ... 1"
            for name, value in (("eta", self.eta), ("guidance_rescale", self.guidance_rescale))
            if not 0 <= value <= 1
        ]
        wrong += [
            f"{name} {side} is not a number of pixels"
            for name, side in (("height", self.height), ("width", self.width))
            if side is not None and side < 1
        ]
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            wrong.append(
                f"no scheduler {self.scheduler!r}{nearest(self.scheduler, SCHEDULERS)}: known are "
                + ", ".join(SCHEDULERS)
            )
        raise_all(wrong, ConfigurationError, "sampling")

    def resolved(self, base: Base) -> SamplingOptions:
        """The same with every number filled in; `scheduler` stays None where it is the base's own.

        Raises:
            ConfigurationError: sides that the base cannot make.
        """
        full = replace(
            self,
            steps=self.steps if self.steps is not None else base.steps,
            guidance=float(self.guidance if self.guidance is not None else base.guidance),
            height=self.height if self.height is not None else base.resolution,
            width=self.width if self.width is not None else base.resolution,
        )
        base.latent_shape(full.height, full.width)  # type: ignore[arg-type]
        return full
