"""EZIGen's sampling: the text decides the layout, then the subject the appearance, which is gone through again.

    layout       steps 0 ... S - n_app - 1, without the subject                        `Loops.__call__`
    appearance   steps S - n_app ... S - 1, with it, on the same latents: picture I_0
    loop k       I_{k-1} -> latents -> noise of step S - n_app -> appearance again: I_k
    stop         cos(f(I_{k-1}), f(I_k)) >= threshold from loop `min_loops` on, at the latest after `max_loops`
    n_app        round(share S), once, in whole steps

Beyond the paper: noise that is partly kept from loop to loop, latents brought back to the statistics of I_0, the
background of I_0 kept, the best of the loops instead of the last.

Source: Duan et al., EZIGen (arXiv 2409.08091), section on decoupled guidance; their released code for the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..attention import Context, Intervention
from ..bases import Base
from ..conditioning import Conditioning, encode_negative
from ..errors import ConfigurationError
from ..sampling import (
    STARTS_AT_THE_START,
    SamplingOptions,
    Step,
    decode_images,
    make_scheduler,
    noised_at,
    sample,
    seeded,
)
from .ezigen_adapter import SubjectAttention, first_step

CLIP = {True: "playroom-clip", False: "clip-b32"}
IDENTITY = {True: "playroom-identity", False: "dino-s16"}
SECOND = 0x9E3779B97F4A7C15  # a stream of noise beside the one that the picture began with


@dataclass(frozen=True)
class LoopSettings:
    """What of the settings the loops need; meanings in `ezigen.EZIGenSettings`."""

    share: float = 0.4
    min_loops: int = 3
    max_loops: int = 9
    threshold: float = 0.99
    similarity: str = ""
    fresh: float = 1.0
    lock_statistics: bool = False
    lock_background: bool = False
    keep: str = "last"
    text_weight: float = 1.0
    compat: bool = False


class Blend(Intervention):
    """After each step, outside a region, the latents of a background as noisy as the next step finds it.

    Args:
        region: (samples or 1, 1, h, w) in [0, 1], 1 what is drawn.
        background: by the number of the next step: (samples or 1, *latent_shape); of the last one clean.
    """

    def __init__(self, region: Tensor, background: Callable[[int], Tensor]) -> None:
        self.region, self.background = region, background

    def match(self, site: Any) -> bool:
        return False

    def latents(self, latents: Tensor, context: Context) -> Tensor:
        behind = self.background(context.step + 1).to(latents)
        return torch.where(self.region > 0, self.region * latents + (1 - self.region) * behind, behind)


class Loops:
    """Stands in the place of `sample`, and is called as it is.

    Attributes:
        stages: for each picture of the last run, the pictures of its loops, I_0 first.
        similarities: for each, cos of each loop's picture and the one before; nan where nobody asked.
        kept: for each, the number of the loop that was taken.
    """

    def __init__(
        self, subject: SubjectAttention, settings: LoopSettings, references: Sequence[Image.Image] = ()
    ) -> None:
        self.subject, self.settings, self.references = subject, settings, list(references)
        self.clear()

    def clear(self) -> None:
        """Forget what was made."""
        self.stages: list[list[Image.Image]] = []
        self.similarities: list[list[float]] = []
        self.kept: list[int] = []

    @property
    def report(self) -> dict[str, Any]:
        """JSON data of what was made since `clear`, and the same for people."""
        loops = [len(stages) - 1 for stages in self.stages]
        said = [[None if math.isnan(s) else round(s, 4) for s in each] for each in self.similarities]
        last = [f"{each[-1]:.3f}" for each in self.similarities if each and not math.isnan(each[-1])]
        words = f"ezigen: {', '.join(map(str, loops))} loops" + (f"; last similarity {', '.join(last)}" if last else "")
        if self.settings.keep == "best":
            words += f"; taken: {', '.join(map(str, self.kept))}"
        return {"method": "ezigen", "loops": loops, "similarities": said, "kept": self.kept, "says": words}

    @torch.no_grad()
    def __call__(
        self,
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
    ) -> Tensor:
        """As `sample`. `generators` are of their state for the first pass; the loops' noise depends on their seeds.

        Raises:
            ConfigurationError: as `sample`; or a scheduler that cannot begin in the middle.
        """
        if (seeds is None) == (generators is None) or not len(seeds or generators or ()):
            raise ConfigurationError("sample needs one seed, or one generator, for each picture")
        draws = list(generators) if generators is not None else [seeded(seed) for seed in seeds or ()]
        asked, options = self.settings, choose_scheduler(base, options or SamplingOptions(), self.settings.compat)
        scheduler, count = self._scheduler(base, options), len(draws)
        steps = len(scheduler.timesteps)
        start = first_step(steps, asked.share)
        most = asked.max_loops if start < steps else 0
        whole = steps + most * (steps - start)
        self.subject.masses = [] if asked.lock_background and most else None
        first = sample(
            base, conditioning, negative, generators=draws, options=options, interventions=interventions,
            on_step=_counting(on_step, 0, whole), latents=latents,
        )  # fmt: skip
        if not most:
            self._note([[image] for image in decode_images(base, first)], [[]] * count, [0] * count)
            return first
        mask, self.subject.masses = self._mask(first), None
        looping = [each for each in interventions if type(each).companion is Intervention.companion]
        if asked.compat:
            negative = encode_negative(base)
        similar = Similarity(base, asked)
        fixed = [_second(draw) for draw in draws]
        noise = _noise(fixed, first)
        now, results = first, [first]
        images = decode_images(base, first)
        stages: list[list[Image.Image]] = [[image] for image in images]
        similarities: list[list[float]] = [[] for _ in images]
        running, kept = [True] * count, [0] * count
        start_clean: Tensor | None = None
        for loop in range(1, most + 1):
            clean = encode_pictures(base, images, fixed if asked.compat else None)
            start_clean = clean if start_clean is None else start_clean
            if asked.lock_statistics:
                clean = with_statistics_of(clean, start_clean)
            if loop > 1 and asked.fresh > 0:
                noise = refreshed(noise, _noise(fixed, first), asked.fresh)
            noisy = self._noised(base, options, clean, noise, start)
            blends = [Blend(mask, self._behind(base, options, start_clean, noise))] if mask is not None else []
            now = sample(
                base, conditioning, negative, generators=draws, options=options, latents=noisy, start=start,
                interventions=[*looping, *blends], on_step=_counting(on_step, loop * (steps - start), whole),
            )  # fmt: skip
            made = decode_images(base, now)
            alike = similar(images, made)
            images = made
            results.append(now)
            for row in range(count):
                if running[row]:
                    stages[row].append(made[row])
                    similarities[row].append(alike[row])
                    kept[row] = loop
                    running[row] = not (loop >= asked.min_loops and alike[row] >= asked.threshold)
            if not any(running):
                break
        if asked.keep == "best":
            kept = self._best(base, stages, conditioning)
        self._note(stages, similarities, kept)
        return torch.stack([results[number][row] for row, number in enumerate(kept)])

    def _note(self, stages: list[list[Image.Image]], similarities: list[list[float]], kept: list[int]) -> None:
        self.stages += stages
        self.similarities += similarities
        self.kept += kept

    def _scheduler(self, base: Base, options: SamplingOptions) -> Any:
        scheduler = make_scheduler(base, options.scheduler)
        scheduler.set_timesteps(options.steps, device=base.device)
        return scheduler

    def _noised(self, base: Base, options: SamplingOptions, clean: Tensor, noise: Tensor, start: int) -> Tensor:
        """As noisy as step `start` finds it; with `compat` at 1000 share, a little above, as the released code."""
        scheduler = self._scheduler(base, options)
        if self.settings.compat and hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "sigmas"):
            level = min(
                math.floor(len(scheduler.alphas_cumprod) * self.settings.share), len(scheduler.alphas_cumprod) - 1
            )
            return scheduler.add_noise(clean, noise, torch.tensor([level], device=clean.device))
        return noised_at(scheduler, clean, noise, start)

    def _behind(self, base: Base, options: SamplingOptions, clean: Tensor, noise: Tensor) -> Callable[[int], Tensor]:
        return lambda step: noised_at(self._scheduler(base, options), clean, noise, step)

    def _mask(self, latents: Tensor) -> Tensor | None:
        """Where the first appearance pass looked at the subject: (samples, 1, h, w) in [0, 1]; None if nobody asked."""
        if self.subject.masses is None:
            return None
        return subject_mask(self.subject.masses, latents.shape[-2], latents.shape[-1])

    def _best(self, base: Base, stages: list[list[Image.Image]], conditioning: Conditioning) -> list[int]:
        """For each picture the loop of the best identity and text: cos to the references + text_weight cos to the
        sentence."""
        from ..evaluation.encoders import open_encoder

        own = is_playroom(base)
        identity, clip = open_encoder(IDENTITY[own]), open_encoder(CLIP[own])
        wanted = F.normalize(identity.images(self.references), dim=-1).mean(0)
        chosen = []
        for row, pictures in enumerate(stages):
            score = F.normalize(identity.images(pictures), dim=-1) @ wanted
            if conditioning.spans and self.settings.text_weight:
                text = F.normalize(clip.text([conditioning.spans[min(row, len(conditioning) - 1)].text]), dim=-1)
                score = score + self.settings.text_weight * (F.normalize(clip.images(pictures), dim=-1) @ text[0])
            chosen.append(int(score.argmax()))
        return chosen


class Similarity:
    """cos of two pictures' vectors; each picture is encoded once. Nothing is opened where nothing depends on it."""

    def __init__(self, base: Base, settings: LoopSettings) -> None:
        self.encoder: Any = None
        if settings.min_loops < settings.max_loops:
            from ..evaluation.encoders import open_encoder

            self.encoder = open_encoder(settings.similarity or CLIP[is_playroom(base)])
        self.before: Tensor | None = None

    def __call__(self, before: list[Image.Image], now: list[Image.Image]) -> list[float]:
        if self.encoder is None:
            return [math.nan] * len(now)
        if self.before is None:
            self.before = F.normalize(self.encoder.images(before), dim=-1)
        vectors = F.normalize(self.encoder.images(now), dim=-1)
        alike, self.before = (vectors * self.before).sum(-1).tolist(), vectors
        return alike


