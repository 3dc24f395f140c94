"""OminiControl: Minimal and Universal Control for Diffusion Transformer.

Tan, Liu, Yang, Xue, Wang (2024, arXiv 2411.15098); OminiControl2 (2025, arXiv 2503.08280).

    the reference's tokens, through the VAE and the transformer itself     `reference_tokens`
    shifted positions, so that it stands beside the picture                `flux_references.reference_ids`
    low-rank weights that only the reference's rows pass                   `flux_references.RowLora`
    joint attention of [text; picture; reference]                          mode "joint", `flux_references.dual_body`
    the reference attends to itself alone, its keys and values are kept    mode "independent", `References`

One look at one picture: nothing is trained. Weights have the published names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ..adapters.importing import metadata_of, to_native
from ..bases import Base, Flux
from ..bases.flux import PATCH, pack
from ..concept import Attached, Concept
from ..errors import ArtefactError, ConfigurationError
from ..files import listed
from ..images import fit_square
from ..subject import Subject
from .flux_references import Reference, References, RowLora, installed_on, reference_ids
from .ip_adapter import Background, shown
from .ip_adapter_weights import open_adapter, single_file
from .registry import register_method
from .zero_shot import AdapterWeights, ZeroShotMethod

FILE = "reference.safetensors"  # latents: (C, h, w) of the picture, in the denoiser's scale
LARGEST = 512  # side in pixels of a reference unless told otherwise: what published weights were trained with
SHIFTS = {"-w": (0, -1), "+w": (0, 1), "-h": (-1, 0), "+h": (1, 0)}
"""By name: heights and widths of the reference by which it stands off. Published weights: -w; older ones of 512: +w."""
INDEX = (
    "index"  # a reference in the picture's own place, but 1 on the first axis of positions, as FLUX.1 Kontext has it
)
_DORA = ("lora_magnitude_vector", "dora_scale")


def flux(base: Base, method: str) -> Flux:
    """The base, if it is FLUX.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(base, Flux):
        raise ConfigurationError(
            f"{method} puts references among the tokens of a FLUX transformer, and {base.name!r} is of the family "
            f"{base.family}: use --base flux-dev or flux-schnell"
        )
    return base


