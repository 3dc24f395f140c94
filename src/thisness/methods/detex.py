"""Decoupled Textual Embeddings for Customized Image Generation (DETEX).

Cai et al., AAAI 2024, arXiv 2312.11826. Part of the paper -> function:

    [V], [P_i], [B_i]: the subject, the pose (or view) and the background of picture i    `detex_words.WordTable`
    attribute mappers P_i = M^P(E_I(x_i)), B_i = M^B(E_I(x_i))                            `detex_words.Mapper`
    "photo of a [V] dog with [P_i] pose in [B_i] background"                              `Sentences`
    joint training: with probability gamma the background is filtered, [B_i] left out     `DetexTask.rows`, `filtered`
    L_CA, attention of [P_i] to the mask, of [B_i] to the rest                            `attention_loss`
    L_inst + lambda_pr L_prior + lambda_CA L_CA                                           `tuning.TuningTask.loss`
    keys and values of cross-attention are trained                                        `adapters.replaced`
    inference with [V] alone, or keeping a pose, a background                             `Detex.keeps`, `keeping.kept`

What the paper leaves open is a setting; what was chosen, and why, is in docs/detex.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..adapters import EMBEDDINGS, REPLACED, AdapterHandler, attached_words, replaced_weights
from ..adapters.replaced import by_name, keys_and_values, learned_weights, trainable_copies
from ..adapters.words import start_rows, vocabulary_rows
from ..attention import CaptureMaps, Rows, Where, attached
from ..bases import Base
from ..errors import ImageError, raise_all
from ..images import fit_square
from ..prompt import FilledPrompt, SlotWord, placeholder_tokens
from ..subject import Subject
from ..training.latents import encode_subject
from .detex_features import encoder_for, image_features
from .detex_words import Free, Mapped, Mapper, WordTable
from .registry import register_method
from .templates import SETS, sentences
from .tuning import (
    Batch,
    MeaningSettings,
    PriorSettings,
    TuningMethod,
    TuningSettings,
    TuningTask,
    prior_latents,
)
from .updates import setting

FILLS = {"black": 0.0, "grey": 128.0, "white": 255.0}
RANDOM_FILLS = 6  # of each picture
LARGEST = 0.95  # of a picture, that a mask may cover
ALIVE = frozenset(
    """animal baby bear bird boy bunny calf cat chick chicken child cow deer dog donkey dragon duck elephant fish fox
    frog giraffe girl goat hamster hen horse kitten kitty lamb lion lizard man monkey mouse owl panda parrot penguin
    person pig pony puppy rabbit rat robot rooster sheep squirrel tiger turtle wolf woman zebra""".split()  # noqa: SIM905
)
"""Nouns of what bends, and so has poses; anything else is seen in views."""


@dataclass(frozen=True)
class DetexSettings(MeaningSettings, PriorSettings, TuningSettings):
    """Defaults are those of the preset "lineage": the paper's numbers as the code that it builds on uses them."""

    steps: int = setting(600, "updates of keys, values, the word and the mappers")
    lr: float = setting(4e-5, "learning rate of keys and values, as it is used")
    word_lr: float | None = setting(None, "of the subject's word; lr by default")
    mapper_lr: float | None = setting(None, "of the mappers; lr by default")
    batch_size: int = setting(2, "pictures of the subject in each step")
    prior_batch: int = setting(2, "class pictures in each step")
    clip: float | None = setting(None, "largest norm of the gradient")
    captions: Literal["plain", "object", "bare"] = setting(
        "bare", "'a photo of a ...', the 27 sentences for objects, or 'photo of a ...'"
    )
    start: str = setting("ktn", "rare word whose row the subject's word starts from; a random row if empty")
    keep_start: bool = setting(True, "no gradient through keys and values of the sentence's first token")
    gamma: float = setting(0.5, "probability, for each picture in a batch, that its background is removed")
    fill: Literal["black", "grey", "white", "random"] = setting(
        "black", "what stands in the place of a removed background; random: any of several even colours"
    )
    masked: bool = setting(False, "where the background is removed, count only the loss inside the mask")
    attention_weight: float = setting(0.01, "of the loss on attention maps (lambda_CA); 0: no such loss")
    attention_grid: int | None = setting(None, "side of the maps that it looks at; half of the latents' by default")
    attention_scale: Literal["max", "raw"] = setting("max", "divide each map by its largest value, or take it raw")
    attention_distance: Literal["mse", "l2"] = setting("mse", "mean squared error, or the norm of the difference")
    attention_mask: Literal["area", "nearest"] = setting("area", "how masks are brought to the maps' size")
    attributes: Literal["both", "pose", "background", "neither"] = setting("both", "which words each picture has")
    attribute: Literal["auto", "pose", "view"] = setting(
        "auto", "pose of what bends, view of what does not; by the noun"
    )
    pose_words: str = setting("with {word} {attribute}", "how a picture's pose is said")
    background_words: str = setting("in {word} background", "how its background is said")
    filtered_words: str = setting("", "what is said of a removed background; nothing by default, as in the paper")
    drop_pose: float = setting(
        0.0, "probability that a picture's pose goes unsaid, so that the subject's word learns alone, too"
    )
    pose_start: str = setting("", "words whose mean row poses start near; the attribute's by default")
    background_start: str = setting("background", "words whose mean row backgrounds start near")
    mappers: Literal["shared", "each", "free"] = setting(
        "shared", "one mapper for an attribute, one for each picture, or free rows without mappers"
    )
    centred: bool = setting(
        False, "hold the mean of all pictures' words where they start, so that what all share goes to the subject's"
    )
    pose_input: Literal["original", "filtered"] = setting("original", "what the pose's mapper sees of a picture")
    image_encoder: str = setting("", "CLIP model (folder or hub id); the one that fits the base by default", model=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_prior()
        self.check_meaning()
        wrong = [
            f"{n} {v} must be above 0"
            for n in ("word_lr", "mapper_lr")
            if (v := getattr(self, n)) is not None and v <= 0
        ]
        if not 0 <= self.gamma <= 1:
            wrong.append(f"gamma {self.gamma} must be in 0 ... 1")
        if not 0 <= self.drop_pose < 1:
            wrong.append(f"drop_pose {self.drop_pose} must be in 0 ... 1, below 1")
        if self.attention_weight < 0:
            wrong.append(f"attention_weight {self.attention_weight} must be at least 0")
        if self.flip or self.crops:
            wrong.append(
                "flip and crops must be off: a mirrored or cropped picture has another pose than its word says"
            )
        if self.masked and self.background < 1:
            wrong.append("masked and background both weigh the loss by the mask: set one of them")
        for name, said in (("pose_words", self.pose_words), ("background_words", self.background_words)):
            if said.count("{word}") != 1 or set("{}") & set(said.replace("{word}", "").replace("{attribute}", "")):
                wrong.append(f"{name} {said!r} must have {{word}} once, and no braces but {{word}} and {{attribute}}")
        if wrong:
            raise ValueError("; ".join(wrong))

    def needs_masks(self) -> bool:
        """Whether anything looks at the masks."""
        attention = self.attention_weight > 0 and self.attributes != "neither"
        return self.gamma > 0 or attention or self.pose_input == "filtered"


# --- what the paper's parts compute ---


def attention_loss(
    maps: Tensor, wanted: Tensor, scale: Literal["max", "raw"] = "max", distance: Literal["mse", "l2"] = "mse"
) -> Tensor:
    """How far the attention to a word is from where it should be. 0 where the map is the mask, whatever its scale.

    Args:
        maps: (rows, positions) attention probabilities of one token.
        wanted: (rows, positions) in [0, 1].
        scale: "max": each map is divided by its largest value, through which gradients flow, too.
        distance: "mse", or "l2": the norm of the difference.

    Returns:
        (rows,).
    """
    if scale == "max":
        maps = maps / maps.amax(1, keepdim=True).clamp(min=1e-8)
    error = (maps - wanted).square()
    return error.mean(1) if distance == "mse" else (error.sum(1) + 1e-12).sqrt()


def filtered(subject: Subject, fill: float | np.ndarray) -> Subject:
    """The same pictures without their backgrounds: x m + fill (1 - m). fill: 0 to 255, one value or three."""
    images = []
    for image, mask in zip(subject.images, subject.masks, strict=True):
        assert mask is not None
        pixels, inside = np.asarray(image, np.float32), mask[..., None]
        images.append(Image.fromarray(np.rint(pixels * inside + fill * (1 - inside)).astype(np.uint8)))
    return replace(subject, images=tuple(images))


def fills(settings: DetexSettings) -> list[float | np.ndarray]:
    """What removed backgrounds become, one after the other: a colour, or several random ones."""
    if settings.fill != "random":
        return [FILLS[settings.fill]]
    return list(np.random.default_rng(settings.seed).uniform(0, 255, (RANDOM_FILLS, 3)))


def attribute_of(noun: str, asked: str) -> str:
    """ "pose" or "view". asked: a setting; "auto" goes by the last word of the noun."""
    if asked != "auto":
        return asked
    return "pose" if noun.lower().split()[-1] in ALIVE else "view"


def check_masks(subject: Subject) -> None:
    """Refuse masks that say nothing. (Empty ones no subject has.)

    Raises:
        ImageError: pictures without a mask, or masks that cover all; all of it at once.
    """
    names = subject.files or tuple(f"picture {number}" for number in range(len(subject.images)))
    problems = []
    for name, mask in zip(names, subject.masks, strict=True):
        if mask is None:
            problems.append(
                f"{name} has no mask (white the subject): put {name.rpartition('.')[0] or name}_mask.png beside it"
            )
        elif mask.mean() > LARGEST:
            problems.append(f"the mask of {name} covers {mask.mean():.0%}: leave the background black")
    hint = " (or learn without masks: gamma=0, attention_weight=0)"
    raise_all([*problems[:-1], problems[-1] + hint] if problems else [], ImageError, "detex")


class Sentences:
    """What stands beside picture i, and the words that keep its pose and its background.

    Args:
        base: that reads them; the tokens must be attached.
        subject, settings: of the run.
        word: the subject's.
        tokens: all; the first is the subject's, the others by attribute and picture.
    """

    def __init__(
        self, base: Base, subject: Subject, settings: DetexSettings, word: SlotWord, tokens: tuple[str, ...]
    ) -> None:
        count = len(subject.images)
        said = {"attribute": attribute_of(subject.noun, settings.attribute)}
        parts = [tokens[1 + start : 1 + start + count] for start in range(0, len(tokens) - 1, count)]
        names = _attributes(settings)
        self.tokens = dict(zip(names, parts, strict=True))
        patterns = {"pose": settings.pose_words, "background": settings.background_words}
        self.keeps = {
            name: [patterns[name].replace("{attribute}", said["attribute"]).replace("{word}", token) for token in own]
            for name, own in self.tokens.items()
        }
        opening = sentences(base, SETS[settings.captions], word)
        nothing = [""] * count
        pose = [f" {words}" for words in self.keeps.get("pose", [])] or nothing
        place = [f" {words}" for words in self.keeps.get("background", [])] or nothing
        blank = [f" {settings.filtered_words}" if settings.filtered_words else ""] * count
        dropping = (False, True) if settings.drop_pose else (False,)
        self.texts = {
            (bare, no_pose): [
                [text + p + b for p, b in zip(nothing if no_pose else pose, behind, strict=True)] for text in opening
            ]
            for bare in (False, True)
            for no_pose in dropping
            for behind in [blank if bare else place]
        }

    def of(self, bare: bool, no_pose: bool = False) -> list[list[str]]:
        """By opening and picture. bare: without its background; no_pose: without the words for its pose."""
        return self.texts[bare, no_pose]

    def all(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(text for lists in self.texts.values() for group in lists for text in group))


def _attributes(settings: DetexSettings) -> tuple[str, ...]:
    """Which attributes have words, in the order of their tokens."""
    return {"both": ("pose", "background"), "neither": ()}.get(settings.attributes, (settings.attributes,))


def detex_tokens(name: str, pictures: int, attributes: tuple[str, ...]) -> tuple[str, ...]:
    """ "<rufus>", "<rufus-p-0>", "<rufus-p-1>", ..., "<rufus-b-0>", ...: hyphens, since diffusers expands "_1"."""
    further = [f"<{name}-{attribute[0]}-{number}>" for attribute in attributes for number in range(pictures)]
    return (*placeholder_tokens(name), *further)


# --- the run ---


class DetexTask(TuningTask):
    """Full and filtered pictures under the sentences that describe them, and attention held to the masks.

    Attributes:
        sentences_of: what stands beside each picture.
        capture: attached to the denoiser's attention; None without the loss on it.
        grid: side of the maps.
    """

    sentences_of: Sentences
    capture: CaptureMaps | None
    grid: int

    def on_start(self, device: torch.device) -> None:
        super().on_start(device)
        options, count = self.options, len(self.subject.images)
        if options.gamma > 0:
            own = self.latents
            every = [own]
            every += [encode_subject(self.base, filtered(self.subject, fill)).to(device) for fill in fills(options)]
            mask = None if own.mask is None else torch.cat([own.mask] * len(every))
            pictures = torch.cat([each.picture for each in every])
            mean, std = torch.cat([each.mean for each in every]), torch.cat([each.std for each in every])
            self.latents = replace(own, mean=mean, std=std, mask=mask, picture=pictures)
        self.wanted = None
        if self.capture is not None and self.latents.mask is not None:
            how: dict[str, Any] = {"mode": options.attention_mask}
            self.wanted = F.interpolate(self.latents.mask, (self.grid, self.grid), **how).flatten(1)
        self.positions = {text: self._positions(text) for text in self.sentences_of.all()}
        self.count = count

    def _positions(self, text: str) -> dict[str, int]:
        """Where in a sentence the words for each attribute are."""
        ids = FilledPrompt.plain(text).tokenize(self.base.tokenizer).ids
        known = {
            name: self.base.tokenizer.convert_tokens_to_ids(list(own)) for name, own in self.sentences_of.tokens.items()
        }
        return {name: at for name, numbers in known.items() for at, number in enumerate(ids) if number in numbers}

    def rows(self, rng: torch.Generator) -> Tensor:
        """Pictures first; those that are filtered stand after all that are not."""
        pictures = torch.randint(0, self.count, (self.options.batch_size,), generator=rng)
        gamma = self.options.gamma
        if gamma in (0, 1):  # no draw, so that gamma 0 draws what Custom Diffusion does
            bare = torch.full((len(pictures),), int(gamma))
        else:
            bare = (torch.rand(len(pictures), generator=rng) < gamma).long()
        if self.options.fill == "random":
            bare = bare * torch.randint(1, RANDOM_FILLS + 1, (len(pictures),), generator=rng)
        return pictures + self.count * bare

    def captions(self, rows: Tensor, rng: torch.Generator) -> list[str]:
        said = self.sentences_of
        openings = torch.randint(0, len(said.of(False)), (len(rows),), generator=rng).tolist()
        dropped = torch.zeros(len(rows), dtype=torch.bool)
        if self.options.drop_pose:
            dropped = torch.rand(len(rows), generator=rng) < self.options.drop_pose
        return [
            said.of(row >= self.count, no_pose)[opening][row % self.count]
            for opening, row, no_pose in zip(openings, rows.tolist(), dropped.tolist(), strict=True)
        ]

    def weights(self, rows: Tensor) -> Tensor | None:
        if not self.options.masked or self.latents.mask is None:
            return super().weights(rows)
        mask = self.latents.mask[rows.to(self.latents.mask.device)]
        inside = (rows >= self.count).to(mask).view(-1, 1, 1, 1)
        return inside * mask + (1 - inside)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        if self.capture is not None:
            self.capture.maps.clear()  # previews ran through it, and blocks that are computed twice
        return super().loss(step, rng)

    def further(self, batch: Batch) -> dict[str, Tensor]:
        """L_CA: [P] to the subject on all pictures, [B] to the rest where there is one."""
        if self.capture is None or self.wanted is None:
            return {}
        maps = self.capture.average(self.grid)[: batch.own]  # (own, positions, tokens)
        inside = self.wanted[batch.rows.to(self.wanted.device)]
        places = [self.positions[text] for text in batch.sentences[: batch.own]]
        total = maps.new_zeros(())
        for name, target in (("pose", inside), ("background", 1 - inside)):
            there = [row for row, place in enumerate(places) if name in place]
            if there:
                own = torch.stack([maps[row, :, places[row][name]] for row in there])
                scale, distance = self.options.attention_scale, self.options.attention_distance
                total = total + attention_loss(own, target[there], scale, distance).mean()
        return {"attention": self.options.attention_weight * total}


@register_method("detex")
class Detex(TuningMethod):
    """Learns a word for the subject, words for the pose and the background of each picture, and keys and values."""

    Settings = DetexSettings
    presets = {
        "small": {
            "steps": 400, "lr": 2e-3, "word_lr": 0.01, "mapper_lr": 2e-3, "batch_size": 4, "prior_batch": 4,
            "prior_pictures": 32, "captions": "plain", "start": "", "schedule": "cosine", "clip": 1.0,
            "centred": True, "drop_pose": 0.2, "masked": True,
            "pose_words": "{word}", "background_words": "in the {word}",
            "pose_start": "standing sitting sleeping jumping running waving",
            "background_start": "beach forest snow city grass night kitchen desert mountains room",
        },
        "lineage": {"steps": 600, "lr": 4e-5, "batch_size": 2, "prior_batch": 2},
        "literal": {"steps": 600, "lr": 1e-5, "batch_size": 4, "prior_batch": 4},
    }  # fmt: skip
    handler = AdapterHandler()

    @staticmethod
    def can_keep(settings: DetexSettings) -> frozenset[str]:
        names = _attributes(settings)
        return frozenset((*names, "view") if "pose" in names else names)

    @contextmanager
    def task(self, subject: Subject, base: Base, settings: DetexSettings, progress: bool) -> Iterator[TuningTask]:
        if settings.needs_masks():
            check_masks(subject)
        if len(subject.images) == 1 and progress:
            print(
                "detex: one picture: nothing tells the subject from its pose and background; it will be less itself in "
                "new scenes. Two pictures are much better, 3 to 6 usual",
                file=sys.stderr,
            )
        prior = prior_latents(base, subject, settings, progress)
        attributes = _attributes(settings)
        tokens = detex_tokens(subject.name, len(subject.images), attributes)
        word = SlotWord(f"{tokens[0]} {subject.noun}", subject.noun)
        tables = self._tables(base, subject, settings)
        words = nn.ParameterDict({name: table.word for name, table in tables.items()})
        parts = nn.ModuleDict({name: table.parts for name, table in tables.items()})
        weights = self.weights = trainable_copies(base.denoiser, keys_and_values(base.denoiser))
        groups: list[dict[str, Any]] = [
            {"params": list(weights.values())},
            {"params": list(words.values()), "lr": settings.word_lr or settings.lr},
        ]
        modules: dict[str, nn.Module] = {"weights": weights, "words": words}
        if attributes:
            rate = settings.mapper_lr or settings.lr
            groups.append({"params": list(parts.parameters()), "lr": rate, "weight_decay": 0.0})
            modules["mappers"] = parts
        grid = settings.attention_grid or base.latent_shape(base.resolution, base.resolution)[-1] // 2
        capture = None
        if settings.attention_weight and attributes:
            where = Where(kinds=("cross",), resolutions=(grid,))
            capture = CaptureMaps(where, rows=Rows(), max_resolution=grid, detach=False)
        owner, train = subject.name, {"train": True, "keep_start": settings.keep_start}
        with (
            attached_words(base, tokens, dict(tables.items())),
            replaced_weights(base.denoiser, by_name(weights), owner=owner, **train),
            attached(base.denoiser, capture) if capture is not None else nullcontext(),
        ):
            said = Sentences(base, subject, settings, word, tokens)
            task = DetexTask(
                subject, base, settings, word, tokens, modules, groups, prior=prior, own_sentences=said.all()
            )
            task.sentences_of, task.capture, task.grid = said, capture, grid
            self.tables, self.said = tables, said
            yield task

    def _tables(self, base: Base, subject: Subject, settings: DetexSettings) -> dict[str, WordTable]:
        """The words of each text encoder, as they start."""
        attributes, count = _attributes(settings), len(subject.images)
        features = self._features(base, subject, settings) if attributes and settings.mappers != "free" else {}
        asked = attribute_of(subject.noun, settings.attribute)
        starts = {"pose": settings.pose_start or asked, "background": settings.background_start}
        generator = torch.Generator().manual_seed(settings.seed)
        tables = {}
        with torch.random.fork_rng(devices=[]):  # modules draw weights when they are made, only to be drawn anew
            for encoder, row in start_rows(base, settings.start, settings.seed).items():
                parts: list[nn.Module] = []
                centres: list[Tensor] = []
                for attribute in attributes:
                    start = vocabulary_rows(base, starts[attribute])[encoder].mean(0).cpu()
                    if settings.centred and count > 1:
                        centres.append(start)
                    if settings.mappers == "free":
                        parts.append(Free(count, start, generator))
                        continue
                    seen = features[attribute]
                    number = count if settings.mappers == "each" else 1
                    parts.append(Mapped(seen, [Mapper(seen, start, generator) for _ in range(number)]))
                tables[encoder] = WordTable(nn.Parameter(row), parts, centres).to(base.device)
        return tables

    def _features(self, base: Base, subject: Subject, settings: DetexSettings) -> dict[str, Tensor]:
        """What the mapper of each attribute sees: (pictures, size)."""
        encoder = settings.image_encoder or encoder_for(base)
        found = {}
        for attribute in _attributes(settings):
            bare = attribute == "pose" and settings.pose_input == "filtered"
            shown = filtered(subject, fills(settings)[0]) if bare else subject
            squares = [
                fit_square(image, base.resolution, mask)[0]
                for image, mask in zip(shown.images, shown.masks, strict=True)
            ]
            found[attribute] = image_features(squares, encoder)
        return found

    def tensors(self, task: TuningTask) -> dict[str, dict[str, Tensor]]:
        with torch.no_grad():
            words = {name: table().float().cpu().clone() for name, table in self.tables.items()}
        return {EMBEDDINGS: words, REPLACED: learned_weights(task.base, self.weights)}

    def keeps(self, task: TuningTask) -> dict[str, list[str]]:
        """ "pose" and "view" mean the same words, whichever the sentence says."""
        found = dict(self.said.keeps)
        return {"pose": found["pose"], "view": found["pose"], **found} if "pose" in found else found
