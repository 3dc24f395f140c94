"""A second denoising process beside the run, in the same batches, for as long as somebody reads from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention import Context, Row, rows_of
from ..bases import Base
from ..conditioning import Conditioning
from ..errors import ThisnessError
from .guidance import guided, rescaled
from .options import SamplingOptions
from .schedulers import step_keywords


@dataclass(frozen=True, eq=False)
class Run:
    """What an intervention is told before the first step of a run.

    Attributes:
        base: whose denoiser.
        options: with every number filled in.
        calls: of the denoiser, as many as the scheduler has timesteps.
        latents: (samples, *latent_shape), as the scheduler starts from them.
        negative: what the unguided rows read; None without guidance.
        generators: of the samples, after the noise was drawn; copy them before drawing.
        scheduler: with its timesteps set; copy it before stepping.
    """

    base: Base
    options: SamplingOptions
    calls: int
    latents: Tensor
    negative: Conditioning | None
    generators: Sequence[torch.Generator]
    scheduler: Any


@dataclass(frozen=True, eq=False)
class Companion:
    """A second process that an intervention asks for (`Intervention.companion`).

    Its rows have the roles `role` and, under guidance, `role` + "-uncond". They come behind the run's own.

    Args:
        role: unique in a run; not "cond" and not "uncond".
        conditioning: what it reads, of one row or one for each sample.
        stop: number of the first step in which it is not there any more.
        guided: with the run's guidance and negative prompt; else its conditional branch alone.
        noise: (samples, *latent_shape), standard normal; the run's own noise where None.
        sequential: before the run's rows, in a call of its own: half the memory.
    """

    role: str
    conditioning: Conditioning
    stop: int
    guided: bool = True
    noise: Tensor | None = None
    sequential: bool = False


class Companions:
    """All of a run. Without any, or when none is left, the denoiser is called exactly as it is without this."""

    def __init__(self, companions: Sequence[Companion], run: Run, context: Context, roles: Sequence[str], eta: float):
        count = len(run.latents)
        self.run, self.context, self.own = run, context, rows_of(roles, count)
        names = [each.role for each in companions]
        if len({*names, *roles}) < len(names) + len(roles):
            raise ThisnessError(f"second branches need roles of their own: {', '.join(names)}")
        self.each: list[_Process] = []
        for asked in companions:
            context.spans[asked.role] = asked.conditioning.spans
            generators = [copied(each) for each in run.generators]
            scheduler = copy.deepcopy(run.scheduler)
            self.each.append(_Process(asked, run, scheduler, step_keywords(scheduler, generators, eta), count))
        self._read: dict[tuple[int, ...], Conditioning] = {}

    def predict(self, rows: Tensor, step: int, timestep: Tensor, read: Conditioning, scale: float) -> Tensor:
        """The denoiser's answer to the run's own rows; those of the second processes are kept for `step`."""
        base, alive = self.run.base, [each for each in self.each if step < each.asked.stop]
        for each in alive:
            if each.asked.sequential:
                self.context.rows = each.rows
                each.answer = base.predict(each.inputs(timestep), timestep, each.read, guidance=scale)
        beside = [each for each in alive if not each.asked.sequential]
        self.context.rows = (*self.own, *(row for each in beside for row in each.rows))
        if not beside:
            return base.predict(rows, timestep, read, guidance=scale)
        key = (id(read), *map(id, beside))
        if key not in self._read:
            self._read = {key: Conditioning.cat([read, *(each.read for each in beside)])}
        inputs = torch.cat([rows, *(each.inputs(timestep) for each in beside)])
        sizes = [len(rows), *(len(each.rows) for each in beside)]
        own, *answers = base.predict(inputs, timestep, self._read[key], guidance=scale).split(sizes)
        for process, answer in zip(beside, answers, strict=True):
            process.answer = answer
        return own

    def step(self, step: int, timestep: Tensor) -> None:
        """Take all that are there one step on."""
        for each in self.each:
            if step < each.asked.stop:
                each.step(timestep)


class _Process:
    """One second process: its latents and its scheduler, which has a history of its own."""

    def __init__(self, asked: Companion, run: Run, scheduler: Any, keywords: dict[str, Any], count: int) -> None:
        self.asked, self.run, self.scheduler, self.keywords = asked, run, scheduler, keywords
        self.latents = run.latents
        if asked.noise is not None:
            self.latents = asked.noise.to(run.latents) * scheduler.init_noise_sigma
        conditioning = asked.conditioning.expand(count)
        self.branches = 1
        self.read = conditioning
        self.rows: tuple[Row, ...] = rows_of([asked.role], count)
        if asked.guided and run.negative is not None:
            self.branches = 2
            self.read = Conditioning.cat([run.negative.expand(count), conditioning])
            self.rows = rows_of([f"{asked.role}-uncond", asked.role], count)
        self.answer: Tensor | None = None

    def inputs(self, timestep: Tensor) -> Tensor:
        rows = torch.cat([self.latents] * self.branches) if self.branches > 1 else self.latents
        return self.scheduler.scale_model_input(rows, timestep)

    def step(self, timestep: Tensor) -> None:
        assert self.answer is not None
        prediction, self.answer = self.answer, None
        if self.branches > 1:
            uncond, cond = prediction.chunk(2)
            prediction = guided(uncond, cond, float(self.run.options.guidance or 0.0))
            if self.run.options.guidance_rescale > 0:
                prediction = rescaled(prediction, cond, self.run.options.guidance_rescale)
        self.latents = self.scheduler.step(prediction, timestep, self.latents, **self.keywords, return_dict=False)[0]


def copied(generator: torch.Generator) -> torch.Generator:
    """One that draws the same from here on, and leaves the other where it is."""
    return torch.Generator(generator.device).set_state(generator.get_state())