@torch.no_grad()
def reference_latents(image: Image, base: Flux, size: int) -> Tensor:
    """The middle square of a picture at `size` pixels, encoded: the mean of the posterior. (C, h, w)."""
    base.latent_shape(size, size)
    square, _ = fit_square(image, size)
    pixels = torch.from_numpy(np.array(square.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1
    return base.encode_images(pixels[None])[0]


def black_latents(base: Flux, size: int) -> Tensor:
    """Of a black picture, -1 everywhere: what the reference is replaced by in training. Not latents of zeros."""
    return base.encode_images(torch.full((1, 3, size, size), -1.0))[0]


def shift_in_tokens(shift: str, rows: int, columns: int, compact: int = 1) -> tuple[int, int]:
    """Rows and columns that a reference of so many tokens stands off: of a name in `SHIFTS`, or "ROWS,COLUMNS".

    Raises:
        ConfigurationError: neither.
    """
    if shift in SHIFTS:
        down, right = SHIFTS[shift]
        return down * rows * compact, right * columns * compact
    parts = shift.replace(" ", "").split(",")
    if len(parts) == 2 and all(part.lstrip("+-").isdigit() for part in parts):
        return int(parts[0]), int(parts[1])
    raise ConfigurationError(
        f"shift {shift!r}: expected {', '.join(SHIFTS)}, {INDEX}, or two numbers of tokens as 0,-32"
    )


def shifted_ids(shift: str, rows: int, columns: int, compact: int = 1) -> Tensor:
    """Positions of a reference's tokens, (rows * columns, 3) float32, at a shift of `shift_in_tokens`, or "index".

    Raises:
        ConfigurationError: neither.
    """
    if shift != INDEX:
        return reference_ids(rows, columns, shift_in_tokens(shift, rows, columns, compact), compact)
    ids = reference_ids(rows, columns, (0, 0), compact)
    ids[:, 0] = 1
    return ids


def open_lora(method: str, given: str, base: Base, expect: str = "") -> tuple[AdapterWeights, dict[str, Tensor]]:
    """A method's weights and, of them, the low-rank ones by module of the transformer, to be applied with scale 1.

    Args:
        method: its registered name.
        given: "" for the embedded ones, a folder, a hub id, FILE.safetensors, REPOSITORY:PATH.safetensors.
        base: that they must be for.
        expect: the signature that they must have; "" takes any.

    Raises:
        ArtefactError: not there, for another base, of the DoRA type, or no low-rank weights of a transformer.
    """
    weights = open_adapter(method, given, base, expect)
    file = single_file(given)
    metadata: Mapping[str, Any] = metadata_of(file) if file is not None and file.is_file() else {}
    if "alpha" in weights.config:
        metadata = {"transformer.lora_alpha": weights.config["alpha"]}
    low_rank = {key.replace(".default.", "."): each for key, each in weights.tensors.items() if ".lora_" in key}
    low_rank |= {key: each for key, each in weights.tensors.items() if key.endswith(".alpha")}
    dora = [key for key in weights.tensors if any(part in key for part in _DORA)]
    if dora:
        raise ArtefactError(
            f"{weights.name} is of the DoRA type ({listed(dora)}), which does not add up row by row: expected plain "
            "low-rank weights (lora_A, lora_B)"
        )
    if not low_rank:
        raise ArtefactError(
            f"{weights.name} has no low-rank weights ({listed(weights.tensors)}): weights that were merged into a "
            "model act on every row; expected lora_A and lora_B of each layer"
        )
    native = to_native(low_rank, base, metadata, weights.name)
    others = [key for key in native if not key.startswith("transformer.")]
    if others:
        raise ArtefactError(f"{weights.name} also changes {listed(others)}: expected weights of the transformer alone")
    tensors = {key.removeprefix("transformer."): each for key, each in native.items()}
    with RowLora(tensors).attached(base.denoiser):
        pass  # layers and shapes are checked by attaching
    return weights, tensors


@contextmanager
def attached_reference(
    base: Base, latents: Tensor, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], name: str
) -> Iterator[Attached]:
    """A reference on a base's transformer; the second and further ones join the first.

    Args:
        base: a FLUX.
        latents: (C, h, w).
        tensors: low-rank weights by module.
        settings: mode, shift, compact, strength, cache, pooled, signature.
        name: of the concept.

    Raises:
        ConfigurationError: references of another method, weights or settings are there already.
    """
    rows, columns = (side // PATCH for side in latents.shape[-2:])
    ids = shifted_ids(settings["shift"], rows, columns, settings["compact"])
    reference = Reference(pack(latents[None].to(base.device, base.dtype))[0], ids, f"the reference of {name!r}")
    owner = repr(sorted((key, settings[key]) for key in ("mode", "signature", "strength", "cache", "pooled")))
    there = installed_on(base.denoiser)
    if there is not None:
        if there.owner != owner:
            raise ConfigurationError(
                f"{name!r} has other weights or settings than another reference of this sentence: give all the same"
            )
        with there.with_reference(reference):
            yield Attached()
        return
    lora = RowLora({key: each.to(base.device) for key, each in tensors.items()})
    references = References(
        [reference], lora, settings["mode"], cache=settings["cache"], null_pooled=settings["pooled"] == "null",
        strength=settings["strength"], owner=owner,
    )  # fmt: skip
    with references.installed(base.denoiser):
        yield Attached((references,))


class OminiControlHandler:
    """Puts a concept's reference on the transformer. The base's own weights stay untouched."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[Attached]:
        concept.check_base(base, other_weights=True)
        settings = concept.settings
        _, tensors = open_lora(concept.method, settings["weights"], base, settings["signature"])
        latents = concept.tensors[FILE]["latents"]
        with attached_reference(base, latents, tensors, settings, concept.name) as brought:
            yield brought

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        """Raises ConfigurationError: no other program has a format for a reference picture's tokens."""
        raise ConfigurationError(
            f"{concept.method} reads a picture in every run, for which there is no format: give its folder and the "
            "weights instead"
        )


@dataclass(frozen=True)
class OminiControlSettings:
    """Raises ValueError for values out of range."""

    weights: str = field(
        default="",
        metadata={"help": "a folder, FILE.safetensors, or REPOSITORY:PATH.safetensors; the embedded ones by default"},
    )
    mode: Literal["independent", "joint"] = field(
        default="joint",
        metadata={"help": "joint (as published): the reference reads text and picture; independent: itself alone"},
    )
    shift: str = field(
        default="",
        metadata={"help": "where the reference stands: -w, +w, index, or ROWS,COLUMNS in tokens; the weights' own"},
    )
    size: int = field(default=0, metadata={"help": "side of the reference in pixels; the base's by default, up to 512"})
    compact: int = field(default=1, metadata={"help": "the reference stands for a picture this many times larger"})
    strength: float = field(default=1.0, metadata={"help": "of the attention to the reference: 0 none, 1 as trained"})
    cache: bool = field(default=True, metadata={"help": "independent: keep keys and values from step to step"})
    pooled: Literal["text", "null"] = field(
        default="text", metadata={"help": "what modulates the reference beside time: the pooled text, or zeros"}
    )
    word: str = field(
        default="", metadata={"help": "what stands for the subject in sentences ('this item'); the noun by default"}
    )
    background: Background = field(
        default="keep", metadata={"help": "of the picture: keep (the paper), or a colour in its place; needs a mask"}
    )
    black: bool = field(default=False, metadata={"help": "a black picture in its place: what is left is the text"})

    def __post_init__(self) -> None:
        wrong = [] if 0 <= self.strength <= 100 else [f"strength {self.strength} must be in 0 ... 100"]
        wrong += [] if 1 <= self.compact <= 8 else [f"compact {self.compact} must be in 1 ... 8"]
        wrong += [] if self.size >= 0 else [f"size {self.size} must be above 0"]
        if wrong:
            raise ValueError("; ".join(wrong))


@register_method("ominicontrol")
class OminiControl(ZeroShotMethod):
    """The reference's latents, which every step reads."""

    Settings = OminiControlSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}
    handler = OminiControlHandler()

    def read(self, subject: Subject, base: Base, settings: OminiControlSettings) -> Concept:
        model = flux(base, self.name)
        weights, _ = open_lora(self.name, settings.weights, base)
        latents = reference_latents(
            shown(subject, settings.background), model, settings.size or min(LARGEST, base.resolution)
        )
        if settings.black:
            latents = black_latents(model, int(latents.shape[-1]) * model.pixels_per_token // PATCH)
        rows, columns = (side // PATCH for side in latents.shape[-2:])
        own = asdict(settings) | {
            "signature": weights.signature,
            "shift": settings.shift or str(weights.config.get("shift", "-w")),
            "size": int(latents.shape[-1] * model.pixels_per_token // PATCH),
        }
        shifted_ids(own["shift"], rows, columns, settings.compact)
        tensors = {FILE: {"latents": latents.float().cpu()}}
        word = settings.word or subject.noun
        return Concept.create(self.name, subject, base, word=word, tensors=tensors, settings=own)
