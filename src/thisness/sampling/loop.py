"""The loop: noise to latents, with the base's parts and diffusers' schedulers.

With nothing attached it gives the latents of the stock pipeline, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention import Intervention, attached, rows_of
from ..bases import Base
from ..conditioning import Conditioning, encode_negative
from ..errors import ConfigurationError, ThisnessError
from .companion import Companions, Run
from .guidance import guided, rescaled
from .options import SamplingOptions
from .schedulers import begin_at, make_scheduler, step_keywords

CHECK_EVERY = 10  # steps between looking whether latents are finite, which waits for the device


class Cancelled(ThisnessError):
    """For `on_step` to raise when nobody waits for the picture any more."""


@dataclass(frozen=True)
class Step:
    """What `on_step` is told after each step.

    Attributes:
        number: from 1.
        count: of all steps.
        timestep: the scheduler's number for the noise level.
        latents: (samples, *latent_shape), as the next step gets them.
    """

    number: int
    count: int
    timestep: float
    latents: Tensor
    _clean: Callable[[], Tensor] = field(repr=False, compare=False)

    def clean(self) -> Tensor:
        """The clean latents that this step predicted, for previews: `base.decode(step.clean())`."""
        return self._clean()


@torch.no_grad()
def sample(
    base: Base,
    conditioning: Conditioning,
    negative: Conditioning | None = None,
    seeds: Sequence[int] | None = None,
    options: SamplingOptions | None = None,
    *,
    generators: Sequence[torch.Generator] | None = None,
    interventions: Sequence[Intervention] = (),
    on_step: Callable[[Step], None] | None = None,
    latents: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Make latents, all samples in one batch.

    The denoiser sees the rows of the negative branch, then those of the conditional one; interventions find them by
    role ("uncond", "cond") and sample in `context.rows`. Under no guidance there is the conditional branch alone. An
    intervention may ask for a second process (`companion`): its rows come behind those, for as long as it lasts.

    Args:
        base: whose denoiser.
        conditioning: of one row, or one for each sample.
        negative: of one row, or one for each sample; the empty sentence where None. Used under guidance only.
        seeds: one for each sample: each has its own generator on the CPU, so that neither the device nor its
            neighbours change its noise. Or pass `generators`.
        options: how; what the base is used with where None.
        generators: one for each sample.
        interventions: attached for the run, in this order.
        on_step: called after each step, for progress and previews; what it raises ends the run, e.g. `Cancelled`.
        latents: initial standard normal noise (samples, *latent_shape), instead of drawing it; with `start`, latents as
            noisy as that step finds them (`noised_at`).
        start: number of the first step that is made, from 0; those before are left out, and second processes.

    Returns:
        (samples, *latent_shape), in the dtype of the base.

    Raises:
        ConfigurationError: neither or both of seeds and generators, options that the base cannot do.
        ThisnessError: the latents are not finite; the message names the step.
    """
    if (seeds is None) == (generators is None) or not len(seeds or generators or ()):
        raise ConfigurationError("sample needs one seed, or one generator, for each picture: pass seeds or generators")
    draws = list(generators) if generators is not None else [seeded(seed) for seed in seeds or ()]
    options = (options or SamplingOptions()).resolved(base)
    count, scale = len(draws), float(options.guidance or 0.0)
    branches = {"cond": conditioning}
    if base.branches(scale):
        branches = {"uncond": negative if negative is not None else encode_negative(base), "cond": conditioning}
    read = Conditioning.cat([branch.expand(count) for branch in branches.values()])  # (branches * samples) rows

    scheduler = make_scheduler(base, options.scheduler, options.height, options.width)
    scheduler.set_timesteps(options.steps, device=base.device)
    if start and latents is not None:
        begin_at(scheduler, start)
        latents = latents.to(base.device, base.dtype)
    else:
        latents = _initial(base, scheduler, draws, options, latents)
    keywords = step_keywords(scheduler, draws, options.eta)
    times = scheduler.timesteps.tolist()  # once: reading them one by one would wait for the device in every step
    finite = _Finite(len(times), latents.device)
    scheduling = [each for each in interventions if _schedules(each)]
    steering = [each for each in interventions if type(each).branches is not Intervention.branches]
    roles = tuple(branches)

    with attached(base.denoiser, *interventions) as context:
        context.rows, context.steps = rows_of(list(branches), count), len(times)
        context.spans = {role: branch.spans for role, branch in branches.items()}
        run = Run(base, options, len(times), latents, branches.get("uncond"), draws, scheduler)
        asked = [each.companion(run) for each in interventions] if not start else []
        beside = Companions([c for c in asked if c is not None], run, context, list(branches), options.eta)
        for step, timestep in enumerate(scheduler.timesteps):
            if step < start:
                continue
            context.step, context.timestep = step, times[step]
            if steering and (now := _roles(steering, tuple(branches), context)) != roles:
                roles = now
                parts = [branches["uncond"] if role == "uncond" else conditioning for role in roles]
                read = Conditioning.cat([part.expand(count) for part in parts])
                beside.own = rows_of(roles, count)
                context.spans = {role: part.spans for role, part in zip(roles, parts, strict=True)}
            rows = torch.cat([latents] * len(roles)) if len(roles) > 1 else latents
            rows = scheduler.scale_model_input(rows, timestep)
            prediction = beside.predict(rows, step, timestep, read, scale)
            if len(roles) > 1:
                by_role = dict(zip(roles, prediction.chunk(len(roles)), strict=True))
                cond = by_role["cond"]
                prediction = _guided(steering, by_role, scale, context)
                if options.guidance_rescale > 0:
                    prediction = rescaled(prediction, cond, options.guidance_rescale)
            for each in scheduling:
                if each.active(context):
                    prediction = each.prediction(latents, prediction, context)
            latents = scheduler.step(prediction, timestep, latents, **keywords, return_dict=False)[0]
            beside.step(step, timestep)
            for each in scheduling:
                if each.active(context):
                    latents = each.latents(latents, context)
            finite.look(step, latents)
            if on_step is not None:
                clean = _Clean(base, rows[:count], prediction, times[step])
                on_step(Step(step + 1, len(times), times[step], latents, clean))
    return latents


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU. seed: 0 ... 2**63-1."""
    if not 0 <= seed < 2**63:
        raise ConfigurationError(f"seed {seed} is not in 0 ... 2**63-1")
    return torch.Generator("cpu").manual_seed(seed)


@dataclass(frozen=True)
class _Clean:
    """Computes the clean latents of a step only where somebody asks for them."""

    base: Base
    rows: Tensor
    prediction: Tensor
    timestep: float

    def __call__(self) -> Tensor:
        return self.base.predicted_clean(self.rows, self.prediction, self.timestep)


class _Finite:
    """Finds the first step whose latents are not finite, and waits for the device every CHECK_EVERY steps only."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps = steps
        self.first_bad = torch.full((), steps, dtype=torch.long, device=device)

    def look(self, step: int, latents: Tensor) -> None:
        """Raises: ThisnessError."""
        bad = ~torch.isfinite(latents).all()
        self.first_bad = torch.where(bad & (self.first_bad == self.steps), step, self.first_bad)
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == self.steps:
            first = int(self.first_bad)
            if first < self.steps:
                cause = (
                    "float16 overflows in some models: use bfloat16 or float32"
                    if latents.dtype == torch.float16
                    else "a concept whose training diverged, too high a guidance, or a damaged model"
                )
                raise ThisnessError(f"NaN or infinity in the latents at step {first + 1} of {self.steps}: {cause}")


