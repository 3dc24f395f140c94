"""OminiControl and AlignGen on pairs: what is read stands beside what is drawn, as tokens of FLUX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..bases import Base
from ..errors import ConfigurationError, PromptError
from ..files import listed, save_tensors, write_json
from ..subject import Subject
from .aligngen_names import Pattern, names_of
from .aligngen_training import NEUTRAL, Batch, FlowTraining, Trainables, TrainingConfig, weights_config
from .ip_adapter import Background, shown
from .ominicontrol import flux, reference_latents
from .pair_training import PairSettings, PairTraining, Row, base_latents, mask_at, picture_size, swapped
from .pairs import Pair, Pairs
from .redux import open_redux, standard_redux
from .updates import setting
from .zero_shot import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN = "a photo of a {noun}"


@dataclass(frozen=True)
class ReferencePairSettings(PairSettings):
    """How OminiControl is trained; its numbers are those of the official code where it has any."""

    steps: int = setting(15_000, "updates of what is trained")
    clip: float | None = setting(0.5, "largest norm of the gradient")
    rank: int = setting(16, "of the low-rank weights")
    layers: Literal["full", "qk"] = setting("full", "of the transformer that get low-rank weights")
    mode: Literal["joint", "independent"] = setting("joint", "joint: the reference reads text and picture, too")
    drop: float = setting(0.1, "share of the rows whose reference is a black picture")
    drop_text: float = setting(0.1, "share of the rows without text")
    shift: str = setting("-w", "where the reference stands: -w, +w, -h, +h, index, or ROWS,COLUMNS in tokens")
    level: float = setting(0.0, "mean of the logit of the noise level: above 0 more noisy ones")
    background: Background = setting("keep", "of the picture that is read: keep (the paper), or a colour in its place")
    guidance: float = setting(1.0, "what a guided model (dev) reads as its guidance")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rank <= 1024:
            raise ValueError(f"rank {self.rank} must be in 1 ... 1024")
        try:
            _ = self.config
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @property
    def config(self) -> TrainingConfig:
        """The same for the loss."""
        return TrainingConfig.ominicontrol(**self.shared)

    @property
    def shared(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("mode", "drop", "drop_text", "shift", "level", "guidance")}


@dataclass(frozen=True)
class AlignGenPairSettings(ReferencePairSettings):
    """How AlignGen is trained."""

    drop: float = setting(0.5, "share of the rows whose reference is a black picture; Redux tokens stay")
    drop_text: float = setting(0.0, "share of the rows without text")
    star: bool = setting(True, "S* in front of the name")
    star_lr: float = setting(1e-3, "learning rate of S*, in units of T5's table")
    dem: Literal["lite", "full", "none"] = setting("lite", "size of the deviation extraction module")
    dem_lr: float = setting(5e-5, "its learning rate")
    selective: bool = setting(True, "only S* and the name, of the text, read the reference")
    replace_all: bool = setting(False, "the module's outputs take the place of the name's tokens, too")
    names: Literal["all", "own"] = setting("all", "all: the name is also its last word, or its class; own: the noun")
    word: str = setting(NEUTRAL, "S* starts from it")
    redux: str = setting("", "a folder or hub id of Redux; the base's own")

    @property
    def config(self) -> TrainingConfig:
        switches = {"star": self.star, "dem": self.dem != "none", "selective": self.selective}
        return TrainingConfig(**self.shared | switches, replace_all=self.replace_all)


class OminiControlOnPairs(PairTraining):
    """Rows: "target" (C, h, w), "mask" (1, h, w), "reference" (C, h, w), with the module "redux" (T, width)."""

    Settings: ClassVar[type[PairSettings]] = ReferencePairSettings
    masks: ClassVar[bool] = False

    @classmethod
    def check(cls, method: str, base: Base) -> None:
        flux(base, method)

    def __init__(self, method: str, base: Base, settings: Any) -> None:
        self.method, self.base, self.options = method, flux(base, method), settings
        config: TrainingConfig = settings.config
        self.redux = None
        if config.dem:
            self.redux = open_redux(settings.redux or standard_redux(base), base.parts["text_encoder_2"].config.d_model)
        self.trainables = Trainables.fresh(
            self.base, settings.rank, settings.layers, dem=settings.dem if config.dem else None, star=config.star,
            seed=settings.seed, word=getattr(settings, "word", NEUTRAL),
        )  # fmt: skip
        self.training = FlowTraining(self.base, self.trainables, config)

    def check_data(self, data: Sequence[Pairs]) -> None:
        super().check_data(data)
        same = [each.name for each in data if each.same]
        if same and self.options.background == "keep":
            raise ConfigurationError(
                f"{listed(same)}: the picture that is read is the one that is drawn, so {self.method} would learn to "
                "copy it: give pictures of a thing in several scenes, or --set background=white (and read so later)"
            )

    def key(self) -> dict[str, Any]:
        return {
            "method": "references", "background": self.options.background,
            "redux": self.redux.signature if self.redux is not None else "",
        }  # fmt: skip

    def encode(self, pair: Pair) -> dict[str, Tensor]:
        drawn = base_latents(self.base, pair.picture)
        image, mask = pair.looks[0]
        read = shown(Subject("read", pair.nouns[0], (image,), (mask,)), self.options.background)
        size = picture_size(self.base, self.options)
        found = {
            "target": drawn, "mask": mask_at(pair, drawn), "reference": reference_latents(read, self.base, size),
        }  # fmt: skip
        self.sentence(pair.caption, pair.nouns[0], "", Random(0))
        if self.redux is not None:
            found["redux"] = self.redux.tokens([read], device=self.base.device)[0]
        return found

    def sentence(self, caption: str, noun: str, category: str, rng: Random) -> tuple[str, str]:
        """A caption, and the name of the thing as it stands in it; a plain sentence where the caption does not name it.

        Raises:
            PromptError: it is too long.
        """
        if not self.options.config.extended:
            return caption, ""
        try:
            pattern = Pattern.of(caption, noun)
        except PromptError:
            pattern = Pattern.of(PLAIN.replace("{noun}", noun), noun)
        names = names_of(noun, category) if self.options.names == "all" else (noun,)
        text, name = pattern.drawn(names, rng)
        self.training.check(text, name)
        return text, name

    def modules(self) -> dict[str, nn.Module]:
        return self.trainables.parts()

    def parameter_groups(self) -> list[dict[str, Any]]:
        rates = {"lora": self.options.lr}
        rates |= {part: getattr(self.options, f"{part}_lr", 0.0) for part in ("dem", "star")}
        return self.trainables.parameter_groups(rates, self.options.weight_decay)

    def attached(self) -> AbstractContextManager[Any]:
        return self.training.attached()

    def loss(self, rows: Sequence[Row], rng: torch.Generator) -> dict[str, Tensor]:
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        return self.training.loss(self.batch(rows, words), rng)

    def batch(self, rows: Sequence[Row], words: Random, shifted: int = 0) -> Batch:
        """shifted: by how many rows what is read is another's."""
        said = [self.sentence(row.caption, row.nouns[0], row.categories[0], words) for row in rows]
        read = [rows[(n - shifted) % len(rows)].tensors for n in range(len(rows))]
        extended = self.options.config.extended
        return Batch(
            torch.stack([row.tensors["target"] for row in rows]).float(),
            torch.stack([each["reference"] for each in read]).float(),
            [text for text, _ in said],
            [name for _, name in said] if extended else (),
            torch.stack([each["redux"] for each in read]).float() if self.redux is not None else None,
            weights=1 + self.options.subject_weight * torch.stack([row.tensors["mask"] for row in rows]).float(),
        )

    @torch.no_grad()
    def gap(self, rows: Sequence[Row], rng: torch.Generator, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """The loss with the right reference, with another row's, with a black one."""
        right, other = (self.batch(rows, Random(0), shifted) for shifted in (0, 1))
        times = torch.linspace(0.2, 0.9, len(rows))
        noise = torch.randn(right.targets.shape, generator=rng)
        mixed = (1 - times.view(-1, 1, 1, 1)) * right.targets + times.view(-1, 1, 1, 1) * noise
        assert right.weights is not None
        wanted, weights = ((each.to(self.base.device)) for each in (noise - right.targets, right.weights))
        black = torch.ones(len(rows), dtype=torch.bool)
        losses = {}
        with self._instead(modules):
            for name, batch, dropped in (
                ("right", right, ~black),
                ("swapped", other, ~black),
                ("absent", right, black),
            ):
                given = mixed.to(self.base.device, self.base.dtype)
                found = self.training.velocity(batch, given, times.to(self.base.device), dropped).float()
                losses[name] = float(((found - wanted) ** 2 * weights).mean() / weights.mean())
        return {**losses, "gap": losses["swapped"] - losses["right"]}

    @torch.no_grad()
    def pictures(self, rows: Sequence[Row], modules: Mapping[str, nn.Module]) -> list[list[Image]]:
        from ..sampling import SamplingOptions, decode_images, sample

        batch, size = self.batch(rows, Random(0)), picture_size(self.base, self.options)
        options = SamplingOptions(steps=20 if self.base.steps > 8 else self.base.steps, height=size, width=size)
        with self._instead(modules):
            self.training.place(batch)
            text, found = self.training.text(batch)
            self.training.references.rows = [[each] for each in found]
            latents = sample(self.base, text, None, list(range(len(rows))), options)
        read = batch.references
        assert read is not None
        made = (each.to(self.base.device, self.base.dtype) for each in (read, batch.targets, latents))
        return [list(each) for each in zip(*(decode_images(self.base, each) for each in made), strict=True)]

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        kept: dict[str, Any] = dict(modules)
        trainables = Trainables(
            dict(zip(self.trainables.names, kept["lora"], strict=True)), kept.get("dem"), kept.get("star")
        )
        more: dict[str, Any] = {"size": picture_size(self.base, self.options)}
        if self.redux is not None:
            more |= {"redux": self.options.redux or standard_redux(self.base), "redux_signature": self.redux.signature}
        save_tensors(folder / WEIGHTS, trainables.tensors(), {"format": "pt"})
        write_json(folder / CONFIG, weights_config(self.base, trainables, self.options.config, self.method, **more))

    def _instead(self, modules: Mapping[str, nn.Module]) -> AbstractContextManager[Any]:
        """Other weights in the place of those that are trained, for the length of a `with`."""
        return swapped(self.trainables.parts(), modules)


class AlignGenOnPairs(OminiControlOnPairs):
    """The same with S*, the module and the selective mask."""

    Settings: ClassVar[type[PairSettings]] = AlignGenPairSettings
