"""Pictures of the class, made once by the base itself and kept, for prior preservation.

What is kept are the sampler's clean latents: no picture is decoded only to be encoded again. They depend on the base,
the sentence and the sampling alone, so all methods and all subjects of a class share them.

Source: Ruiz et al., DreamBooth (CVPR 2023), section 3.3, eq. 2.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..bases import Base
from ..conditioning import encode, encode_negative
from ..errors import ArtefactError
from ..files import cache_root, directory, load_tensors, save_tensors, verify_directory, write_json
from ..sampling import SamplingOptions, sample
from .progress import Progress

FIRST_SEED = 1_000_000  # away from the seeds that people type, so that no class picture is one of their results


def class_latents(
    base: Base,
    sentence: str,
    count: int,
    options: SamplingOptions | None = None,
    *,
    batch_size: int = 8,
    root: Path | None = None,
    progress: bool = True,
) -> Tensor:
    """Clean latents of class pictures, made where they are not kept yet.

    Args:
        base: with nothing attached.
        sentence: "a photo of a dog".
        count: how many; picture number i is the same, up to rounding, whatever the count.
        options: how they are sampled.
        batch_size: made at once.
        root: where they are kept; `cache_root()` by default.
        progress: say how it goes.

    Returns:
        (count, C, h, w) float32 on the CPU, in the denoiser's scale.
    """
    resolved = (options or SamplingOptions()).resolved(base)
    key = {"base": base.signature, "sentence": sentence, "sampling": asdict(resolved), "first": FIRST_SEED}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = (root or cache_root()) / "class-latents" / name
    kept = _kept(folder)
    if len(kept) >= count:
        return kept[:count]
    conditioning, negative = encode(base, sentence), encode_negative(base)
    made = [kept] if len(kept) else []
    bar = Progress("class pictures", len(kept), count, progress)
    bar.say(f"making {count - len(kept)} of {sentence!r}, once for all subjects of this class")
    try:
        for start in range(len(kept), count, batch_size):
            seeds = [FIRST_SEED + number for number in range(start, min(start + batch_size, count))]
            made.append(sample(base, conditioning, negative, seeds, resolved).float().cpu())
            for _ in seeds:
                bar.step()
    finally:
        bar.close()
    latents = torch.cat(made)
    with directory(folder) as building:
        save_tensors(building / "latents.safetensors", {"latents": latents})
        write_json(building / "key.json", key)
    return latents


def _kept(folder: Path) -> Tensor:
    """What is kept there; no rows if nothing is, or if it is damaged (then it is made anew)."""
    if not folder.is_dir():
        return torch.empty(0)
    try:
        verify_directory(folder)
        return load_tensors(folder / "latents.safetensors")["latents"]
    except ArtefactError:
        return torch.empty(0)