def _initial(
    base: Base, scheduler: Any, draws: list[torch.Generator], options: SamplingOptions, latents: Tensor | None
) -> Tensor:
    """Noise as the scheduler starts from it, (samples, *latent_shape)."""
    from diffusers.utils.torch_utils import randn_tensor

    shape = (len(draws), *base.latent_shape(options.height, options.width))  # type: ignore[arg-type]
    if latents is None:
        latents = randn_tensor(shape, generator=draws, device=base.device, dtype=base.dtype)
    elif tuple(latents.shape) != shape:
        raise ConfigurationError(f"latents are {tuple(latents.shape)}: expected {shape}")
    return latents.to(base.device, base.dtype) * scheduler.init_noise_sigma


def _roles(steering: Sequence[Intervention], roles: tuple[str, ...], context: Any) -> tuple[str, ...]:
    for each in steering:
        if each.active(context):
            roles = each.branches(roles, context)
    return roles


def _guided(steering: Sequence[Intervention], predictions: dict[str, Tensor], scale: float, context: Any) -> Tensor:
    for each in steering:
        if each.active(context) and (made := each.guided(predictions, scale, context)) is not None:
            return made
    return guided(predictions["uncond"], predictions["cond"], scale)


def _schedules(intervention: Intervention) -> bool:
    kind = type(intervention)
    return kind.prediction is not Intervention.prediction or kind.latents is not Intervention.latents
