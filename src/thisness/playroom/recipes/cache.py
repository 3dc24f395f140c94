"""What a frozen network says of every training picture, computed once, kept on disk as half-precision rows;
resumable in blocks."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...files import sha256, write_json
from ...training.precision import fastest
from ..data import BLOCK, PlayroomData
from .common import Workplace

SHAPES = {
    "latents": (8, 16, 16),
    "subjects": (8, 16, 16),
    "features": (96, 8, 8),
    "flux-latents": (16, 16, 16),
    "flux-features": (96, 8, 8),
}
"""Of one row, by kind; those of "flux-" are of the pictures of the split "usual"."""


def _model_file(kind: str, model: Path) -> Path:
    return model / ("model.safetensors" if kind.endswith("features") else "diffusion_pytorch_model.safetensors")


def _pictures(kind: str, place: Workplace) -> PlayroomData:
    return place.usual_data() if kind.startswith("flux-") else place.train_data()


@torch.no_grad()
def _encode_block(kind: str, place: Workplace, model: str, block: int) -> int:
    if place.device == "cpu":
        torch.set_num_threads(1)
    data = _pictures(kind, place)
    rows = range(block * BLOCK, (block + 1) * BLOCK)
    if kind.endswith("latents"):
        from diffusers import AutoencoderKL

        from .vae import encode

        vae = AutoencoderKL.from_pretrained(model).eval().to(place.device)
        parts = [encode(vae, data.pictures(rows[i : i + 64]).to(place.device))[0] for i in range(0, BLOCK, 64)]
    elif kind == "subjects":
        from diffusers import AutoencoderKL

        from .ezigen import encoded_subjects

        vae = AutoencoderKL.from_pretrained(model).eval().to(place.device)
        parts = [encoded_subjects(vae, data, rows[i : i + 64]) for i in range(0, BLOCK, 64)]
    else:
        from ..models import Reader

        reader = Reader.load(Path(model)).to(place.device)
        with fastest(place.device):
            parts = [
                reader.features(data.pictures(rows[i : i + 64]).to(place.device)).float() for i in range(0, BLOCK, 64)
            ]
    shape = (BLOCK, *SHAPES[kind])
    offset = block * int(np.prod(shape)) * 2
    file = np.memmap(place.root / "data" / f"{kind}.f16", np.float16, "r+", offset=offset, shape=shape)
    file[:] = torch.cat(parts).half().cpu().numpy()
    file.flush()
    return block


def encoded(kind: str, place: Workplace, model: Path, pictures: int | None = None) -> np.ndarray:
    """Rows of `latents` (posterior means, unscaled, N x 8 x 16 x 16), of those of `subjects` cut out, or of the
    teacher's `features` (N x 96 x 8 x 8), float16; of the first `pictures`, or of all. See `SHAPES`.

    Whatever is missing is computed by `place.workers` processes; rows of another model's file are thrown away.
    """
    _pictures(kind, place)
    blocks, shape = -(-min(pictures or place.pictures, place.pictures) // BLOCK), SHAPES[kind]
    path, state_file = place.root / "data" / f"{kind}.f16", place.root / "data" / f"{kind}.json"
    mark = sha256(_model_file(kind, model))
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    if state.get("model") != mark:
        state = {"model": mark, "done": []}
    needed = blocks * BLOCK * int(np.prod(shape)) * 2
    path.touch()
    if path.stat().st_size < needed:
        with path.open("r+b") as file:
            file.truncate(needed)
    todo = [block for block in range(blocks) if block not in state["done"]]
    workers = place.workers if place.device == "cpu" else 1
    if todo:
        with ProcessPoolExecutor(min(workers, len(todo)), mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(_encode_block, kind, place, str(model), block) for block in todo]
            for job in tqdm(as_completed(jobs), total=len(jobs), desc=f"encoding {kind}", unit=f"x{BLOCK}"):
                state["done"] = sorted([*state["done"], job.result()])
                write_json(state_file, state)
    return np.memmap(path, np.float16, "r")[: blocks * BLOCK * int(np.prod(shape))].reshape(-1, *shape)
