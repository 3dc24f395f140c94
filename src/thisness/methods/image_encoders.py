"""The image side of a CLIP model, opened by name, for methods that read pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..bases.locate import from_hub
from ..bases.quiet import quiet
from ..errors import ArtefactError, ConfigurationError
from .zero_shot import embedded_folder

EMBEDDED = "playroom-clip"


def open_encoder(name: str) -> tuple[Any, Any]:
    """The image side of a CLIP model, frozen, in float32, and what prepares pictures for it.

    Args:
        name: "playroom-clip", a folder, a hub id, or REPOSITORY:FOLDER/IN/IT; safetensors only.

    Raises:
        UserError: no such encoder, or it cannot be had.
        ConfigurationError: the model there has no image side of CLIP.
    """
    from transformers import AutoImageProcessor, CLIPImageProcessorPil, CLIPVisionModelWithProjection

    folder = encoder_folder(name)
    try:
        with quiet():
            model, report = CLIPVisionModelWithProjection.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        if (folder / "preprocessor_config.json").is_file():
            prepare = AutoImageProcessor.from_pretrained(folder, backend="pil")
        else:  # as published with IP-Adapter: CLIP's own numbers
            side = model.config.image_size
            prepare = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"image_encoder {name}: {str(error).splitlines()[0]}") from error
    if missing := report["missing_keys"]:
        raise ConfigurationError(
            f"image_encoder {name} is no CLIP model with an image side: {len(missing)} of its weights are not there"
        )
    return model.eval().requires_grad_(False), prepare


def encoder_folder(name: str) -> Path:
    """Where an image encoder lies. Raises UserError where it cannot be had."""
    if name == EMBEDDED:
        folder = embedded_folder("clip")
        if not (folder / "config.json").is_file():
            raise ArtefactError(
                f"the embedded image encoder {EMBEDDED} is not in this installation: install the package with its "
                "weights, or name another CLIP model (image_encoder=FOLDER)"
            )
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    repository, _, inside = name.partition(":")
    if "/" not in repository or name.startswith((".", "/", "~")):
        raise ConfigurationError(
            f"image_encoder {name!r}: expected {EMBEDDED}, a folder of a CLIP model, a hub id (a/b), or one with a "
            "folder in it (a/b:folder)"
        )
    ahead = f"{inside}/" if inside else ""
    files = [ahead + each for each in ("config.json", "preprocessor_config.json", "*.safetensors")]
    return from_hub(repository, files, instead="give a local folder") / inside
