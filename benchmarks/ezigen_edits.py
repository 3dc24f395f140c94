"""EZIGen's editing on scenes of the Playroom: another toy of the same class stands there, and is replaced.

Foreground: cosine of `playroom-identity` of what is inside of the mask to the reference cut out (as DreamEditBench).
Background: the same outside of the mask to the source; and how far its pixels are from the source's, in levels of 255.
Blend: how much stronger the edge along the mask is than in the source, in levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from claims import HEAD, NONE, NOT_SEEN, SEEN, line, over_toys
from harmonizing_looks import reference
from pages import save_figure
from PIL import Image

VARIANTS = ("source", "pasted", "single", "edited", "renoised")
SAID = {
    "source": "the scene as it was", "pasted": "the reference's cut-out pasted into the mask's box",
    "single": "edited, a single pass", "edited": "edited (inverted again in each loop)",
    "renoised": "edited (noise in the loops)",
}  # fmt: skip
NUMBERS = {
    "foreground": "foreground identity", "background": "background kept (cos)", "outside": "outside, levels off",
    "beyond": "beyond the feather, most levels off", "seam": "edge along the mask, levels more than the source",
}  # fmt: skip
EDGE, BLENDED = 4, 1.0
"""Pixels by which the mask is wider than the toy; levels that an edge may be stronger and still be called blended."""


class Place(NamedTuple):
    """A scene (RGB) and what of it is replaced, (H, W) float32 of 0 and 1."""

    scene: Image.Image
    mask: np.ndarray


def place(name: str, size: int = 128) -> Place:
    """The scene for a toy: another held-out toy of its class somewhere."""
    from thisness.playroom.render import render
    from thisness.playroom.subjects import held_out_identity, subject_index
    from thisness.playroom.world import BACKGROUNDS, FACINGS, Scene, Toy, poses_of, rng_of

    other = held_out_identity(subject_index(name) + 10)
    rng = rng_of("edit-scene", name)
    toy = Toy(other, rng.choice(poses_of(other.noun)), rng.choice(FACINGS))
    made = render([Scene((toy,), rng.choice(BACKGROUNDS), seed=rng.randrange(1 << 30))], size)
    inside = made.masks[0, 0].numpy() > 127
    return Place(Image.fromarray(made.images[0].permute(1, 2, 0).numpy()), wider(inside, EDGE).astype(np.float32))


def wider(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask of bool, so many pixels wider."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def pasted(where: Place, image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The cut-out of a reference, stretched to the mask's box, in the scene."""
    boxes = []
    for cover in (mask, where.mask):
        rows, columns = (np.flatnonzero((cover > 0.5).any(axis)) for axis in (1, 0))
        boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    (own, there), made = boxes, where.scene.copy()
    size = (there[2] - there[0], there[3] - there[1])
    alpha = Image.fromarray((mask * 255).astype(np.uint8)).crop(own).resize(size, Image.Resampling.BILINEAR)
    made.paste(image.crop(own).resize(size, Image.Resampling.BICUBIC), there[:2], alpha)
    return made


def edge(image: Image.Image, mask: np.ndarray) -> float:
    """Mean step of colour across the mask's border, in levels."""
    pixels, inside = np.asarray(image, np.float32), mask > 0.5
    steps = []
    for axis in (0, 1):
        apart = np.abs(np.diff(pixels, axis=axis)).mean(-1)
        steps.append(apart[np.diff(inside.astype(np.int8), axis=axis) != 0])
    return float(np.concatenate(steps).mean())


def numbers(made: Image.Image, where: Place, feathered: np.ndarray) -> dict[str, float]:
    """What pixels say; `foreground` and `background` are `similarities`."""
    apart = np.abs(np.asarray(made, np.float32) - np.asarray(where.scene, np.float32)).mean(-1)
    return {
        "outside": float(apart[where.mask < 0.5].mean()),
        "beyond": float(apart[feathered == 0].max()) if (feathered == 0).any() else 0.0,
        "seam": edge(made, where.mask) - edge(where.scene, where.mask),
    }


def similarities(made: Image.Image, where: Place, name: str, metrics: Sequence[Any]) -> dict[str, float | None]:
    from thisness.evaluation.items import Item, Picture

    subject = reference(name)
    references = (Picture(subject.images[0], subject.masks[0]),)
    source = Picture(where.scene, where.mask)
    item = Item("", "", name, "", 0, Picture(made), references, subject.noun, f"a {subject.noun}", source=source)
    return {said: metric.score([item])[0] for said, metric in zip(("foreground", "background"), metrics, strict=True)}


