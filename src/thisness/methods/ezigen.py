"""EZIGen: Enhancing Zero-Shot Personalized Image Generation with Precise Subject Encoding and Decoupled Guidance.

Duan, Ding, Gou, Zhou, Smith, Liu (arXiv 2409.08091); read with the released code (docs/ezigen.md, what differs).

    subject alone before white, cropped, square                      `prepared`
    x + phi(eps, T), T = 1: the least noisy step                     `subject_features`
    s_n: what enters self-attention n of the denoiser itself         `subject_features`
    Attention(Q, [K, K_s], [V, V_s]) between self- and cross-attention, eq. 3    `ezigen_adapter.Site`
    layout by the text, then appearance, iterated until alike        `ezigen_loops.Loops`
    editing: inversion, blending (eq. 5)                             `ezigen_editing`
    beyond the paper: several subjects, each in a region of its own  `ezigen_regions`

One denoiser reads the subject and draws the picture. What was read, its features and the prepared pictures, is the
concept; keys and values are computed once when it is attached, for all steps, loops, prompts and seeds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..attention.slots import blocks_of
from ..bases import Base
from ..concept import Attached, Concept
from ..conditioning import Conditioning, encode
from ..errors import ConfigurationError, raise_all
from ..images.reading import INSIDE
from ..subject import Subject
from ..training.diffusion import cumulative_alphas, noised
from .ezigen_adapter import EZIGenAdapter, KeysValues, SubjectAttention
from .ezigen_import import import_released
from .ezigen_loops import Loops, LoopSettings, encode_pictures
from .ezigen_regions import together
from .registry import register_method
from .zero_shot import AdapterWeights, ZeroShotMethod, open_weights

FEATURES, PICTURES = "features.safetensors", "pictures.safetensors"
PROMPT = "a photo of a {noun}."
NO_MASK = (
    "the picture of the subject has neither a mask nor transparency, so its background is taken for a part of it: put "
    "NAME_mask.png beside NAME.png (thisness masks makes one), or give a picture with a transparent background"
)


@dataclass(frozen=True)
class EZIGenSettings:
    """How EZIGen reads and draws."""

    weights: str = field(default="", metadata={"help": "folder, hub id, or released checkpoint; embedded by default"})
    share: float = field(default=0.4, metadata={"help": "r: share of the steps, the last ones, with the subject"})
    min_loops: int = field(default=3, metadata={"help": "appearance is gone through again at least so often"})
    max_loops: int = field(default=9, metadata={"help": "and at most so often; 0: a single pass"})
    threshold: float = field(default=0.99, metadata={"help": "likeness of two loops' pictures at which to stop"})
    similarity: str = field(default="", metadata={"help": "image encoder of that likeness; one that fits the base"})
    scale: float = field(default=1.0, metadata={"help": "of the adapter: 0 none, 1 as trained"})
    bias: float = field(default=0.0, metadata={"help": "added to the logits of the subject's keys: an identity knob"})
    subject_guidance: float = field(default=0.0, metadata={"help": "guidance of the subject's own; 0: by text alone"})
    fresh: float = field(default=1.0, metadata={"help": "share of the noise that is new in each loop; 0 fixed"})
    lock_statistics: bool = field(default=False, metadata={"help": "keep contrast and colours of the first pass"})
    lock_background: bool = field(default=False, metadata={"help": "keep what does not attend to the subject"})
    keep: Literal["last", "best"] = field(default="last", metadata={"help": "which loop's picture is taken"})
    text_weight: float = field(default=1.0, metadata={"help": "with keep=best: of the text beside the identity"})
    drop_background: bool = field(default=False, metadata={"help": "leave out keys of the removed background"})
    margin: float = field(default=1.2, metadata={"help": "side of the crop about the subject, by its mask's box"})
    prompt: str = field(default="", metadata={"help": f"read with the subject, e.g. {PROMPT!r}; as trained"})
    reference_step: int = field(default=1, metadata={"help": "T_sub: noise step at which the subject is read"})
    reference_seed: int = field(default=0, metadata={"help": "of that noise"})
    compat: bool = field(default=False, metadata={"help": "noise levels and prompts exactly as the released code"})

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {getattr(self, name)} is not in {low} ... {high}"
            for name, low, high in (
                ("share", 0, 1), ("threshold", -1, 2), ("fresh", 0, 1), ("scale", 0, 10), ("margin", 1, 4),
                ("max_loops", 0, 100), ("min_loops", 0, 100), ("reference_step", 0, 999),
                ("reference_seed", 0, 2**63 - 1), ("subject_guidance", 0, 100), ("text_weight", 0, 100),
            )
            if not low <= getattr(self, name) <= high
        ]  # fmt: skip
        if self.min_loops > self.max_loops:
            wrong.append(f"min_loops {self.min_loops} is more than max_loops {self.max_loops}")
        if self.prompt and "{noun}" not in self.prompt:
            wrong.append(f"prompt {self.prompt!r} must contain {{noun}}")
        if not math.isfinite(self.bias):
            wrong.append(f"bias {self.bias} is not a number")
        raise_all(wrong, ConfigurationError, "ezigen")

    @property
    def loops(self) -> LoopSettings:
        return LoopSettings(**{each.name: getattr(self, each.name) for each in fields(LoopSettings)})


class Handler:
    """Puts the adapter between self- and cross-attention, and EZIGen's loops in the place of sampling."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[Attached]:
        told = concept.settings
        names = {each.name for each in fields(EZIGenSettings)}
        settings = EZIGenSettings(**{name: value for name, value in told.items() if name in names})
        weights = adapter_weights(settings.weights, base, str(told.get("signature", "")))
        adapter = EZIGenAdapter.from_weights(weights.config, weights.tensors, base.denoiser).to(base.device, base.dtype)
        features = [concept.tensors[FEATURES][_key(n)] for n in range(len(adapter.names))]
        with torch.no_grad():
            subject = keys_values(adapter, features, concept.tensors[PICTURES]["masks"], settings)
        guidance = settings.subject_guidance or None
        acting = SubjectAttention(adapter, subject, settings.share, settings.scale, guidance)
        references = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in concept.tensors[PICTURES]["pictures"]]
        yield Attached(interventions=(acting,), sample=Loops(acting, settings.loops, references), together=together)

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        raise ConfigurationError(
            "ezigen has no export: its concept is a look at pictures, which other programs would have to attend to"
        )


