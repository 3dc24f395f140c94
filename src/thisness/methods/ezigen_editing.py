"""EZIGen's editing: the subject drawn into a region of a given picture, the rest of which stays as it is.

    X_0 ... X_n     the picture inverted to the noise of step S - n_app, level by level        `inverted`
    exceptional prompt: one token everywhere, no positions                                     `exceptional`
    appearance from X_n with the adapter; after each step, outside the region, the X of the
    level that the step leads to, X_0 after the last (eq. 5, in every step)                    `ezigen_loops.Blend`
    loops: the newest picture inverted again; the background always from the first trajectory  `edit`
    pixels: the result is put into the source through the feathered mask at the source's size  `Placement.put_back`

The released code blends one level off and never reaches X_0, and returns the decoded background; docs/ezigen.md.

Source: Duan et al., EZIGen (arXiv 2409.08091), section on editing; Lu et al., TF-ICON (2023) for inversion under the
exceptional prompt; Lu et al., DPM-Solver++ (2022), eq. 9 and algorithm 2, which run backwards here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from ..bases import Base
from ..concept import Concept
from ..conditioning import Conditioning, encode, encode_negative
from ..errors import ConfigurationError, ImageError
from ..images.reading import INSIDE
from ..prompt import Prompt
from ..sampling import SamplingOptions, decode_images, make_scheduler, noised_at, sample, seeded
from ..training.diffusion import cumulative_alphas
from .ezigen_adapter import SubjectAttention, first_step
from .ezigen_loops import Blend, Loops, Similarity, choose_scheduler, encode_pictures

GUIDANCE = 2.0  # of the released code
TOKEN = 7788  # of the exceptional prompt, there


@dataclass(frozen=True, eq=False)
class Placement:
    """Where in a picture of any size the denoiser's square is, and what of it may change.

    Attributes:
        scene: RGB, the whole picture.
        feathered: (H, W) in [0, 1], what is put into it; 0 where it stays as it is.
        box: left, top, right, bottom of the square; parts of it may lie outside of the scene.
        square: the scene there, of the base's size, continued by its edge where there is no more of it.
        region: (size, size) float32 in [0, 1], the mask there.
    """

    scene: Image.Image
    feathered: np.ndarray
    box: tuple[int, int, int, int]
    square: Image.Image
    region: np.ndarray

    def put_back(self, made: Image.Image) -> Image.Image:
        """The scene with what was made of its square, through the feathered mask."""
        left, top, right, bottom = self.box
        height, width = self.feathered.shape
        big = np.asarray(made.resize((right - left, bottom - top), Image.Resampling.LANCZOS), np.float32)
        whole = np.asarray(self.scene, np.float32).copy()
        inner = (max(top, 0), min(bottom, height), max(left, 0), min(right, width))
        new = big[inner[0] - top : inner[1] - top, inner[2] - left : inner[3] - left]
        part = whole[inner[0] : inner[1], inner[2] : inner[3]]
        share = self.feathered[inner[0] : inner[1], inner[2] : inner[3], None]
        part[:] = part + share * (new - part)
        return Image.fromarray(whole.round().astype(np.uint8))


def placed(
    scene: Image.Image, mask: np.ndarray, size: int, *, latent: int = 1, context: float = 3.0, feather: float = 0.02
) -> Placement:
    """Choose the square about a mask.

    Args:
        scene: RGB of any size.
        mask: (H, W) in [0, 1], 1 what may change. An empty one is allowed: nothing will change.
        size: of the square for the denoiser, in pixels.
        latent: side of its latents: a smaller scene is refused.
        context: side of the square, by the longer side of the mask's box; the scene's shorter side at most, except
            where the mask needs more.
        feather: width of the soft edge, by the square's side.

    Raises:
        ImageError: a scene smaller than the latents, or a mask of another size.
    """
    if mask.shape != (scene.height, scene.width):
        raise ImageError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} but the scene is {scene.width}x{scene.height}: pass a mask "
            "of the scene's size"
        )
    if min(scene.size) < latent:
        raise ImageError(
            f"the scene is {scene.width}x{scene.height}: the model works on {latent}x{latent} positions at least: use "
            "a larger picture"
        )
    rows, columns = (np.flatnonzero((mask >= INSIDE).any(axis)) for axis in (1, 0))
    if rows.size:
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    else:
        top, bottom, left, right = 0, scene.height, 0, scene.width
    longer = max(bottom - top, right - left)
    edge = math.ceil(2 * feather * longer)  # the feathered mask goes so far
    needed = max(
        min(bottom + edge, scene.height) - max(top - edge, 0), min(right + edge, scene.width) - max(left - edge, 0)
    )
    side = max(min(math.ceil(context * longer), min(scene.size)), needed)
    y = _start((top + bottom) / 2, side, scene.height)
    x = _start((left + right) / 2, side, scene.width)
    box = (x, y, x + side, y + side)
    before = (max(-y, 0), max(-x, 0))
    after = (max(y + side - scene.height, 0), max(x + side - scene.width, 0))
    around = ((before[0], after[0]), (before[1], after[1]))
    pixels = np.pad(np.asarray(scene), (*around, (0, 0)), mode="edge")
    inside = np.pad(mask.astype(np.float32), around)
    cut = slice(y + before[0], y + before[0] + side), slice(x + before[1], x + before[1] + side)
    square = Image.fromarray(pixels[cut])
    if square.size != (size, size):
        square = square.resize((size, size), Image.Resampling.LANCZOS)
    region = np.asarray(Image.fromarray(inside[cut]).resize((size, size), Image.Resampling.BOX), np.float32)
    return Placement(scene, feathered(mask, feather * side), box, square, region)


def check_region(mask: np.ndarray, name: str) -> None:
    """Raises: ImageError: an empty mask, or a full one, of which nothing would stay."""
    inside = float((mask >= INSIDE).mean())
    if inside == 0:
        raise ImageError(f"{name}: the mask is empty: paint white what may change")
    if inside == 1:
        raise ImageError(
            f"{name}: the mask is full: nothing of the scene would stay; paint a part of it white, or make a "
            "whole picture with `thisness generate`"
        )


def feathered(mask: np.ndarray, width: float) -> np.ndarray:
    """A soft edge outwards: 1 within the mask, 0 farther from it than about twice the width in pixels."""
    hard = Image.fromarray((np.asarray(mask) * 255).round().astype(np.uint8))
    if width < 0.5:
        return np.asarray(hard, np.float32) / 255
    soft = np.asarray(hard.filter(ImageFilter.GaussianBlur(width)), np.float32) / 255
    return np.clip(np.maximum(2 * soft, np.asarray(hard, np.float32) / 255), 0, 1)


def _start(middle: float, side: int, length: int) -> int:
    """Where a stretch begins: about the middle, within 0 ... length if it fits, else centred on that."""
    if side > length:
        return (length - side) // 2
    return min(max(round(middle - side / 2), 0), length - side)


@torch.no_grad()
def exceptional(base: Base) -> Conditioning:
    """One token at all places, without positions: all rows of its embedding are the same (TF-ICON, section 3.2)."""
    with ExitStack() as stack:
        for encoder in base.text_encoders:
            for name, parameter in encoder.named_parameters():
                if name.endswith("position_embedding.weight"):
                    stack.callback(parameter.data.copy_, parameter.data.clone())
                    parameter.data.zero_()
        ids = [
            torch.full((1, tokenizer.model_max_length), TOKEN % len(tokenizer), device=base.device)
            for tokenizer in base.tokenizers
        ]
        encoding = base.encode_tokens(ids)
    pooled = None if encoding.pooled is None else encoding.pooled.to(base.dtype)
    return Conditioning(encoding.embeds.to(base.dtype), pooled, None)


@torch.no_grad()
def inverted(base: Base, clean: Tensor, read: Conditioning, timesteps: Sequence[int], order: int = 2) -> list[Tensor]:
    """The trajectory from clean latents to noise, by DPM-Solver++ backwards; order 1 is DDIM's.

    Args:
        clean: (n, *latent_shape).
        read: by the denoiser, one row or n; no guidance.
        timesteps: of the levels, rising: those of the sampler, the other way round.

    Returns:
        [X_0 clean, X_1 at timesteps[0], ...].
    """
    alphas = cumulative_alphas(base.scheduler).double()
    read, path = read.expand(len(clean)), [clean]
    x, before, step_before = clean, None, 0.0
    for k, t in enumerate(timesteps):
        a, s = float(alphas[t].sqrt()), float((1 - alphas[t]).sqrt())
        at = timesteps[max(k - 1, 0)]
        predicted = base.predicted_clean(x, base.predict(x, torch.tensor(at, device=base.device), read), at)
        a0, s0 = float(alphas[at].sqrt()), float((1 - alphas[at]).sqrt())
        if k == 0:
            x = a * clean + s * ((clean - a0 * predicted) / s0)
        elif a < 1e-6:
            x = s * ((x - a0 * predicted) / s0)
        else:
            h = math.log(a / s) - math.log(a0 / s0)
            data = predicted
            if order == 2 and before is not None and step_before:
                ratio = step_before / h
                data = (1 + 1 / (2 * ratio)) * predicted - before / (2 * ratio)
            x = (s / s0) * x - a * math.expm1(-h) * data
            step_before = h
        before = predicted
        path.append(x.to(clean.dtype))
        x = path[-1]
    return path


@dataclass(frozen=True, eq=False)
class Edit:
    """What `edit` made.

    Attributes:
        images: the scene with the subject in it, one for each seed, of the scene's size.
        stages: for each the pictures of its loops, of the base's size.
        similarities: for each, cos of each loop's picture and the one before.
        latents: (seeds, *latent_shape), of the last loop.
        placement: where in the scene it is.
    """

    images: list[Image.Image]
    stages: list[list[Image.Image]]
    similarities: list[list[float]]
    latents: Tensor
    placement: Placement


@torch.no_grad()
def edit(
    base: Base, scene: Image.Image, mask: np.ndarray, concept: Concept, *, prompt: str = "a photo of a {subject}",
    seeds: Sequence[int] = (0,), options: SamplingOptions | None = None, reinvert: bool = True, context: float = 3.0,
    feather: float = 0.02, negative: str = "",
) -> Edit:  # fmt: skip
    """Draw a subject into a picture.

    Args:
        base: the model.
        scene: RGB of any size.
        mask: (H, W) in [0, 1] of its size, 1 what may change.
        concept: of ezigen; its settings say how many loops.
        prompt: what is to be seen in the square about the mask.
        seeds: one picture each; they differ by the scheduler's noise: the default one, DDPM, has some.
        options: guidance is 2 unless told otherwise.
        reinvert: invert the picture again in each loop, else add noise to it: half the calls.
        context, feather: as `placed`.

    Raises:
        ConfigurationError: a concept of another method, or a scheduler that this cannot be done with.
        ImageError: as `placed`.
    """
    if concept.method != "ezigen":
        raise ConfigurationError(
            f"the concept {concept.name!r} is of {concept.method}, and editing is done by ezigen: --method ezigen"
        )
    asked = options or SamplingOptions()
    asked = replace(
        asked,
        guidance=GUIDANCE if asked.guidance is None else asked.guidance,
        scheduler=asked.scheduler or "ddpm",
        height=base.resolution,
        width=base.resolution,
    )
    asked = choose_scheduler(base, asked)
    scheduler = make_scheduler(base, asked.scheduler)
    scheduler.set_timesteps(asked.steps)
    if abs(float(scheduler.init_noise_sigma) - 1) > 1e-6:
        raise ConfigurationError(
            f"scheduler {asked.scheduler!r} scales latents in its own way: use ddpm, ddim or dpm++"
        )
    _, side, _ = base.latent_shape(base.resolution, base.resolution)
    place = placed(scene, mask, base.resolution, latent=side, context=context, feather=feather)
    draws = [seeded(seed) for seed in seeds]
    with concept.attach(base) as brought:
        assert isinstance(brought.sample, Loops)
        acting: SubjectAttention = brought.interventions[0]
        loops = brought.sample.settings
        start = first_step(len(scheduler.timesteps), loops.share)
        levels = [int(t) for t in scheduler.timesteps[start:].flip(0)]
        if not levels:
            raise ConfigurationError("share 0 leaves no steps to draw the subject in: give more, e.g. share=0.4")
        words = encode(base, Prompt(prompt).fill({slot: concept.word for slot in Prompt(prompt).slots}))
        nothing, unwanted = exceptional(base), encode_negative(base, negative)
        clean = encode_pictures(base, [place.square])
        path = inverted(base, clean, nothing, levels)
        region = torch.from_numpy(np.array(place.region)).to(clean)[None, None]
        region = F.adaptive_avg_pool2d(region, side)
        blend = Blend(region, lambda step: path[len(scheduler.timesteps) - step])
        noisy = path[-1].expand(len(draws), -1, -1, -1)
        similar = Similarity(base, loops)
        stages: list[list[Image.Image]] = [[] for _ in draws]
        similarities: list[list[float]] = [[] for _ in draws]
        running = [True] * len(draws)
        images: list[Image.Image] = []
        results: list[Tensor] = [clean[0]] * len(draws)
        for loop in range(loops.max_loops + 1):
            if loop:
                again = encode_pictures(base, images)
                if reinvert:
                    noisy = inverted(base, again, nothing, levels)[-1]
                else:
                    noise = torch.stack([torch.randn(clean.shape[1:], generator=draw) for draw in draws]).to(clean)
                    noisy = noised_at(make_steps(base, asked), again, noise, start)
            latents = sample(
                base, words, unwanted, generators=draws, options=asked, interventions=[acting, blend], latents=noisy,
                start=start,
            )  # fmt: skip
            made = decode_images(base, latents)
            alike = similar(images, made) if loop else []
            for row in range(len(draws)):
                if running[row]:
                    stages[row].append(made[row])
                    results[row] = latents[row]
                    if loop:
                        similarities[row].append(alike[row])
                        running[row] = not (loop >= loops.min_loops and alike[row] >= loops.threshold)
            images = made
            if not any(running):
                break
    finished = [place.put_back(each[-1]) for each in stages]
    return Edit(finished, stages, similarities, torch.stack(results), place)


def make_steps(base: Base, options: SamplingOptions):
    """A fresh scheduler with its timesteps set."""
    scheduler = make_scheduler(base, options.scheduler)
    scheduler.set_timesteps(options.steps, device=base.device)
    return scheduler