def run(
    toys: Sequence[str], seeds: Sequence[int], out: Path, settings: Mapping[str, Any], steps: int | None, base: Any
) -> dict[str, Any]:
    """By toy, variant and seed the numbers; pictures and numbers that are there already are not made again."""
    from thisness.evaluation.metrics import make_metrics
    from thisness.files import read_json, write_json
    from thisness.images import save_png
    from thisness.methods.ezigen_editing import edit, feathered
    from thisness.methods.zero_shot import read_subject
    from thisness.sampling import SamplingOptions

    out.mkdir(parents=True, exist_ok=True)
    file = out / "edits.json"
    known: dict[str, Any] = read_json(file) if file.is_file() else {}
    encoder = "encoder=playroom-identity,fill=grey"
    metrics = make_metrics([f"edit-foreground:{encoder}", f"edit-background:{encoder}"])
    for name in toys:
        where, subject = place(name), reference(name)
        save_png(where.scene, out / f"{name}-scene.png")
        save_png(Image.fromarray((where.mask * 255).astype(np.uint8)), out / f"{name}-mask.png")
        save_png(subject.images[0], out / f"{name}-reference.png")
        for variant in VARIANTS:
            missing = [seed for seed in seeds if str(seed) not in known.get(name, {}).get(variant, {})]
            if not missing:
                continue
            soft = feathered(where.mask, 0.02 * base.resolution)
            if variant in ("source", "pasted"):
                cover = subject.masks[0]
                assert cover is not None
                one = where.scene if variant == "source" else pasted(where, subject.images[0], cover)
                images = [one] * len(missing)
            else:
                told = {**settings, **({"min_loops": 0, "max_loops": 0} if variant == "single" else {})}
                concept = read_subject("ezigen", subject, base, settings=told)
                made = edit(
                    base, where.scene, where.mask, concept, seeds=missing, options=SamplingOptions(steps=steps),
                    reinvert=variant != "renoised",
                )  # fmt: skip
                images, soft = made.images, made.placement.feathered
            for seed, image in zip(missing, images, strict=True):
                save_png(image, out / f"{name}-{variant}-{seed}.png")
                found = numbers(image, where, soft) | similarities(image, where, name, metrics)
                known.setdefault(name, {}).setdefault(variant, {})[str(seed)] = found
            write_json(file, known)
    return known


def by_toy(found: Mapping[str, Any], variant: str, number: str) -> list[float]:
    """Means over seeds."""
    lists = [
        [each[number] for each in by.get(variant, {}).values() if each[number] is not None] for by in found.values()
    ]
    return [fmean(values) for values in lists if values]


def section(out: Path, figure: Path) -> list[str]:
    """Lines of Markdown; the figure is written."""
    from thisness.evaluation.statistics import interval
    from thisness.files import read_json
    from thisness.images import Tile, sheet

    file = out / "edits.json"
    if not file.is_file():
        return []
    found = read_json(file)
    seeds = len(next(iter(next(iter(found.values())).values())))
    text = [
        f"## Editing: {len(found)} scenes, {seeds} seed{'s' * (seeds > 1)}",
        "",
        str(__doc__).split("\n\n", 1)[1].strip(),
        "",
    ]
    text += ["| | " + " | ".join(NUMBERS.values()) + " |", "|---" * (len(NUMBERS) + 1) + "|"]
    for variant in VARIANTS:
        cells = []
        for number in NUMBERS:
            values = by_toy(found, variant, number)
            low, high = interval(values)
            span = "" if low is None else f" ({low:.2f} to {high:.2f})"
            cells.append(f"{fmean(values):.2f}{span}" if values else "-")
        text.append(f"| {SAID[variant]} | {' | '.join(cells)} |")
    gained = [a - b for a, b in zip(*(by_toy(found, v, "foreground") for v in ("edited", "source")), strict=True)]
    loops = [a - b for a, b in zip(*(by_toy(found, v, "foreground") for v in ("edited", "single")), strict=True)]
    most = max(by_toy(found, "edited", "beyond"), default=None)
    exact = NONE if most is None else SEEN if most == 0 else NOT_SEEN
    seams = [-value for value in by_toy(found, "edited", "seam")]
    text += ["", *HEAD]
    text += [
        line("the subject is drawn in", "foreground, edited - source: higher", "", over_toys(gained, "higher")),
        line("loops bring identity", "foreground, edited - single: higher", "", over_toys(loops, "higher")),
        f"| the background is intact | beyond the feather no pixel differs | stated | {most} | - | **{exact}** |",
        line(
            "the edge is blended", f"source - edited, edge along the mask: kept (margin {BLENDED:g} level)", "",
            over_toys(seams, "kept", BLENDED),
        ),
    ]  # fmt: skip
    rows = []
    for name in list(found)[:6]:
        first = next(iter(next(iter(found[name].values()))))
        tiles = [
            Tile(Image.open(out / f"{name}-{end}.png").convert("RGB"), end) for end in ("reference", "scene", "mask")
        ]
        tiles += [Tile(Image.open(out / f"{name}-{v}-{first}.png").convert("RGB"), v) for v in VARIANTS[1:]]
        rows.append(tiles)
    save_figure(sheet(rows, title="Another toy of the same class is replaced", tile=112), figure)
    return [*text, "", f"![edits]({figure.parent.name}/{figure.name})", ""]
