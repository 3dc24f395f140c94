"""`thisness playroom check`: are the embedded models as good as they must be? Measured on fresh held-out renders and
prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .captions import ALWAYS, ATTRIBUTES, UNKNOWN, caption
from .data import label_table
from .flux_check import FLUX_FLOORS, measure_flux
from .models import Reader, read
from .recipes.common import WEIGHTS
from .recipes.reader import unambiguous
from .recipes.vae import decode, encode, psnr
from .render import render
from .world import Scene, random_scene, rng_of

FRESH = 10_000_000
"""Scene seeds from here on are used by this check alone."""

FLOORS: dict[str, dict[str, float]] = {
    "vae": {"PSNR, dB": 27.0, "PSNR inside the subject, dB": 22.0},
    "judge on renders": {
        "class": 97,
        "pose": 97,
        "facing": 95,
        "background": 99,
        "accessory": 85,
        "object": 92,
        "colour of plain bodies": 93,
    },
    "judge on reconstructions": {},
    "base at guidance 3": {
        "class": 88,
        "pose": 82,
        "facing": 85,
        "background": 98,
        "colour of plain bodies": 85,
        "object": 70,
        "accessory": 60,
    },
    "clip, zero-shot": {"class": 90, "pose": 80, "background": 97},
    "identity": {"same toy among 20 of its class": 70},
    "toy masks": {"overlap on renders": 75, "overlap on reconstructions": 75},
    **FLUX_FLOORS,
}
SHOWN = (
    "class",
    "pose",
    "facing",
    "background",
    "accessory",
    "object",
    "colour of plain bodies",
    "colour",
    "second colour",
    "pattern",
    "style",
)


@dataclass(frozen=True)
class Measured:
    """One line of the table: `value` in per cent right, or dB; `count` pictures behind it; `floor` None where none
    is set."""

    part: str
    what: str
    value: float
    count: int
    floor: float | None

    @property
    def passed(self) -> bool:
        return self.floor is None or self.value >= self.floor


def _lines(part: str, values: dict[str, tuple[float, int]]) -> list[Measured]:
    return [Measured(part, what, value, count, FLOORS[part].get(what)) for what, (value, count) in values.items()]


def reading(judge: Reader, images: Tensor, scenes: list[Scene]) -> dict[str, tuple[float, int]]:
    """Per cent right and number of pictures per attribute. `accessory` and `object` count only scenes that have one,
    colours only pictures that show them (not pencil sketches)."""
    said, truth = read(judge, images), unambiguous(torch.from_numpy(label_table(scenes)).long())
    column = {name: truth[:, i] for i, name in enumerate(ATTRIBUTES)}
    out = {}
    for name in SHOWN:
        attribute = "colour" if name == "colour of plain bodies" else name
        has = column[attribute] != UNKNOWN
        if name in ("accessory", "object"):
            has &= column[name] != ATTRIBUTES[name].index("none")
        if name == "colour of plain bodies":
            has &= column["pattern"] == 0
        count = int(has.sum())
        if count:
            out[name] = (100 * float((said[attribute][has] == column[attribute][has]).float().mean()), count)
    return out


@torch.no_grad()
def _ruler(weights: Path, count: int, only: str | None, progress: Callable[[str], None]) -> list[Measured]:
    """The encoders of the metrics, where they are there: by attribute, and by identity."""
    from transformers import ViTModel

    from .models import load_clip
    from .recipes.clip import value_vectors, zero_shot
    from .recipes.identity import line_up_scenes, recognised

    lines: list[Measured] = []
    if only != "identity" and (weights / "clip" / "config.json").exists():
        progress("zero-shot reading by playroom-clip")
        clip, tokenizer = load_clip(weights)
        scenes = [random_scene(FRESH + 4 * i, "held-out", companion=0, styled=0) for i in range(count)]
        images = floating(render(scenes).images)
        embeds = torch.cat([clip.get_image_features(pixel_values=x).pooler_output for x in images.split(64)])
        cosines = zero_shot(embeds, value_vectors(clip.text_model, tokenizer), clip.text_projection)
        truth, values = unambiguous(torch.from_numpy(label_table(scenes)).long()), {}
        for name, said in cosines.items():
            wanted = truth[:, list(ATTRIBUTES).index(name)]
            has = (wanted != UNKNOWN) & (wanted < said.shape[1])
            if name != "style":  # all are photos
                right = 100 * float((said.argmax(1)[has] == wanted[has]).float().mean())
                values[name] = (right, int(has.sum()))
        lines += _lines("clip, zero-shot", values)
    if only != "clip, zero-shot" and (weights / "identity" / "config.json").exists():
        progress("toys recognised by playroom-identity")
        encoder = ViTModel.from_pretrained(weights / "identity", add_pooling_layer=False).eval()
        images = floating(render(line_up_scenes(FRESH)).images)
        states = torch.cat([encoder(pixel_values=x).last_hidden_state[:, 0] for x in images.split(64)])
        values = {"same toy among 20 of its class": (100 * recognised(states), len(states))}
        lines += _lines("identity", values)
    return lines


@torch.no_grad()
def _masks(weights: Path, count: int, vae: Any, progress: Callable[[str], None]) -> list[Measured]:
    """Intersection over union, in per cent, of what the finder says with the exact masks of held-out toys."""
    from .finder import PlayroomMasker, overlap

    progress("toys found by the finder")
    masker = PlayroomMasker(weights / "finder")
    values: dict[str, tuple[float, int]] = {}
    made = render([random_scene(FRESH + 4 * i, "held-out", companion=0) for i in range(count)])
    renders, true = floating(made.images), made.masks[:, 0].numpy() / 255
    for kind, images in (("renders", renders), ("reconstructions", decode(vae, encode(vae, renders)[0]).clamp(-1, 1))):
        found = masker.found(images)
        shares = [0.0 if mask is None else overlap(mask, exact) for mask, exact in zip(found, true, strict=True)]
        values[f"overlap on {kind}"] = (100 * sum(shares) / len(shares), len(shares))
    return _lines("toy masks", values)


def floating(images: Tensor) -> Tensor:
    return images.float().div(127.5).sub(1)


def check(
    weights: Path = WEIGHTS,
    *,
    count: int = 256,
    only: str | None = None,
    guidance: float = 3.0,
    steps: int = 25,
    progress: Callable[[str], None] = lambda line: None,
    sheet: Path | None = None,
) -> list[Measured]:
    """Measure the shipped models.

    Args:
        weights: folder with `playroom-sd` and `judge`.
        count: fresh renders, and prompts.
        only: one of the parts of `FLOORS`, to measure that alone.
        guidance, steps: of the pictures drawn with the base.
        progress: told what is being measured.
        sheet: where to put a sheet of the first 48 drawn pictures.

    Returns:
        Lines of the table; a line without a floor always passes.
    """
    from diffusers import StableDiffusionPipeline

    from .recipes.unet import sample_latents

    judge = Reader.load(weights / "judge")
    lines: list[Measured] = []
    if only in (None, "clip, zero-shot", "identity"):
        lines += _ruler(weights, count, only, progress)
    scenes = [random_scene(FRESH + 4 * i, "held-out", companion=0, accessory=0.5, prop=0.5) for i in range(count)]
    plain = [
        random_scene(FRESH + 4 * i, "held-out", companion=0, styled=0, accessory=0.5, prop=0.5) for i in range(count)
    ]
    base = StableDiffusionPipeline.from_pretrained(
        weights / "playroom-sd", safety_checker=None, requires_safety_checker=False
    )
    base.set_progress_bar_config(disable=True)
    if only in (None, "vae", "judge on renders", "judge on reconstructions"):
        progress("renders and reconstructions")
        made = render(scenes)
        images = floating(made.images)
        decoded = decode(base.vae, encode(base.vae, images)[0])
        inside = psnr(decoded, images, made.masks[:, :1].float() / 255)
        lines += _lines(
            "vae",
            {"PSNR, dB": (float(psnr(decoded, images)), count), "PSNR inside the subject, dB": (float(inside), count)},
        )
        lines += _lines("judge on renders", reading(judge, images, scenes))
        lines += _lines("judge on reconstructions", reading(judge, decoded, scenes))
    if only in (None, "toy masks") and (weights / "finder" / "config.json").exists():
        lines += _masks(weights, count, base.vae, progress)
    if only in (None, "base at guidance 3"):
        progress(f"pictures drawn for {count} held-out captions")
        sentences = [caption(scene, rng_of("check", i), ALWAYS) for i, scene in enumerate(plain)]
        latents = sample_latents(
            base.unet, base.text_encoder, base.tokenizer, sentences, steps=steps, guidance=guidance, seed=7
        )
        drawn = decode(base.vae, latents / base.vae.config.scaling_factor)
        lines += _lines("base at guidance 3", reading(judge, drawn, plain))
        if sheet:
            from .recipes.common import picture_grid

            picture_grid(drawn[:48], sheet, 8)
    if only in (None, *FLUX_FLOORS) and (weights / "playroom-flux" / "model_index.json").exists():
        for part, values in measure_flux(
            weights, judge, plain, lambda part: only in (None, part), progress, reading, sheet
        ):
            lines += _lines(part, values)
    return [line for line in lines if only is None or line.part == only]