@register_method("ezigen")
class EZIGen(ZeroShotMethod):
    """Subject-driven generation and editing with the denoiser itself as the subject's encoder."""

    Settings: ClassVar[type] = EZIGenSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "small": {"share": 0.7, "max_loops": 3},
        "single": {"min_loops": 0, "max_loops": 0},
        "full-injection": {"share": 1.0, "min_loops": 0, "max_loops": 0},
    }
    handler = Handler()
    several: ClassVar[bool] = True

    def read(self, subject: Subject, base: Base, settings: EZIGenSettings) -> Concept:
        """As `ZeroShotMethod.read`: all pictures of the subject, which are alone before white where masks say so."""
        weights = adapter_weights(settings.weights, base)
        adapter = EZIGenAdapter.from_weights(weights.config, weights.tensors, base.denoiser)
        if any(mask is None for mask in subject.masks):
            warnings.warn(f"{subject.name}: {NO_MASK}", stacklevel=2)
        both = [
            prepared(image, mask, base.resolution, settings.margin)
            for image, mask in zip(subject.images, subject.masks, strict=True)
        ]
        template = settings.prompt or str(weights.config.get("prompt", PROMPT))
        words = encode(base, template.replace("{noun}", subject.noun))
        features = subject_features(
            base, [image for image, _ in both], words, step=settings.reference_step, seed=settings.reference_seed,
            names=adapter.names, posterior=settings.compat,
        )  # fmt: skip
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in both])
        masks = torch.stack([torch.from_numpy(np.round(mask * 255).astype(np.uint8)) for _, mask in both])
        tensors = {
            FEATURES: {_key(n): each.cpu().contiguous() for n, each in enumerate(features)},
            PICTURES: {"pictures": pixels.contiguous(), "masks": masks},
        }
        told = {**asdict(settings), "prompt": template, "signature": weights.signature}
        return Concept.create("ezigen", subject, base, word=subject.noun, tensors=tensors, settings=told)


def adapter_weights(given: str, base: Base, expect: str = "") -> AdapterWeights:
    """As `open_weights`, which see; a released checkpoint (FILE.safetensors) is imported first."""
    file = Path(given).expanduser()
    if file.suffix == ".safetensors" and file.is_file():
        given = str(import_released(file, base))
    return open_weights("ezigen", given, base, expect=expect)