def choose_scheduler(base: Base, options: SamplingOptions, compat: bool = False) -> SamplingOptions:
    """The options with a scheduler that can begin in the middle: DDPM in the place of a base's own that cannot.

    Raises:
        ConfigurationError: one was named that cannot.
    """
    options = options.resolved(base)
    kind = type(make_scheduler(base, options.scheduler)).__name__
    if options.scheduler is None and (compat or kind in STARTS_AT_THE_START):
        return replace(options, scheduler="ddpm")
    if kind in STARTS_AT_THE_START:
        raise ConfigurationError(
            f"scheduler {options.scheduler!r} cannot begin in the middle, as EZIGen's loops do: use ddim, ddpm or dpm++"
        )
    return options


def is_playroom(base: Base) -> bool:
    """Whether the embedded encoders know what the base draws."""
    return base.facts.folder.startswith("playroom/")


def subject_mask(masses: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Where attention to the subject is above the middle of its range, one position wider, soft at the edge.

    Args:
        masses: (samples, L) of sites and steps; each site counts the same.

    Returns:
        (samples, 1, height, width) in [0, 1].
    """
    total = torch.zeros(len(masses[0]), 1, height, width, device=masses[0].device)
    for mass in masses:
        scale = math.sqrt(height * width / mass.shape[1])
        grid = mass.float().unflatten(1, (math.ceil(height / scale), -1))[:, None]
        total += F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    inside = ((total - low) > 0.5 * (high - low)).float()
    wider = F.max_pool2d(inside, 3, 1, 1)
    return F.avg_pool2d(F.max_pool2d(wider, 3, 1, 1), 3, 1, 1, count_include_pad=False)


def with_statistics_of(latents: Tensor, wanted: Tensor) -> Tensor:
    """Each channel brought to the mean and deviation of another's; (samples, C, h, w) both."""
    mean, std = latents.mean((2, 3), keepdim=True), latents.std((2, 3), keepdim=True)
    return (latents - mean) / std.clamp(min=1e-6) * wanted.std((2, 3), keepdim=True) + wanted.mean((2, 3), keepdim=True)


def refreshed(noise: Tensor, other: Tensor, share: float) -> Tensor:
    """Standard normal noise of which a share of the variance is new: sqrt(1 - f) n + sqrt(f) n'."""
    return math.sqrt(1 - share) * noise + math.sqrt(share) * other


def encode_pictures(
    base: Base, images: Sequence[Image.Image], generators: Sequence[torch.Generator] | None = None
) -> Tensor:
    """8-bit pictures to latents (n, *latent_shape); generators draw from the encoder's distribution, else its mean."""
    pixels = torch.stack([to_tensor(image) for image in images])
    if generators is None:
        return base.encode_images(pixels).to(base.device)
    drawn = [base.encode_images(one[None], draw) for one, draw in zip(pixels, generators, strict=True)]
    return torch.cat(drawn).to(base.device)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1


def _noise(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=each) for each in generators]).to(like)


def _second(generator: torch.Generator) -> torch.Generator:
    """A generator whose noise depends on the other's seed, and is not the other's."""
    return seeded((generator.initial_seed() + 1) * SECOND % 2**63)


def _counting(on_step: Callable[[Step], None] | None, offset: int, count: int) -> Callable[[Step], None] | None:
    """Numbers of steps over all loops."""
    if on_step is None:
        return None
    return lambda step: on_step(replace(step, number=step.number + offset, count=count))
