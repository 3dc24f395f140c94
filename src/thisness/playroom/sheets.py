"""Contact sheets of the world, and plain dataset folders."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..errors import UserError, nearest
from .captions import ALWAYS, caption
from .render import render
from .world import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    FACINGS,
    OBJECTS,
    STYLES,
    Scene,
    Toy,
    change,
    identity,
    poses_of,
    random_scene,
    rng_of,
)


def _pose_scenes(seed: int) -> list[Scene]:
    scenes = []
    for i, noun in enumerate(CLASSES):
        who, poses = identity(seed + i, "held-out", noun), poses_of(noun)
        scenes += [
            Scene((Toy(who, poses[j % len(poses)], FACINGS[(j + 1) % 2]),), BACKGROUNDS[j], seed=seed + j)
            for j in range(6)
        ]
    return scenes


def _word_scenes(seed: int) -> list[Scene]:
    plain = Scene(
        (Toy(identity(seed, "held-out"), poses_of(identity(seed, "held-out").noun)[0], "right"),), "grass", seed=seed
    )
    scenes = [change(plain, background=name) for name in BACKGROUNDS]
    scenes += [change(plain, accessory=name, accessory_colour="red") for name in ACCESSORIES]
    scenes += [change(plain, object=name, object_colour="blue") for name in OBJECTS]
    return scenes + [change(plain, style=name) for name in STYLES]


def contact_sheet(kind: str, out: Path, *, count: int = 48, seed: int = 0, size: int = 128) -> None:
    """Write a sheet as PNG.

    Args:
        kind: `scenes` (random), `poses` (every class, six poses), `words` (one toy, each word of the world once).
        out: the PNG.
        count: pictures of `scenes`.
        seed: first scene or identity.
        size: side of one picture.

    Raises:
        UserError: another kind.
    """
    from .recipes.common import picture_grid

    if kind == "scenes":
        scenes, columns = [random_scene(seed + i) for i in range(count)], 12
    elif kind == "poses":
        scenes, columns = _pose_scenes(seed), 12
    elif kind == "words":
        scenes, columns = _word_scenes(seed), 11
    else:
        raise UserError(
            f"no sheet is called {kind!r}{nearest(kind, ('scenes', 'poses', 'words'))}: use scenes, poses or words"
        )
    picture_grid(render(scenes, size).images.float() / 127.5 - 1, out, min(columns, len(scenes)))


def write_dataset(out: Path, *, count: int, seed: int = 0, split: str = "train", size: int = 128) -> None:
    """Render scenes to PNG files with masks and `metadata.jsonl` (file_name, text, mask files, full ground truth).

    Raises:
        UserError: a split that does not exist.
    """
    from PIL import Image
    from tqdm import tqdm

    from ..files import write_text
    from ..images import save_png

    if split not in ("train", "held-out"):
        raise UserError(f"no split is called {split!r}{nearest(split, ('train', 'held-out'))}: use train or held-out")
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for start in tqdm(range(0, count, 64), desc="rendering", unit="x64", disable=count <= 64):
        numbers = range(seed + start, seed + min(start + 64, count))
        scenes = [random_scene(i, split) for i in numbers]  # type: ignore[arg-type]
        made = render(scenes, size)
        for number, scene, picture, masks in zip(numbers, scenes, made.images, made.masks, strict=True):
            name = f"{number:08d}"
            save_png(Image.fromarray(picture.permute(1, 2, 0).numpy()), out / f"{name}.png")
            for i in range(len(scene.toys)):
                save_png(Image.fromarray(masks[i].numpy()), out / f"{name}_mask{'' if i == 0 else i}.png")
            text = caption(scene, rng_of("dataset", number), ALWAYS)
            lines.append(json.dumps({"file_name": f"{name}.png", "text": text, "truth": asdict(scene)}))
    write_text(out / "metadata.jsonl", "\n".join(lines) + "\n")
