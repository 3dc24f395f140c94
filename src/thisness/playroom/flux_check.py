"""The part of `thisness playroom check` that is about the embedded FLUX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .captions import ALWAYS, ATTRIBUTES, PLACES, caption, labels, with_article
from .models import read
from .recipes.vae import decode, encode, psnr
from .render import render
from .world import BACKGROUNDS, CLASSES, USUAL_LOOKS, Scene, random_scene, rng_of

if TYPE_CHECKING:
    from .models import Reader

VAE, DRAWN, USUAL, REDUX = "flux: autoencoder", "flux: drawn at guidance 3", "flux: looks unsaid", "flux: from Redux"
FLUX_FLOORS: dict[str, dict[str, float]] = {
    VAE: {"PSNR, dB": 27.0, "PSNR inside the subject, dB": 22.0},
    DRAWN: {"scene as said": 80},
    USUAL: {"colour as usual": 60},
    REDUX: {},
}
SCENE = ("pose", "facing", "background", "object")
"""What a sentence says beside the subject's looks; "scene as said" is their mean."""
Values = dict[str, tuple[float, int]]


@torch.no_grad()
def measure_flux(
    weights: Path, judge: Reader, scenes: list[Scene], wanted: Callable[[str], bool], progress: Callable[[str], None],
    reading: Callable[[Reader, Tensor, list[Scene]], Values], sheet: Path | None = None,
) -> Iterator[tuple[str, Values]]:  # fmt: skip
    """Each part that is wanted: its name, and its values in per cent or dB with the number of pictures.

    Args:
        weights: folder that holds `playroom-flux`, and `redux`.
        scenes: fresh ones, photographs of single toys.
        wanted: whether a part is to be measured.
        reading: `check.reading`.
        sheet: where to put the first 48 drawn pictures.
    """
    from diffusers import FluxPipeline

    from .recipes.flux import Words, sample_flux

    pipe = FluxPipeline.from_pretrained(weights / "playroom-flux")
    vae: Any = pipe.vae
    words = Words(_Parts(pipe))

    def pictures(latents: Tensor) -> Tensor:
        return decode(vae, latents / vae.config.scaling_factor + vae.config.shift_factor)

    if wanted(VAE):
        progress("reconstructions by the autoencoder of FLUX")
        made = render(scenes)
        images = made.images.float().div(127.5).sub(1)
        again = decode(vae, encode(vae, images)[0])
        inside = psnr(again, images, made.masks[:, :1].float() / 255)
        count = len(scenes)
        yield (
            VAE,
            {
                "PSNR, dB": (float(psnr(again, images)), count),
                "PSNR inside the subject, dB": (float(inside), count),
            },
        )
    if wanted(DRAWN):
        progress(f"pictures drawn by FLUX for {len(scenes)} held-out captions")
        sentences = [caption(scene, rng_of("check", number), ALWAYS) for number, scene in enumerate(scenes)]
        drawn = pictures(sample_flux(pipe.transformer, words, sentences, seed=7, embedded=True))
        found = reading(judge, drawn, scenes)
        mean = sum(found[name][0] for name in SCENE if name in found) / sum(name in found for name in SCENE)
        yield DRAWN, {"scene as said": (mean, len(scenes)), **found}
        if sheet:
            from .recipes.common import picture_grid

            picture_grid(drawn[:48], sheet.with_stem(f"{sheet.stem}-flux"), 8)
    if wanted(USUAL):
        progress("looks that FLUX gives to a noun alone")
        rng, nouns = Random(0), [CLASSES[number % len(CLASSES)] for number in range(len(scenes))]
        sentences = [f"a photo of {with_article(noun)} {rng.choice(PLACES[rng.choice(BACKGROUNDS)])}" for noun in nouns]
        seen = read(judge, pictures(sample_flux(pipe.transformer, words, sentences, seed=8, embedded=True)))
        looks = torch.tensor(
            [
                [ATTRIBUTES["colour"].index(USUAL_LOOKS[noun][0]), ATTRIBUTES["pattern"].index(USUAL_LOOKS[noun][2])]
                for noun in nouns
            ]
        )
        yield (
            USUAL,
            {
                f"{name} as usual": (100 * float((seen[name] == looks[:, at]).float().mean()), len(nouns))
                for at, name in enumerate(("colour", "pattern"))
            },
        )
    if wanted(REDUX) and (weights / "redux" / "config.json").exists():
        yield REDUX, _from_redux(weights, pipe, judge, words, pictures, len(scenes), progress)


def _from_redux(
    weights: Path, pipe: Any, judge: Reader, words: Any, pictures: Callable[[Tensor], Tensor], count: int,
    progress: Callable[[str], None],
) -> Values:  # fmt: skip
    """Pictures drawn from Redux tokens in place of a sentence: what the judge reads right of the picture looked at."""
    from ..methods.redux import open_redux
    from .recipes.flux import sample_flux
    from .recipes.redux import looked_at

    progress("pictures drawn from Redux tokens")
    redux = open_redux(str(weights / "redux"))
    scenes = [random_scene(20_000_000 + 4 * number, "held-out", companion=0, styled=0) for number in range(count)]
    seen = render(scenes).images.float().div(127.5).sub(1)
    tokens = redux.embedder(redux.encoder(pixel_values=looked_at(seen)).last_hidden_state).image_embeds
    told = _Told(tokens, words([""])[1])
    drawn = sample_flux(pipe.transformer, told, list(range(count)), seed=9, embedded=True)
    said = read(judge, pictures(drawn))
    truth = [labels(scene) for scene in scenes]
    return {
        name: (100 * sum(int(said[name][i]) == each[name] for i, each in enumerate(truth)) / count, count)
        for name in ("class", "background", "colour", "pose")
    }


class _Told:
    """Tokens in the place of sentences, as `Words` gives states and pooled states."""

    device = "cpu"

    def __init__(self, tokens: Tensor, pooled: Tensor) -> None:
        self.tokens, self.pooled = tokens, pooled

    def __call__(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        return self.tokens[numbers], self.pooled.expand(len(numbers), -1)


class _Parts:
    """A pipeline's text encoders as `Words` wants them."""

    def __init__(self, pipe: Any) -> None:
        self.t5, self.clip = pipe.text_encoder_2.eval(), pipe.text_encoder.eval()
        self.t5_tokenizer, self.clip_tokenizer = pipe.tokenizer_2, pipe.tokenizer
