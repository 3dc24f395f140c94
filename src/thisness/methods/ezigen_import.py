"""The released checkpoint of EZIGen: a whole UNet with the adapter among its weights (safetensors of `save_state`).

    BLOCK.adapter.to_q | to_k | to_v .weight, BLOCK.adapter.to_out.0 .weight | .bias    the adapter's attention
    BLOCK.adapter_norm .weight | .bias                                                  its norm
    learnable_weights (blocks,)                                                         g, in the order of running

with BLOCK the first transformer block of each site. All other weights were frozen: they must be the base's own.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import Base
from ..errors import ArtefactError
from ..files import cache_root, listed, load_tensors, save_tensors, sha256, write_json
from .ezigen_adapter import EZIGenAdapter

_OURS = {
    "adapter.to_q.weight": "to_q.weight", "adapter.to_k.weight": "to_k.weight", "adapter.to_v.weight": "to_v.weight",
    "adapter.to_out.0.weight": "to_out.weight", "adapter.to_out.0.bias": "to_out.bias",
    "adapter_norm.weight": "norm.weight", "adapter_norm.bias": "norm.bias",
}  # fmt: skip


def read_released(tensors: dict[str, Tensor], base: Base) -> tuple[EZIGenAdapter, list[str]]:
    """The adapter among the weights of a released UNet, and what else of them is not the base's own.

    Raises:
        ArtefactError: tensors of the adapter are missing or of other shapes: all of them listed.
    """
    left = dict(tensors)
    made = EZIGenAdapter.of(base.denoiser, "official", "first")
    state: dict[str, Tensor] = {}
    missing = []
    for number, name in enumerate(made.names):
        block = name.rpartition(".")[0]
        for theirs, ours in _OURS.items():
            tensor = left.pop(f"{block}.{theirs}", None)
            if tensor is None:
                missing.append(f"{block}.{theirs}")
            else:
                state[f"sites.{number}.{ours}"] = tensor.float()
    scales = left.pop("learnable_weights", None)
    if scales is None or scales.numel() != len(made.names):
        found = "none" if scales is None else str(scales.numel())
        missing.append(f"learnable_weights ({len(made.names)} numbers, found {found})")
    if missing:
        raise ArtefactError(
            f"not a checkpoint of EZIGen for {base.name!r}: missing {listed(missing)}: expected the "
            "safetensors of the UNet of its release"
        )
    assert scales is not None
    state |= {f"sites.{n}.feature_scale": scale for n, scale in enumerate(scales.flatten().float())}
    wrong = [n for n, t in made.state_dict().items() if state[n].shape != t.shape]
    if wrong:
        raise ArtefactError(f"the checkpoint's adapter is for another UNet than {base.name!r}: {listed(wrong)}")
    made.load_state_dict(state)
    own: dict[str, Tensor] = base.denoiser.state_dict()
    leftover = []
    for name, tensor in left.items():
        if name not in own or own[name].shape != tensor.shape:
            leftover.append(f"{name} is not in the base")
        elif not torch.allclose(own[name].float().cpu(), tensor.float(), rtol=1e-2, atol=1e-3):
            leftover.append(f"{name} differs from the base")
    return made, leftover


def import_released(file: str | Path, base: Base, folder: str | Path | None = None) -> Path:
    """Write the adapter of a released checkpoint as a folder of weights: config.json, model.safetensors.

    Args:
        file: the UNet's safetensors.
        base: that it was trained on.
        folder: where to; in the cache, by the file's hash, where None.

    Raises:
        ArtefactError: as `read_released`.
    """
    mark = sha256(file)
    folder = Path(folder) if folder is not None else cache_root() / "ezigen" / f"{mark[:16]}-{base.signature}"
    if (folder / "config.json").is_file():
        return folder
    adapter, leftover = read_released(load_tensors(file), base)
    if leftover:
        warnings.warn(f"{Path(file).name}: {len(leftover)} weights were left over: {listed(leftover)}", stacklevel=2)
    config: dict[str, Any] = {
        "method": "ezigen", "base": base.signature, "base_name": base.name, **adapter.sizes,
        "prompt": "a photo of a {noun}.", "source": mark, "leftover": leftover,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", {n: t.contiguous() for n, t in adapter.state_dict().items()})
    write_json(folder / "config.json", config)
    return folder


def released_names(adapter: EZIGenAdapter) -> dict[str, Tensor]:
    """The weights of an adapter of the residual "official" under the names of the released checkpoint."""
    found: dict[str, Tensor] = {}
    state = adapter.state_dict()
    for number, name in enumerate(adapter.names):
        block = name.rpartition(".")[0]
        found |= {f"{block}.{theirs}": state[f"sites.{number}.{ours}"] for theirs, ours in _OURS.items()}
    found["learnable_weights"] = torch.stack([state[f"sites.{n}.feature_scale"] for n in range(len(adapter.names))])
    return found
