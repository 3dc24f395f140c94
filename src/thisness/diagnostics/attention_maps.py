"""Cross-attention maps of words: where in the picture each word of the sentence is read.

A map's value at a place is the probability with which that place attends to the word, summed over the word's tokens,
averaged over heads, layers, and steps. Looking changes nothing: the pictures are bit for bit the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attention import CaptureMaps, Context, Site, Where, crossing_sites
from ..bases import Base
from ..concept import Concept
from ..errors import ConfigurationError, ImageError
from ..files import write_json
from ..generation import Generation, generate
from ..generation.words import by_slot
from ..prompt import FilledPrompt, Prompt, SlotWord
from ..sampling import SamplingOptions, Step, make_scheduler
from .concentration import Concentration, concentration, otsu, shrink
from .words import Word, choose_words, subject_positions

FINEST = 32  # side of the largest grid that is looked at without being asked for
MASKS = {
    "given": "the mask file",
    "otsu": "the map of the first placeholder's words, over the threshold of Otsu",
    "none": "no mask: the sentence has no placeholder, or its map is flat",
}


@dataclass(frozen=True, eq=False)
class PictureMaps:
    """Maps of one picture.

    Args:
        seed: of the picture.
        maps: (words, side, side).
        mask: (side, side), the share of each cell inside; None where there is none.
        mask_from: key of `MASKS`.
        numbers: for each word.
    """

    seed: int
    maps: np.ndarray
    mask: np.ndarray | None
    mask_from: str
    numbers: tuple[Concentration, ...]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Maps of all pictures.

    Args:
        words: in the order of `PictureMaps.maps`.
        pictures: one for each seed.
        generation: the pictures themselves.
        sites: names of the layers that were averaged.
        steps: first and last step that were averaged, from 0, and how many there are.
    """

    words: tuple[Word, ...]
    pictures: tuple[PictureMaps, ...]
    generation: Generation
    sites: tuple[str, ...]
    steps: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data: the numbers, not the maps."""
        record = self.generation.record
        return {
            "format": "thisness-attention",
            "version": 1,
            "prompt": record["prompt"],
            "sentence": record["sentence"],
            "base": record["base"],
            "concepts": record["concepts"],
            "side": int(self.pictures[0].maps.shape[1]),
            "sites": list(self.sites),
            "steps": {"first": self.steps[0], "last": self.steps[1], "of": self.steps[2]},
            "maps": "probability of the word, summed over its tokens, averaged over heads, layers and steps",
            "numbers": "inside: of the map divided by its sum; inside_stretched: of the map stretched to 0 ... 1 first",
            "words": [{"word": word.text, "tokens": list(word.positions)} for word in self.words],
            "pictures": [
                {
                    "seed": each.seed,
                    "mask": MASKS[each.mask_from],
                    "area": None if each.mask is None else float(each.mask.mean()),
                    "words": [
                        {
                            "word": word.text,
                            "probability": float(values.mean()),
                            **asdict(number),
                            "made_the_mask": each.mask_from == "otsu" and word.of_subject,
                        }
                        for word, values, number in zip(self.words, each.maps, each.numbers, strict=True)
                    ],
                }
                for each in self.pictures
            ],
        }

    def save(self, folder: Path) -> list[Path]:
        """Write `attention.png`, `attention.json`, the maps (`maps.safetensors`) and the pictures.

        Returns:
            The paths of the first three.
        """
        from ..files import save_tensors
        from ..images import save_png
        from .attention_sheet import draw

        self.generation.save(folder / "pictures")
        paths = [folder / name for name in ("attention.png", "attention.json", "maps.safetensors")]
        save_png(draw(self), paths[0])
        write_json(paths[1], self.to_dict())
        tensors = {f"seed-{each.seed}": torch.from_numpy(each.maps.astype(np.float32)) for each in self.pictures}
        save_tensors(paths[2], tensors, {"words": "\n".join(word.text for word in self.words)})
        return paths


class WordMaps(CaptureMaps):
    """Maps of some words only: a token's worth of memory for each, where all tokens would take 77."""

    def __init__(self, groups: Sequence[Sequence[int]], where: Where, max_resolution: int) -> None:
        """
        Args:
            groups: positions of each word's tokens, whose probabilities are summed.
            where: layers and steps.
            max_resolution: as for `CaptureMaps`.
        """
        super().__init__(where, max_resolution=max_resolution)
        self.groups = [list(group) for group in groups]

    def probs(self, site: Site, probs: Tensor, context: Context) -> Tensor:
        super().probs(site, probs, context)
        key = (context.step, site.name)
        self.maps[key] = torch.stack([self.maps[key][..., group].sum(-1) for group in self.groups], -1).float()
        return probs


