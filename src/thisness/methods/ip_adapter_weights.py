"""Where IP-Adapter's weights and image encoders come from: the package, a folder, one of the published files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..bases import Base
from ..bases.locate import from_hub
from ..errors import ArtefactError
from ..files import PICKLED, load_tensors, sha256
from .image_encoders import EMBEDDED, encoder_folder, open_encoder
from .zero_shot import AdapterWeights, open_weights

if TYPE_CHECKING:
    from PIL.Image import Image

HUB = "h94/IP-Adapter"
PUBLISHED = {
    ("ip-adapter", 768): f"{HUB}:models/ip-adapter_sd15.safetensors",
    ("ip-adapter-plus", 768): f"{HUB}:models/ip-adapter-plus_sd15.safetensors",
    ("ip-adapter", 2048): f"{HUB}:sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
    ("ip-adapter-plus", 2048): f"{HUB}:sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
}
"""By method and the width of the text."""
VIT_H, VIT_BIGG = f"{HUB}:models/image_encoder", f"{HUB}:sdxl_models/image_encoder"
PUBLISHED_ENCODERS = {
    **{("pooled", 1024): VIT_H, ("hidden", 1280): VIT_H},
    **{("pooled", 1280): VIT_BIGG, ("hidden", 1664): VIT_BIGG},
}
"""By what is read of the encoder and its width."""


def standard_weights(method: str, base: Base) -> str:
    """What to open for a base where the user names nothing: "" for the embedded weights.

    Raises:
        ArtefactError: none are known for it.
    """
    if base.facts.folder.startswith("playroom/"):
        return ""
    width = base.denoiser.config.cross_attention_dim
    if (method, width) not in PUBLISHED:
        raise ArtefactError(
            f"no weights of {method} are known for {base.name!r}, whose text is {width} wide: give some, "
            "weights=FILE.safetensors or REPOSITORY:PATH/IN/IT.safetensors"
        )
    return PUBLISHED[method, width]


def open_adapter(method: str, given: str, base: Base, expect: str = "") -> AdapterWeights:
    """The weights of a method.

    Args:
        method: its registered name.
        given: "" for the embedded ones; a folder or hub id as `open_weights` takes it; or one file in the published
            layout: a local .safetensors file, or "h94/IP-Adapter:models/ip-adapter_sd15.safetensors".
        base: that they must be for, where they say for which they are.
        expect: the SHA-256 that they must have; "" takes any.

    Raises:
        ArtefactError: not there, of another method, for another base, other ones than expected.
    """
    file = single_file(given)
    if file is None:
        return open_weights(method, given, base, expect)
    found = _open_file(str(file), file.stat().st_mtime_ns if file.is_file() else 0, given, method)
    if expect and found.signature != expect:
        raise ArtefactError(
            f"the concept was read with other weights of {method} than those of {given!r}: read its pictures anew"
        )
    return found


def single_file(given: str) -> Path | None:
    repository, colon, inside = given.partition(":")
    path = Path(given).expanduser()
    if path.suffix.lower() not in {".safetensors", *PICKLED}:
        return None
    if path.is_file() or not colon or "/" not in repository:
        return path
    if path.suffix.lower() in PICKLED:
        raise ArtefactError(f"{given} may be a pickle: name the .safetensors file beside it")
    return _fetched(repository, [inside]) / inside


def _fetched(repository: str, patterns: Sequence[str]) -> Path:
    return from_hub(repository, patterns, instead="give a local file or folder")


@lru_cache(maxsize=2)
def _open_file(file: str, changed: int, name: str, method: str) -> AdapterWeights:
    path = Path(file)
    return AdapterWeights(name, {"method": method}, load_tensors(path), sha256(path))


def encoder_of(weights: AdapterWeights, reads: str, width: int) -> str:
    """The image encoder that weights were trained with, by name.

    Args:
        weights: of the adapter.
        reads: "pooled" or "hidden".
        width: of what they read.

    Raises:
        ArtefactError: it is not known.
    """
    told = weights.config.get("image_encoder")
    if isinstance(told, dict):
        return str(told.get("name", EMBEDDED))
    beside = Path(weights.name).expanduser().parent / "image_encoder"
    if (beside / "config.json").is_file():
        return str(beside)
    if (reads, width) not in PUBLISHED_ENCODERS:
        raise ArtefactError(
            f"{weights.name} reads {reads} features of width {width}, which no published image encoder has: say which "
            "one it was trained with, image_encoder=FOLDER"
        )
    return PUBLISHED_ENCODERS[reads, width]


def check_encoder(weights: AdapterWeights, name: str) -> None:
    """Refuse an embedded image encoder that is not the one that the weights were trained with.

    Raises:
        ArtefactError: as said.
    """
    told = weights.config.get("image_encoder")
    if name != EMBEDDED or not isinstance(told, dict) or not told.get("signature"):
        return
    if (found := encoder_signature()) != told["signature"]:
        raise ArtefactError(
            f"the weights {weights.name!r} were trained with another {EMBEDDED} ({told['signature'][:8]}) than "
            f"the one installed ({found[:8]}): train them anew, or give image_encoder=FOLDER"
        )


def encoder_signature() -> str:
    """SHA-256 of the embedded image encoder."""
    return sha256(encoder_folder(EMBEDDED) / "model.safetensors")


@torch.no_grad()
def image_features(image: Image, encoder: str, reads: str, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """What a CLIP image encoder says of a picture, and of none.

    Args:
        image: RGB; the encoder's own preparation crops the middle of one that is not square.
        encoder: "playroom-clip", a folder, a hub id, or REPOSITORY:FOLDER/IN/IT.
        reads: "pooled": the projected embedding (1, width), none is zeros. "hidden": the states before the last layer
            (1, patches + 1, width), none is those of a picture of zeros.
        device: where it runs, in float32.

    Raises:
        UserError: no such encoder, or it cannot be had.
        ConfigurationError: the model there has no image side of CLIP.
    """
    model, prepare = open_encoder(encoder)
    pixels = prepare(images=[image], return_tensors="pt")["pixel_values"].to(device)
    return encoded(model.to(device), pixels, reads)


@torch.no_grad()
def encoded(model: Any, pixels: Tensor, reads: str) -> tuple[Tensor, Tensor]:
    """As `image_features`, of prepared pictures (batch, 3, side, side); the null is one row."""
    out = model(pixel_values=pixels, output_hidden_states=reads == "hidden")
    if reads == "pooled":
        return out.image_embeds, torch.zeros_like(out.image_embeds[:1])
    null = model(pixel_values=torch.zeros_like(pixels[:1]), output_hidden_states=True)
    return out.hidden_states[-2], null.hidden_states[-2]