def prepared(
    image: Image.Image, mask: np.ndarray | None, size: int, margin: float = 1.2
) -> tuple[Image.Image, np.ndarray]:
    """A subject alone before white, in the middle of a square.

    Args:
        image: RGB of any size.
        mask: (H, W) in [0, 1], 1 the subject; None takes the whole picture, which is made square with white.
        size: side of the result in pixels.
        margin: side of the square, by the longer side of the mask's box.

    Returns:
        The picture, and its mask (size, size) float32 in [0, 1].
    """
    pixels = np.asarray(image, np.float32)
    cover = np.ones(pixels.shape[:2], np.float32) if mask is None else np.asarray(mask, np.float32)
    rows, columns = (np.flatnonzero((cover >= INSIDE).any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    longer = max(bottom - top, right - left)
    side = longer if mask is None else max(math.ceil(margin * longer), longer)
    y, x = (top + bottom - side) // 2, (left + right - side) // 2
    square = np.full((side, side, 4), (255.0, 255.0, 255.0, 0.0), np.float32)
    inner = (max(y, 0), min(y + side, pixels.shape[0]), max(x, 0), min(x + side, pixels.shape[1]))
    part, alpha = (each[inner[0] : inner[1], inner[2] : inner[3]] for each in (pixels, cover[..., None]))
    place = square[inner[0] - y : inner[1] - y, inner[2] - x : inner[3] - x]
    place[..., :3], place[..., 3:] = part * alpha + 255 * (1 - alpha), alpha
    picture = Image.fromarray(square[..., :3].round().astype(np.uint8))
    shape = (size, size)
    if picture.size != shape:
        picture = picture.resize(shape, Image.Resampling.BICUBIC)
    kept = Image.fromarray(square[..., 3]).resize(shape, Image.Resampling.BILINEAR)
    return picture, np.clip(np.asarray(kept, np.float32), 0, 1)


@torch.no_grad()
def subject_features(
    base: Base, pictures: Sequence[Image.Image], words: Conditioning, *, step: int = 1, seed: int = 0,
    names: Sequence[str] | None = None, posterior: bool = False,
) -> list[Tensor]:  # fmt: skip
    """What enters self-attention of each transformer block when the denoiser looks at pictures.

    All pictures get the same noise. No guidance, no adapter; afterwards the denoiser is as before.

    Args:
        base: whose denoiser.
        pictures: prepared, square.
        words: of one row, or one for each picture.
        step: number of the noise level, from 0, in the training's schedule.
        seed: of the noise.
        names: of the blocks' cross-attentions; all in the order in which they run where None.
        posterior: draw from the picture encoder's distribution, instead of its mean.

    Returns:
        For each block (pictures, L, C).
    """
    generator = torch.Generator().manual_seed(seed)
    clean = encode_pictures(base, pictures, [generator] * len(pictures) if posterior else None)
    noise = torch.randn((1, *clean.shape[1:]), generator=generator).to(clean).expand_as(clean)
    alpha = cumulative_alphas(base.scheduler)[step].to(clean.device).expand(len(clean))
    latents = noised(clean, noise, alpha).to(base.dtype)
    with reading(base.denoiser, names) as features:
        base.predict(latents, torch.tensor(step, device=base.device), words.expand(len(clean)))
    return list(features.values())


@contextmanager
def reading(denoiser: Any, names: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Collects what enters self-attention, by the name of the block's cross-attention, in the order of running."""
    found: dict[str, Tensor] = {}
    hooks = []

    def keep(name: str) -> Any:
        return lambda module, args: found.__setitem__(name, args[0])

    for site, block in blocks_of(denoiser).items():
        if names is None or site.name in names:
            hooks.append(block.attn1.register_forward_pre_hook(keep(site.name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def keys_values(
    adapter: EZIGenAdapter, features: Sequence[Tensor], masks: Tensor, settings: EZIGenSettings
) -> list[KeysValues]:
    """A subject's keys and values for all that will be drawn of it.

    Several pictures of one subject count together as one: log M is taken off their logits, except with `compat`.

    Args:
        adapter: on its device.
        features: for each site (M, L, C).
        masks: (M, H, W) uint8, of the prepared pictures.
        settings: bias, drop_background, compat.
    """
    bias = settings.bias - (0.0 if settings.compat else math.log(len(masks)))
    like = next(adapter.parameters())
    read, biases = [], []
    for each in features:
        tokens = each.to(like).flatten(0, 1)
        if settings.drop_background:
            tokens = tokens[covered(masks, each.shape[1]).to(tokens.device)]
        read.append(tokens[None])
        biases.append(torch.full((len(tokens),), bias, device=like.device) if bias else None)
    return adapter.project(read, biases)


def covered(masks: Tensor, tokens: int) -> Tensor:
    """Which of a site's tokens show the subject. masks: (M, H, W) uint8 -> (M * tokens,) bool; never none at all."""
    side = math.isqrt(tokens)
    share = F.adaptive_avg_pool2d(masks.float()[:, None] / 255, (side, tokens // side)).flatten()
    return share >= min(0.25, float(share.max()))


def _key(number: int) -> str:
    return f"site.{number:02d}"