@torch.no_grad()
def attention_maps(
    base: Base,
    prompt: str,
    *,
    words: Sequence[str] = (),
    concept: Concept | Mapping[str, Concept] | None = None,
    noun: str = "",
    mask: np.ndarray | None = None,
    resolution: int | None = None,
    layers: Sequence[int] | None = None,
    during: tuple[int, int] | None = None,
    adjust: Sequence[Any] = (),
    interventions: Sequence[Any] = (),
    seeds: Sequence[int] = (0,),
    options: SamplingOptions | None = None,
    batch_size: int = 4,
    progress: bool = False,
) -> AttentionMaps:
    """Make pictures and look where each word is read.

    Args:
        base: the model.
        prompt: "a {subject} sleeping"; a sentence without placeholder has no subject and no mask of its own.
        words: as for `choose_words`.
        concept: what was learned; one, or by placeholder.
        noun: stands for the placeholder where there is no concept.
        mask: (H, W) in [0, 1] of the pictures' size, 1 the subject; by default the subject's own map, thresholded.
        resolution: side of the grids that are averaged, at the size that the model was trained at; all of up to 32 by
            default, brought to the largest.
        layers: numbers of the cross-attention layers in order of running; all by default.
        during: first and last step, from 0; all by default.
        adjust, interventions: what the pictures are made with, as for `generate`; these act before the look.
        seeds: a picture for each.
        options, batch_size, progress: as for `generate`.

    Raises:
        UserError: words, mask or numbers do not fit; before anything is computed.
    """
    options = (options or SamplingOptions()).resolved(base)
    filled, asked = _filled(prompt, concept, noun)
    count = _steps(base, options)
    first, last = during or (0, count - 1)
    if not 0 <= first <= last < count:
        raise ConfigurationError(f"steps {first} to {last}: this run has the steps 0 to {count - 1}")
    where, sites, finest = _where(base, resolution, layers, range(first, last + 1))
    if mask is not None:
        _check_mask(mask, options)
    with _attached(concept, base, filled):
        spans = filled.tokenize(base.tokenizer)
    chosen = choose_words(spans, words)
    subject = subject_positions(spans)
    groups = [word.positions for word in chosen] + ([subject] if subject else [])
    capture = WordMaps(groups, where, max_resolution=_most(base, options, finest))
    rows: list[Tensor] = []

    def collect(step: Step) -> None:
        if step.number == step.count:
            rows.extend(capture.average().cpu())
            capture.maps.clear()

    made = generate(
        base,
        asked,
        concept=concept,
        adjust=adjust,
        interventions=[*interventions, capture],
        seeds=seeds,
        options=options,
        batch_size=batch_size,
        progress=progress,
        on_step=collect,
    )
    pictures = tuple(
        _measured(int(seed), _grids(row), len(chosen), mask)
        for seed, row in zip(made.record["seeds"], rows, strict=True)
    )
    return AttentionMaps(chosen, pictures, made, sites, (first, last, count))


