"""Rendered datasets on disk: memory-mapped pictures and masks, labels, and the scenes' seeds; resumable, made in
blocks."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import ConfigurationError
from ..files import write_json
from .captions import ATTRIBUTES, labels
from .render import render
from .world import WORLD, Scene, Split, random_scene

BLOCK = 2048


@dataclass(frozen=True)
class PlayroomData:
    """images: uint8 memmap (N, 3, S, S); masks: uint8 memmap (N, 2, S, S); labels: int8 (N, len(ATTRIBUTES)). Row i
    is scene seed i."""

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    split: Split
    size: int

    def __len__(self) -> int:
        return len(self.images)

    def scene(self, index: int) -> Scene:
        return random_scene(index, self.split)

    def pictures(self, index: Iterable[int]) -> Tensor:
        """float32 (n, 3, S, S) in [-1, 1]."""
        return torch.from_numpy(self.images[list(index)]).float().div_(127.5).sub_(1)


def label_table(scenes: Iterable[Scene]) -> np.ndarray:
    """int8 (N, len(ATTRIBUTES)), columns in the order of `ATTRIBUTES`."""
    return np.array([[labels(scene)[name] for name in ATTRIBUTES] for scene in scenes], dtype=np.int8)


def _render_block(folder: str, block: int, size: int, split: Split, device: str) -> int:
    scenes = [random_scene(i, split) for i in range(block * BLOCK, (block + 1) * BLOCK)]
    made = render(scenes, size, compiled=True if device == "cpu" else None, device=device)
    for name, pixels in (("images", made.images), ("masks", made.masks)):
        channels = pixels.shape[1]
        where = block * BLOCK * channels * size * size
        file = np.memmap(f"{folder}/{name}.u8", np.uint8, "r+", offset=where, shape=tuple(pixels.shape))
        file[:] = pixels.numpy()
        file.flush()
    return block


def _one_thread() -> None:
    torch.set_num_threads(1)


def dataset(
    folder: Path, count: int, *, size: int = 128, split: Split = "train", workers: int = 1, device: str = "cpu"
) -> PlayroomData:
    """Open the dataset in `folder`, rendering whatever is missing of its first `count` scenes (whole blocks; a stop
    loses one block).

    Args:
        folder: where `images.u8`, `masks.u8`, `state.json` live.
        count: pictures, rounded up to whole blocks of 2,048.
        size: side in pixels.
        split: `train` or `held-out`.
        workers: rendering processes on the CPU.

    Raises:
        ConfigurationError: the folder holds another kind of pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blocks = -(-count // BLOCK)
    state_file = folder / "state.json"
    kind = {"size": size, "split": split, "world": WORLD}
    state = json.loads(state_file.read_text()) if state_file.exists() else {**kind, "done": []}
    if any(state[name] != value for name, value in kind.items()):
        found = {name: state[name] for name in kind}
        raise ConfigurationError(
            f"{folder} holds pictures of {found}, but {kind} was asked for: use another folder or delete it"
        )
    for name, channels in (("images", 3), ("masks", 2)):
        path, needed = folder / f"{name}.u8", blocks * BLOCK * channels * size * size
        path.touch()
        if path.stat().st_size < needed:
            with path.open("r+b") as file:
                file.truncate(needed)
    todo = [block for block in range(blocks) if block not in state["done"]]
    if todo:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_one_thread) as pool:
            jobs = [pool.submit(_render_block, str(folder), block, size, split, device) for block in todo]
            for job in tqdm(as_completed(jobs), total=len(jobs), desc=f"rendering {split} pictures", unit=f"x{BLOCK}"):
                state["done"] = sorted([*state["done"], job.result()])
                write_json(state_file, state)
    n = blocks * BLOCK
    images = np.memmap(folder / "images.u8", np.uint8, "r")[: n * 3 * size * size].reshape(-1, 3, size, size)
    masks = np.memmap(folder / "masks.u8", np.uint8, "r")[: n * 2 * size * size].reshape(-1, 2, size, size)
    return PlayroomData(images, masks, label_table(random_scene(i, split) for i in range(n)), split, size)
