"""What DETEX's mappers read of each picture: the image side of a CLIP model, run once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..bases import Base
from ..bases.locate import from_hub
from ..errors import ConfigurationError, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED = "playroom-clip"
STANDARD = "openai/clip-vit-large-patch14"  # the text encoder of Stable Diffusion 1.x is this model's other side
_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")


def encoder_for(base: Base) -> str:
    """The image encoder that fits a base, by name."""
    return EMBEDDED if base.facts.folder.startswith("playroom/") else STANDARD


@torch.no_grad()
def image_features(images: Sequence[Image], encoder: str) -> Tensor:
    """Projected image embeddings, of length 1.

    Args:
        images: RGB.
        encoder: "playroom-clip", a folder, or a hub id of a CLIP model; safetensors only.

    Returns:
        (images, features) float32 on the CPU.

    Raises:
        UserError: no such encoder, or it cannot be had.
        ConfigurationError: the model there has no image side of CLIP.
    """
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    folder = encoder_folder(encoder)
    try:
        prepare = AutoImageProcessor.from_pretrained(folder, backend="pil")
        model, report = CLIPVisionModelWithProjection.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"image_encoder {encoder}: {str(error).splitlines()[0]}") from error
    if missing := report["missing_keys"]:
        raise ConfigurationError(
            f"image_encoder {encoder} is no CLIP model with an image side: {len(missing)} of its weights are not there"
        )
    pixels = prepare(images=list(images), return_tensors="pt")["pixel_values"]
    found = torch.cat([model.eval()(pixel_values=part).image_embeds.float() for part in pixels.split(8)])
    return torch.nn.functional.normalize(found, dim=-1)


def encoder_folder(name: str) -> Path:
    """Of a CLIP model: "playroom-clip", a folder, or a hub id. Raises UserError where it cannot be had."""
    if name == EMBEDDED:
        folder = Path(str(resources.files("thisness").joinpath("playroom", "weights", "clip")))
        if not (folder / "config.json").is_file():
            raise UserError(
                f"the embedded image encoder {EMBEDDED} is not in this installation: install the package with its "
                "weights, or name another CLIP model (image_encoder=FOLDER)"
            )
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if "/" not in name or name.startswith((".", "/", "~")):
        raise UserError(f"image_encoder {name!r}: expected {EMBEDDED}, a folder of a CLIP model, or a hub id (a/b)")
    return from_hub(name, _FILES)