def _filled(prompt: str, concept: Concept | Mapping[str, Concept] | None, noun: str) -> tuple[FilledPrompt, str]:
    """The sentence with its places, and what `generate` is asked: its placeholder where a concept fills it."""
    parsed = Prompt(prompt)
    if concept is None and noun and parsed.slots:
        filled = parsed.fill({slot: SlotWord(noun, noun) for slot in parsed.slots})
        return filled, filled.text
    return parsed.fill({slot: each.word for slot, each in by_slot(parsed, concept).items()}), prompt


def _attached(concept: Concept | Mapping[str, Concept] | None, base: Base, filled: FilledPrompt) -> Any:
    """Its words are known to the tokenizer for the `with`."""
    from contextlib import ExitStack

    stack = ExitStack()
    for each in {id(each): each for each in by_slot(Prompt(filled.template), concept).values()}.values():
        stack.enter_context(each.attach(base))
    return stack


def _steps(base: Base, options: SamplingOptions) -> int:
    """How many steps the scheduler really takes: some take more than they are asked for."""
    scheduler = make_scheduler(base, options.scheduler)
    scheduler.set_timesteps(options.steps)
    return len(scheduler.timesteps)


def _where(
    base: Base, resolution: int | None, layers: Sequence[int] | None, steps: range
) -> tuple[Where, tuple[str, ...], int]:
    """The choice, the names of its layers, and the side of the finest grid."""
    crossing = crossing_sites(base.denoiser, "a map of words")
    sides = sorted({site.resolution for site in crossing})
    if resolution is not None and resolution not in sides:
        raise ConfigurationError(f"no layer at resolution {resolution}: this base has {', '.join(map(str, sides))}")
    known = [site.layer for site in crossing]
    if wrong := [layer for layer in layers or () if layer not in known]:
        raise ConfigurationError(f"no cross-attention layer {wrong[0]}: this base has 0 to {max(known)}")
    wanted = [resolution] if resolution is not None else [side for side in sides if side <= FINEST] or sides[:1]
    where = Where(kinds=("cross",), layers=layers, resolutions=wanted, steps=steps)
    chosen = [site for site in crossing if where.at(site)]
    if not chosen:
        raise ConfigurationError(
            f"no layer of {', '.join(map(str, layers or ()))} has a grid of {wanted}: choose others"
        )
    return where, tuple(site.name for site in chosen), max(site.resolution for site in chosen)


def _most(base: Base, options: SamplingOptions, finest: int) -> int:
    """The side that the finest grid has in pictures of this size."""
    trained = base.denoiser.config.sample_size
    trained = trained if isinstance(trained, int) else min(trained)
    height, width = options.height or base.resolution, options.width or base.resolution
    latent = max(base.latent_shape(height, width)[-2:])
    return max(finest, -(-finest * latent // trained))


def _check_mask(mask: np.ndarray, options: SamplingOptions) -> None:
    found, expected = f"{mask.shape[1]}x{mask.shape[0]}", f"{options.width}x{options.height}"
    if found != expected:
        raise ImageError(f"the mask is {found} but the pictures are {expected}: pass a mask of the pictures' size")


def _grids(row: Tensor) -> np.ndarray:
    """(side*side, words) -> (words, side, side)."""
    side = round(len(row) ** 0.5)
    return row.T.reshape(-1, side, side).double().numpy()


def _measured(seed: int, grids: np.ndarray, words: int, given: np.ndarray | None) -> PictureMaps:
    """grids: of the words, then of the subject where there is one."""
    maps = np.ascontiguousarray(grids[:words])
    mask, origin = None, "none"
    if given is not None:
        mask, origin = shrink(given, maps.shape[1]), "given"
    elif len(grids) > words and np.ptp(grids[-1]) > 0:
        mask, origin = (grids[-1] > otsu(grids[-1])).astype(np.float64), "otsu"
    return PictureMaps(seed, maps, mask, origin, tuple(concentration(each, mask) for each in maps))
