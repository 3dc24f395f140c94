"""What finds the subject in made pictures, opened by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UserError, nearest
from .base import Masker

if TYPE_CHECKING:
    from PIL import Image

NONE, PLAYROOM = "none", "playroom"


def open_masker(name: str, device: str = "cpu") -> Masker | None:
    """What finds the subject in made pictures.

    Args:
        name: "playroom" (embedded, for pictures of the Playroom); a folder or hub id of a SAM or CLIPSeg model; "none"
            or "": made pictures have no masks.
        device: where a model runs; the embedded one runs on the CPU.

    Raises:
        UserError: no such model, or it cannot be had.
    """
    if name in ("", NONE):
        return None
    if name == PLAYROOM:
        from ...playroom.finder import playroom_masker

        return playroom_masker()
    if "/" not in name and (close := nearest(name, (NONE, PLAYROOM))):
        raise UserError(
            f"no masker {name!r}{close}: {PLAYROOM}, {NONE}, or a folder or hub id of a SAM or CLIPSeg model"
        )
    return ModelMasker(name, device)


class ModelMasker:
    """A SAM or CLIPSeg model of transformers, as `thisness masks` uses it."""

    identity: Mapping[str, Any]

    def __init__(self, name: str, device: str = "cpu") -> None:
        from ...masks import load_masker

        self._model = load_masker(name, "thing", device)
        config = self._model.model.config.to_diff_dict()
        self.identity = {
            "masker": self._model.kind,
            "weights": _weights_hash(self._model.model),
            "threshold": self._model.threshold if self._model.kind == "clipseg" else None,
            "size": config.get("vision_config", {}).get("image_size"),
        }

    def __call__(self, image: Image.Image, noun: str) -> np.ndarray | None:
        (mask,) = self._model([image], noun or "thing")
        return mask if mask.any() else None


def _weights_hash(model: Any) -> str:
    import hashlib

    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(key.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
