"""Poses of the Playroom: what the sentence asks, what the references show, what the judge reads in the pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ArtefactError
from ..files import read_json

if TYPE_CHECKING:
    from PIL import Image

TRUTH = "truth.json"


def asked_pose(sentence: str) -> str:
    """The pose that a sentence asks for in the Playroom's words; "" where it names none or several."""
    from ..playroom.world import POSES

    found = [pose for pose in POSES if re.search(rf"(?<!\w){re.escape(pose)}(?!\w)", sentence.lower())]
    return found[0] if len(found) == 1 else ""


def reference_poses(folder: Path, files: Sequence[str]) -> tuple[str, ...]:
    """What each reference shows, from the `truth.json` that `thisness playroom subject` writes beside the pictures.

    Args:
        folder: of the pictures.
        files: their names: the first digits of "02.png" are the number of its scene.

    Returns:
        A pose for each file; () where there is no such file.

    Raises:
        ArtefactError: it is there and damaged, or tells nothing of one of the pictures.
    """
    from ..playroom.world import POSES

    path = folder / TRUTH
    if not path.is_file():
        return ()
    truth = read_json(path)
    poses = []
    for file in files:
        try:
            pose = truth["scenes"][int(Path(file).stem)]["toys"][0]["pose"]
        except (KeyError, IndexError, TypeError, ValueError):
            pose = None
        if pose not in POSES:
            raise ArtefactError(f"{path} tells no pose for {file}: render the subject again, or take the file away")
        poses.append(pose)
    return tuple(poses)


def read_poses(images: Sequence[Image.Image]) -> tuple[str, ...]:
    """The pose in each picture as the embedded judge reads it (its accuracy: `thisness playroom check`).

    It knows pictures of the Playroom only.
    """
    import torch

    from ..playroom.captions import ATTRIBUTES
    from ..playroom.models import Reader, read
    from ..playroom.recipes.common import WEIGHTS

    reader = Reader.load(WEIGHTS / "judge")
    pixels = [
        torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1) for image in images
    ]
    found = read(reader, torch.stack(pixels))["pose"]
    return tuple(ATTRIBUTES["pose"][int(index)] for index in found)
