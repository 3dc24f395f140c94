"""Copying: what came over from the references that nobody asked for: their background, their pose.

High identity with high copying is memorised. Neither value is good or bad by itself: compare with the plain base's,
which has not seen the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...errors import UserError
from ...files import sha256
from ..items import Item, Picture
from .base import Metric, Tools, register_metric
from .patches import PatchMetric, PatchSettings
from .pictures import References
from .views import LEAST

SILHOUETTE = 32  # side of the square to which silhouettes are brought, in pixels


@dataclass(frozen=True)
class CopyBackgroundSettings(PatchSettings):
    """As for patches; `generated=mask` lets only the made picture's background answer."""

    references: References = "best"


@register_metric("copy-background")
class CopyBackground(PatchMetric):
    """How much of a reference's background is found again: patch matching over the patches outside its mask. The best
    over references, for copying one is copying."""

    Settings = CopyBackgroundSettings
    better = "lower"
    part = "background"
    formula = "aggregate over references of mean_i max_j cos(r_i, g_j), i outside the reference's mask"


@dataclass(frozen=True)
class CopyPoseSettings:
    """How poses are compared.

    Args:
        by: "reader": the Playroom's reader names the picture's pose, which counts as copied (1) where a reference has
            it and the sentence asked for another, else 0; None where the references' poses or the one asked for are
            unknown. "silhouette": intersection over union of the masks, each brought to its box; the best over
            references; None without masks.
    """

    by: Literal["reader", "silhouette"] = "reader"


@register_metric("copy-pose")
class CopyPose(Metric):
    """Whether the pose is a reference's."""

    Settings = CopyPoseSettings
    better = "lower"
    formula = "1 where the pose read is a reference's and not the one asked for; or IoU of silhouettes"

    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        super().__init__(name, settings, tools)
        if settings.by == "reader":
            folder = _judge_folder()
            self._reader: Any = None
            self.identity["reader"] = {"model": "playroom judge", "weights": sha256(folder / "model.safetensors")}
        elif tools.masker is not None:
            self.identity["masker"] = dict(tools.masker.identity)

    def score(self, items: Sequence[Item]) -> list[float | None]:
        if self.settings.by == "silhouette":
            return [_same_silhouette(self.tools.made(item), item.references) for item in items]
        values: list[float | None] = [None] * len(items)
        told = [at for at, item in enumerate(items) if item.expected.get("pose") and _poses(item)]
        for at, pose in zip(told, self._read([items[at].picture for at in told]), strict=True):
            asked = items[at].expected["pose"]
            values[at] = float(pose in _poses(items[at]) and pose != asked)
        return values

    def _read(self, pictures: Sequence[Picture]) -> list[str]:
        if not pictures:
            return []
        import torch

        from ...playroom.captions import ATTRIBUTES
        from ...playroom.models import SIZE, Reader, read

        if self._reader is None:
            self._reader = Reader.load(_judge_folder()).to(self.tools.device)
        arrays = []
        for picture in pictures:
            image = picture.image.convert("RGB")
            if image.size != (SIZE, SIZE):
                image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            arrays.append(np.asarray(image))
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        said = read(self._reader, pixels.to(self.tools.device))["pose"]
        return [ATTRIBUTES["pose"][int(index)] for index in said]


def _judge_folder() -> Path:
    folder = Path(str(resources.files("thisness").joinpath("playroom", "weights", "judge")))
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            "copy-pose: the Playroom's reader is not in this installation: install the package with its weights, "
            "or use copy-pose:by=silhouette"
        )
    return folder


def _poses(item: Item) -> set[str]:
    return {truth["pose"] for truth in item.truths if truth.get("pose")}


def _same_silhouette(made: Picture, references: Sequence[Picture]) -> float | None:
    shape = silhouette(made.mask)
    shapes = [each for each in (silhouette(reference.mask) for reference in references) if each is not None]
    if shape is None or not shapes:
        return None
    return max(float((shape & each).sum() / (shape | each).sum()) for each in shapes)


def silhouette(mask: np.ndarray | None, side: int = SILHOUETTE) -> np.ndarray | None:
    """The subject's outline without its place and size: (side, side) bool, its box stretched to the square."""
    if mask is None or not (mask >= LEAST).any():
        return None
    rows, columns = (np.flatnonzero((mask >= LEAST).any(axis)) for axis in (1, 0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    scaled = Image.fromarray(np.asarray(mask, np.float32)).resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(scaled) >= LEAST
