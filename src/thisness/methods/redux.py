"""Redux tokens of a picture: what FLUX.1 Redux says of it in the space of T5's states.

Black Forest Labs, FLUX.1 Redux (2024): SigLIP's last states, through a small network to the text's width. A folder has
the layout of diffusers' `FluxPriorReduxPipeline`: image_encoder, image_embedder, feature_extractor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..bases.locate import from_hub
from ..bases.quiet import quiet
from ..errors import ArtefactError, ConfigurationError
from ..files import sha256
from .zero_shot import embedded_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ..bases import Base

HUB = "black-forest-labs/FLUX.1-Redux-dev"
EMBEDDED = "redux"
_ENCODER, _EMBEDDER, _EXTRACTOR = "image_encoder", "image_embedder", "feature_extractor"
_FILES = [f"{part}/{file}" for part in (_ENCODER, _EMBEDDER) for file in ("config.json", "*.safetensors")]
_FILES.append(f"{_EXTRACTOR}/preprocessor_config.json")


class Redux:
    """SigLIP and Redux's network, frozen, in float32.

    Args:
        encoder: a `SiglipVisionModel`.
        embedder: a `ReduxImageEncoder`.
        extractor: a SigLIP image processor.
        name: as it is written down.
        signature: SHA-256 over both weights.

    Raises:
        ConfigurationError: the encoder and the network do not fit.
    """

    def __init__(self, encoder: Any, embedder: Any, extractor: Any, name: str = "", signature: str = "") -> None:
        given, taken = encoder.config.hidden_size, embedder.redux_up.in_features
        if given != taken:
            raise ConfigurationError(
                f"redux {name}: its image encoder gives features of width {given}, its image embedder takes {taken}"
            )
        self.encoder, self.embedder = (each.eval().requires_grad_(False) for each in (encoder, embedder))
        self.extractor, self.name, self.signature = extractor, name, signature

    @property
    def width(self) -> int:
        """Of a token."""
        return int(self.embedder.redux_down.out_features)

    @property
    def side(self) -> int:
        """Tokens on a side of a picture."""
        return int(self.encoder.config.image_size // self.encoder.config.patch_size)

    @torch.no_grad()
    def tokens(
        self, images: Sequence[Image], masks: Sequence[np.ndarray | None] | None = None, device: Any = None
    ) -> Tensor:
        """What Redux says of pictures, (B, T, width), row by row of patches.

        Args:
            images: of any size; they are squeezed to a square as SigLIP's preparation does.
            masks: (H, W) in 0 ... 1 of a picture: tokens are multiplied by the share of the thing in their patch. None:
                all count.
            device: where it runs for this call; where it is if None.
        """
        pixels = self.extractor(images=[each.convert("RGB") for each in images], return_tensors="pt")["pixel_values"]
        home = self.encoder.device
        try:
            if device is not None:
                self.encoder, self.embedder = self.encoder.to(device), self.embedder.to(device)
            states = self.encoder(pixel_values=pixels.to(self.encoder.device)).last_hidden_state
            found = self.embedder(states).image_embeds
        finally:
            self.encoder, self.embedder = self.encoder.to(home), self.embedder.to(home)
        for at, mask in enumerate(masks or ()):
            if mask is not None:
                share = torch.from_numpy(mask).float()[None, None]
                shares = torch.nn.functional.adaptive_avg_pool2d(share, (self.side, self.side)).flatten()
                found[at] *= shares.to(found)[:, None]
        return found


def standard_redux(base: Base) -> str:
    """What to open for a base where the user names nothing: "" for the embedded one."""
    return "" if base.facts.folder.startswith("playroom/") else HUB


def open_redux(given: str, width: int | None = None) -> Redux:
    """Redux of a folder or a hub repository.

    Args:
        given: "" for the embedded one, a folder, or a hub id.
        width: that its tokens must have: of the base's text.

    Raises:
        ArtefactError: not there, incomplete, or weights without a safetensors file.
        ConfigurationError: parts that do not fit each other or the base.
        UserError: it cannot be had from the hub.
    """
    folder = _folder(given)
    stamp = max(path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors"))
    found = _open(str(folder), stamp, given or f"playroom-{EMBEDDED}")
    if width is not None and found.width != width:
        raise ConfigurationError(
            f"redux {found.name} gives tokens of width {found.width}, and the base's text is {width} wide: give one "
            "that was made for this base (redux=FOLDER)"
        )
    return found


def _folder(given: str) -> Path:
    if not given:
        folder = embedded_folder(EMBEDDED)
        if not (folder / _ENCODER / "config.json").is_file():
            raise ArtefactError(
                "Redux is not embedded in this installation: give one (redux=FOLDER or hub id), or train it with "
                "`thisness playroom train redux`"
            )
    else:
        path = Path(given).expanduser()
        local = path.is_dir() or given.startswith((".", "/", "~"))
        folder = path if local else from_hub(given, _FILES, instead="give a folder, redux=FOLDER")
    missing = [f"{part}/config.json" for part in (_ENCODER, _EMBEDDER) if not (folder / part / "config.json").is_file()]
    missing += [
        f"{part}/*.safetensors" for part in (_ENCODER, _EMBEDDER) if not list((folder / part).glob("*.safetensors"))
    ]
    if not (folder / _EXTRACTOR / "preprocessor_config.json").is_file():
        missing.append(f"{_EXTRACTOR}/preprocessor_config.json")
    if missing:
        raise ArtefactError(
            f"redux {given or folder.name}: {', '.join(missing)} missing: expected the layout of FluxPriorReduxPipeline"
        )
    return folder


@lru_cache(maxsize=2)
def _open(folder: str, changed: int, name: str) -> Redux:
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessorPil, SiglipVisionModel

    where = Path(folder)
    try:
        with quiet():
            encoder, report = SiglipVisionModel.from_pretrained(
                where / _ENCODER, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
            embedder, told = ReduxImageEncoder.from_pretrained(
                where / _EMBEDDER, use_safetensors=True, output_loading_info=True
            )
        extractor = SiglipImageProcessorPil.from_pretrained(where / _EXTRACTOR)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"redux {name}: {str(error).splitlines()[0]}") from error
    if missing := [*report["missing_keys"], *told["missing_keys"]]:
        raise ArtefactError(f"redux {name}: {len(missing)} of its weights are not there, for instance {missing[0]}")
    files = sorted(file for part in (_ENCODER, _EMBEDDER) for file in (where / part).glob("*.safetensors"))
    return Redux(encoder, embedder.float(), extractor, name, sha256("".join(map(sha256, files)).encode()))
