"""The weights that ELITE's authors published, pickles of tensors, as a folder that `thisness` reads.

    global_mapper.pt   mapping_I.N.*, mapping_patch_I.N.*, MODULE_attn2_to_k.weight, MODULE_attn2_to_v.weight
    local_mapper.pt    the same names

They are opened with `weights_only=True`, which builds tensors and nothing else. Source: csyxwei/ELITE, train_global.py,
train_local.py, inference_local.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtefactError, raise_all
from ..files import directory, listed, save_tensors, write_json

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = (-1, 4, 8, 12, 16)  # hidden states of the image encoder, in the order of the mappers
IMAGE_ENCODER = "openai/clip-vit-large-patch14"
_NAME = re.compile(r"mapping(_patch)?_\d+\.[01346]\.(weight|bias)|\w+_attn2_to_[kv]\.weight")


def convert_elite(global_mapper: Path, local_mapper: Path | None, out: Path) -> Path:
    """Write config.json and model.safetensors, whole or not at all.

    Args:
        global_mapper, local_mapper: the .pt files; without the second there is no local stream.
        out: folder to write; new, empty, or written by this before.

    Returns:
        `out`.

    Raises:
        ArtefactError: a file is not there, holds more than tensors, or has names that are not ELITE's; all of them.
    """
    tensors = {f"global.{name}": value for name, value in read_pickle(global_mapper).items()}
    if local_mapper is not None:
        tensors |= {f"local.{name}": value for name, value in read_pickle(local_mapper).items()}
    levels = sum(f"global.mapping_{level}.0.weight" in tensors for level in range(len(LEVELS) + 1))
    if levels != len(LEVELS):
        raise ArtefactError(
            f"{global_mapper.name} has mappers of {levels} levels, the published one has {len(LEVELS)}: nothing says "
            "which depths of the image encoder they read"
        )
    config = {
        "method": "elite",
        "levels": list(LEVELS),
        "image_encoder": IMAGE_ENCODER,
        "background": "keep",
        "source": [global_mapper.name, *([local_mapper.name] if local_mapper else [])],
    }
    with directory(out) as building:
        save_tensors(building / "model.safetensors", tensors, {"format": "pt"})
        write_json(building / "config.json", config)
    return out


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, float32, and nothing that could run.

    Raises:
        ArtefactError: not there, not only tensors, or names that are not ELITE's.
    """
    import torch

    if not path.is_file():
        raise ArtefactError(f"{path} is not there")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler says: it is somebody else's file
        line = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ArtefactError(f"{path.name} is not a plain file of tensors ({line}): refused") from None
    if not isinstance(state, dict) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        raise ArtefactError(f"{path.name} holds other things than tensors by name: expected a mapper of ELITE")
    strange = [str(name) for name in state if not _NAME.fullmatch(str(name))]
    problems = [f"{listed(strange)}: no names of ELITE's mappers"] if strange or not state else []
    raise_all(problems, ArtefactError, path.name)
    return {name: tensor.float().contiguous().clone() for name, tensor in state.items()}
