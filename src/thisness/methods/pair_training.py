"""Training of what reads pictures, on pairs: the part that all methods share.

    train_adapter("ezigen", [CocoPairs(...), FolderPairs(...)], base, folder="adapters/mine", steps=20000)

A method says how it is trained by a `PairTraining`: what is read of a pair, what is trained, the loss of some rows, how
the result is written. It is named once, in TRAININGS. Drawing, keeping what was encoded, resuming, the share that is
held out, previews and the result's folder are here. docs/training.md tells it to people.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bases import FLOW, Base
from ..errors import ArtefactError, ConfigurationError, ThisnessError, UserError, nearest
from ..files import (
    cache_root,
    check_replaceable,
    directory,
    load_tensors,
    save_tensors,
    verify_directory,
    write_json,
)
from ..files.locks import locked
from ..prompt import FilledPrompt
from ..recipe import build_settings
from ..training.loop import LoopConfig, Task, train
from ..training.optimizers import check_optimizer
from ..training.parallel import Parallel
from ..training.tracking import Curves
from .pairs import Pair, Pairs, signature_of
from .registry import LOCK, Stopped, tidy
from .tuning import precision_for, prepared_for_training
from .updates import UpdateSettings, setting

if TYPE_CHECKING:
    from PIL.Image import Image

TRAININGS = {
    "ezigen": "ezigen_on_pairs:EZIGenOnPairs",
    "ominicontrol": "references_on_pairs:OminiControlOnPairs",
    "aligngen": "references_on_pairs:AlignGenOnPairs",
    "ip-adapter": "ip_adapter_on_pairs:IPAdapterOnPairs",
    "ip-adapter-plus": "ip_adapter_on_pairs:IPAdapterOnPairs",
}
"""Module and class by method."""
RESULT = "training.json"
LARGEST = 512  # side of the pictures in pixels for FLUX unless told otherwise
SHOWN = 4  # held-out pairs in a preview
TRIES = 10  # pairs in a row that cannot be used before a training gives up
_NO_INFLUENCE = ("checkpoint_seconds", "preview_every", "tracker", "cache_gb", "held_out_pairs")


@dataclass(frozen=True)
class PairSettings(UpdateSettings):
    """Settings of every method that is trained on pairs."""

    steps: int = setting(25_000, "updates of what is trained")
    batch_size: int = setting(8, "pairs in each step")
    weight_decay: float = setting(0.01, "of AdamW, on matrices")
    warmup: int = setting(500, "steps of linear rise of the learning rate")
    size: int = setting(0, "side of the pictures in pixels; the base's by default, for FLUX up to 512")
    subject_weight: float = setting(2.0, "added to the weight of the loss inside of the subject's mask; 0: all alike")
    variants: int = setting(8, "pairs that are drawn of a thing that has many; 0: always new ones, and nothing is kept")
    held_out: float = setting(0.02, "share of each data source that is not learned from; the gap is measured on it")
    held_out_pairs: int = setting(32, "at most so many of them are looked at in a preview")
    cache_gb: float = setting(20.0, "what encoded pictures may take on the disk; else they are encoded in each step")
    least: int = setting(1000, "pixels that an object of COCO or YouTube-VIS has")
    most: int = setting(4, "objects of a COCO picture that are read")
    apart: float = setting(1 / 8, "least distance of two frames, by the length of the video")
    preview_every: int = setting(500, "steps between previews; 0: none")
    checkpoint_seconds: float = setting(300.0, "between checkpoints")
    tracker: Curves = setting("auto", "curves for TensorBoard beside the log; auto: if it is installed")

    def __post_init__(self) -> None:
        ranges = {
            "batch_size": (1, 4096), "size": (0, 4096), "subject_weight": (0, 100), "variants": (0, 10_000),
            "held_out": (0, 0.5), "held_out_pairs": (2, 4096), "cache_gb": (0, 1e6), "least": (1, 10**8),
            "most": (1, 16), "apart": (0, 1),
        }  # fmt: skip
        wrong = [
            f"{key} {getattr(self, key)} must be in {low} ... {high}"
            for key, (low, high) in ranges.items()
            if not low <= getattr(self, key) <= high
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        self.loop("fp32")

    def loop(self, precision: Literal["fp32", "bf16"]) -> LoopConfig:
        """The same for the loop."""
        return self.updates(
            precision, preview_every=self.preview_every, checkpoint_seconds=self.checkpoint_seconds,
            tracker=self.tracker,
        )  # fmt: skip

    @property
    def decisive(self) -> dict[str, Any]:
        """Those that decide the result, as JSON data."""
        return {key: value for key, value in asdict(self).items() if key not in _NO_INFLUENCE}


@dataclass(frozen=True, eq=False)
class Row:
    """A pair as a method reads it.

    Attributes:
        tensors: what the method's `encode` gave, rounded to half precision; float32, on the CPU.
        nouns, categories, caption: of the pair.
    """

    tensors: dict[str, Tensor]
    nouns: tuple[str, ...]
    categories: tuple[str, ...]
    caption: str


class PairTraining(ABC):
    """How one method is trained on pairs.

    Attributes:
        Settings: a frozen dataclass, of `PairSettings`; fields may carry metadata "help".
        masks: whether the pictures of a folder must have masks.
    """

    Settings: ClassVar[type[PairSettings]] = PairSettings
    masks: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def check(cls, method: str, base: Base) -> None:
        """Raises: ConfigurationError: the method cannot be trained on this base."""

    @abstractmethod
    def __init__(self, method: str, base: Base, settings: Any) -> None:
        """Make what is trained; the base is on its device and stays as it is."""

    def check_data(self, data: Sequence[Pairs]) -> None:
        """Raises: ConfigurationError: there are none, or those there are would teach nothing."""
        if not data:
            raise ConfigurationError("no data to be trained on")

    def key(self) -> dict[str, Any]:
        """What decides, beside base, picture size and data, what `encode` gives, as JSON data."""
        return {}

    @abstractmethod
    def encode(self, pair: Pair) -> dict[str, Tensor]:
        """What is read of a pair, without gradients."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """What is trained, by name; float32."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer."""

    def attached(self) -> AbstractContextManager[Any]:
        """On the base for the length of the training."""
        return nullcontext()

    @abstractmethod
    def loss(self, rows: Sequence[Row], rng: torch.Generator) -> dict[str, Tensor]:
        """The loss of a batch, as `training.Task.loss`."""

    @abstractmethod
    def gap(self, rows: Sequence[Row], rng: torch.Generator, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """The loss of held-out rows with what belongs to them, with another row's, with nothing; and the gap."""

    @abstractmethod
    def pictures(self, rows: Sequence[Row], modules: Mapping[str, nn.Module]) -> list[list[Image]]:
        """For each of a few rows: what is read, what should be drawn, what is drawn."""

    @abstractmethod
    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write what `weights=FOLDER` of the method reads into a folder that is there."""


def training_named(method: str) -> type[PairTraining]:
    """How a method is trained.

    Raises:
        ConfigurationError: there is no such method, or it is not trained on pairs.
    """
    if method not in TRAININGS:
        known = ", ".join(TRAININGS)
        raise ConfigurationError(
            f"{method!r} is not trained on pairs of pictures{nearest(method, TRAININGS)}: known are {known}; "
            "`thisness learn` learns one subject"
        )
    module, _, name = TRAININGS[method].partition(":")
    found: type[PairTraining] = getattr(import_module(f"{__package__}.{module}"), name)
    return found


def picture_size(base: Base, settings: PairSettings) -> int:
    """Side of the pictures in pixels."""
    return settings.size or (min(LARGEST, base.resolution) if base.prediction_type == FLOW else base.resolution)


def base_latents(base: Base, image: Image) -> Tensor:
    """A square picture's latents, the mean, in the denoiser's scale: (C, h, w)."""
    from .ezigen_loops import to_tensor

    with torch.no_grad():
        return base.encode_images(to_tensor(image)[None])[0]


def mask_at(pair: Pair, latents: Tensor) -> Tensor:
    """How much of each latent position is subject, (1, h, w). latents: (C, h, w)."""
    mask = torch.from_numpy(pair.mask)[None]
    return F.adaptive_avg_pool2d(mask, (int(latents.shape[-2]), int(latents.shape[-1])))


class Rows:
    """Pairs of several sources as a method reads them, encoded when they are first needed.

    What is encoded is rounded to half precision, so that a row is the same whether it was kept or not.

    Args:
        base: whose tokenizers say whether a caption is too long.
        training: whose `encode`.
        data: the sources; their `size` is set.
        settings: size, variants, cache_gb, steps, batch_size, accumulate.
        root: where rows are kept.
    """

    def __init__(
        self, base: Base, training: PairTraining, data: Sequence[Pairs], settings: PairSettings, root: Path
    ) -> None:
        self.base, self.training, self.data, self.settings = base, training, list(data), settings
        self.folders = [
            root / signature_of(base.signature, source.signature, source.size, settings.variants, training.key())[:24]
            for source in data
        ]
        self.kept = False
        self.unusable: dict[tuple[int, int, int], str] = {}

    def variants(self, source: int) -> int:
        """How many pairs of an index there are; 0: without end."""
        return self.settings.variants if self.data[source].varied else 1

    def decide(self) -> str:
        """Choose whether rows are kept on the disk, and say so in a line.

        Raises:
            ArtefactError: none of the first pairs can be used.
        """
        settings = self.settings
        if not settings.variants:
            return "every pair is a new one (variants=0): pictures are encoded in each step"
        sizes = []
        for source in range(len(self.data)):
            row = self.usable(source, range(len(self.data[source])), 0, 0)
            sizes.append(sum(2 * each.numel() for each in row.tensors.values()))
        counts = [len(self.data[n]) * self.variants(n) for n in range(len(self.data))]
        asked = settings.steps * settings.batch_size * settings.accumulate / len(self.data)
        needed = sum(min(count, asked) * size for count, size in zip(counts, sizes, strict=True)) / 1e9
        free = shutil.disk_usage(_existing(self.folders[0])).free / 1e9
        if needed > settings.cache_gb or needed > free / 2:
            limit = f"cache_gb={settings.cache_gb:g}" if needed > settings.cache_gb else f"{free:.0f} GB are free"
            return f"pictures are encoded in each step: all of them would take {needed:.1f} GB ({limit})"
        self.kept = True
        return f"pictures are encoded once and kept, up to {needed:.2f} GB, in {self.folders[0].parent}"

    def usable(self, source: int, indices: Sequence[int], at: int, variant: int) -> Row:
        """The row of an index, or of the next one that can be used.

        Raises:
            ArtefactError: ten in a row cannot.
        """
        said = ""
        for offset in range(min(TRIES, len(indices))):
            index = indices[(at + offset) % len(indices)]
            where = (source, index, variant)
            if where not in self.unusable:
                try:
                    return self.row(*where)
                except UserError as error:
                    self.unusable[where] = str(error)
            said = said or self.unusable[where]
        raise ArtefactError(f"{self.data[source].name}: none of {min(TRIES, len(indices))} pairs can be used: {said}")

    def row(self, source: int, index: int, variant: int) -> Row:
        """Raises UserError: it cannot be used."""
        path = self.folders[source] / f"{index // 1000:04d}" / f"{index}-{variant}.safetensors"
        if self.kept and path.is_file():
            try:
                return _loaded(path)
            except (ArtefactError, ValueError, KeyError):
                path.unlink(missing_ok=True)  # damaged: made anew
        pair = self.data[source].draw(index, variant)
        self.base.tokenize(FilledPrompt.plain(pair.caption))
        categories = pair.categories or ("",) * len(pair.nouns)
        with torch.no_grad(), torch.autocast(self.base.device.type, enabled=False):  # the same wherever it is asked for
            tensors = {name: each.half().cpu().contiguous() for name, each in self.training.encode(pair).items()}
        row = Row(_widened(tensors), pair.nouns, categories, pair.caption)
        if self.kept:
            told = {"nouns": row.nouns, "categories": row.categories, "caption": row.caption}
            save_tensors(path, tensors, {"pair": json.dumps(told)})
        return row


class PairTask(Task):
    """Rows of all sources, each as likely, for the project's one loop."""

    def __init__(
        self, method: str, base: Base, training: PairTraining, rows: Rows, settings: PairSettings,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:  # fmt: skip
        self.precision = precision
        self.name, self.base, self.training, self.rows, self.options = (
            f"training {method}",
            base,
            training,
            rows,
            settings,
        )
        self.method, self.batch_size = method, settings.batch_size
        split = [_split(len(source), settings.held_out) for source in rows.data]
        self.learned, self.held_out = [each for each, _ in split], [each for _, each in split]
        self._looked: list[Row] | None = None

    def modules(self) -> dict[str, nn.Module]:
        return self.training.modules()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.training.parameter_groups()

    def settings(self) -> dict[str, Any]:
        return described(self.method, self.base, self.rows.data, self.options)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        return self.training.loss([self.drawn(rng) for _ in range(self.batch_size)], rng)

    def drawn(self, rng: torch.Generator) -> Row:
        """A row that is learned from."""
        source = int(torch.randint(0, len(self.learned), (), generator=rng))
        indices, variants = self.learned[source], self.rows.variants(source)
        at = int(torch.randint(0, len(indices), (), generator=rng))
        variant = int(torch.randint(0, variants or 1 << 30, (), generator=rng))
        return self.rows.usable(source, indices, at, variant)

    def looked_at(self) -> list[Row]:
        """Held-out rows of all sources in turn; fewer than two: none."""
        if self._looked is None:
            found: list[Row] = []
            for at in range(max(map(len, self.held_out))):
                for source, indices in enumerate(self.held_out):
                    if at < len(indices) and len(found) < self.options.held_out_pairs:
                        with suppress(ArtefactError):
                            found.append(self.rows.usable(source, [indices[at]], 0, 0))
            self._looked = found if len(found) > 1 else []
        return self._looked

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """The gap on held-out rows, and a sheet of some of them."""
        from ..images import save_png, sheet

        rows = self.looked_at()
        if not rows:
            return {}
        low = self.precision == "bf16"
        with torch.autocast(self.base.device.type, torch.bfloat16) if low else nullcontext():
            numbers, made = self.measured(rows), self.training.pictures(rows[:SHOWN], self.averaged())
        captions = [row.caption for row in rows[:SHOWN]]
        page = sheet(made, title=f"{self.name}, step {step}: read, given, drawn", row_labels=captions, tile=256)
        save_png(page, folder / f"step-{step:06d}.png")
        return numbers

    def measured(self, rows: Sequence[Row]) -> dict[str, float]:
        """The method's numbers, batch by batch; means over the rows."""
        size = max(self.batch_size, 2)
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        if len(parts[-1]) < 2:
            parts[-2:] = [[*parts[-2], *parts[-1]]]
        found = [
            self.training.gap(part, torch.Generator().manual_seed(n), self.averaged()) for n, part in enumerate(parts)
        ]
        sizes = [len(part) for part in parts]
        return {
            name: sum(each[name] * count for each, count in zip(found, sizes, strict=True)) / len(rows)
            for name in found[0]
        }

    def averaged(self) -> dict[str, nn.Module]:
        """What would be kept now."""
        return {**self.training.modules(), **self.ema}


def described(method: str, base: Base, data: Sequence[Pairs], settings: PairSettings) -> dict[str, Any]:
    """What a training is of, as JSON data, with no path of this machine."""
    return {
        "method": method,
        "base": base.signature,
        "data": [source.signature for source in data],
        "settings": settings.decisive,
    }


def train_adapter(
    method: str,
    data: Sequence[Pairs],
    base: Base,
    *,
    folder: str | Path,
    resume: bool = True,
    progress: bool = True,
    stop_after: float | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> Path:
    """Train a method's adapter on pairs.

    Args:
        method: of TRAININGS.
        data: where pairs come from; of several each is as likely in every row. Their `size` is set.
        base: the model to train for; as before afterwards, to the bit.
        folder: what `weights=FOLDER` of the method reads afterwards; beside it, FOLDER.training holds what is needed to
            go on after a stop.
        resume: return what the folder holds if it is of the very same, or go on where a call was cut short; False
            starts anew.
        progress: show how it goes.
        stop_after: seconds after which to stop; the same call goes on.
        say: takes lines that a person should read.
        settings: any setting of the method's training.

    Returns:
        The folder.

    Raises:
        ConfigurationError: no such method, settings, a base of another family, or a run with other settings.
        ArtefactError: data that cannot be used, or a folder that thisness did not write.
        UserError: another process trains there.
        Stopped: by a signal or by `stop_after`.
    """
    chosen = training_named(method)
    full: PairSettings = build_settings(settings, chosen.Settings, method)
    chosen.check(method, base)
    check_optimizer(full.optimizer, base.device)
    precision = _precision(full, base)
    folder, tell = Path(folder), say or (lambda line: None)
    size = picture_size(base, full)
    base.latent_shape(size, size)
    for source in data:
        source.size = size
    wanted = json.loads(json.dumps(described(method, base, data, full)))
    if resume and _done(folder, wanted):
        return folder
    check_replaceable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        tell(f"{folder} holds something else: it is replaced")
    place, parallel = folder.with_name(folder.name + ".training"), Parallel()
    with ExitStack() as stack:
        if parallel.first:
            stack.enter_context(_alone_in(place))
        stack.enter_context(frozen(base))
        training = chosen(method, base, full)
        training.check_data(data)
        rows = Rows(base, training, data, full, cache_root() / "pairs")
        tell(rows.decide())
        task = PairTask(method, base, training, rows, full, precision)
        if full.preview_every and sum(map(len, task.held_out)) < 2:
            tell("too few things to hold any out: there are no previews, and the gap is not measured")
        stack.enter_context(prepared_for_training(base))
        stack.enter_context(training.attached())
        config = full.loop(precision)
        result = train(task, config, place, resume=resume, progress=progress, stop_after=stop_after, device=base.device)
        if rows.unusable:
            first = next(iter(rows.unusable.values()))
            tell(f"{len(rows.unusable)} pairs could not be used and others took their place; the first: {first}")
        if not result.finished:
            raise Stopped(
                f"stopped by {result.stopped_by} at step {result.steps} of {full.steps}: the same command goes on from "
                "there"
            )
        if parallel.first:
            with directory(folder) as building:
                training.save(building, task.averaged())
                write_json(building / RESULT, wanted)
                shutil.copyfile(place / "log.jsonl", building / "log.jsonl")
                for name in ("previews", "tensorboard"):
                    if (place / name).is_dir():
                        shutil.copytree(place / name, building / name)
            tidy(place)
        parallel.wait()
    return folder


@contextmanager
def swapped(own: Mapping[str, nn.Module], others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let modules have the weights of others of their names."""
    pairs = [
        (mine, theirs)
        for name, module in own.items()
        if others[name] is not module
        for mine, theirs in zip(module.parameters(), others[name].parameters(), strict=True)
    ]
    before = [mine.data for mine, _ in pairs]
    for mine, theirs in pairs:
        mine.data = theirs.data
    try:
        yield
    finally:
        for (mine, _), data in zip(pairs, before, strict=True):
            mine.data = data


@contextmanager
def frozen(base: Base) -> Iterator[None]:
    """No part of the base gets gradients; afterwards those do that did before."""
    learning = [p for module in base.modules.values() for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def _alone_in(place: Path) -> Iterator[None]:
    """The one process that may train there; an otherwise empty folder goes in the end."""
    with locked(place / LOCK, f"another `train` is at work in {place}: wait for it, stop it, or name another --out"):
        try:
            yield
        finally:
            if [each.name for each in place.iterdir()] == [LOCK]:
                (place / LOCK).unlink()
                place.rmdir()


def _split(count: int, share: float) -> tuple[list[int], list[int]]:
    """Indices to learn from, and those held out: a share, two at least, none of fewer than four; always the same."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    held = min(max(round(share * count), 2), count // 2) if share and count >= 4 else 0
    return sorted(order[held:]), order[:held]


def _precision(settings: PairSettings, base: Base) -> Literal["fp32", "bf16"]:
    """Of the computation; a base in bfloat16 wants it, too.

    Raises:
        ConfigurationError: the base's own does not go with what is asked.
    """
    if base.dtype == torch.float32:
        return precision_for(settings.precision, base.device)
    if base.dtype != torch.bfloat16 or settings.precision == "fp32":
        raise ConfigurationError(
            f"{base.name!r} is in {str(base.dtype).removeprefix('torch.')}, with precision={settings.precision}: give "
            "--dtype float32, or --dtype bfloat16 and precision auto or bf16"
        )
    return "bf16"


def _done(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder holds, whole, what a call with the same settings and data wrote."""
    path = folder / RESULT
    if not path.is_file():
        return False
    try:
        verify_directory(folder)
        return bool(json.loads(path.read_text(encoding="utf-8")) == wanted)
    except (ThisnessError, OSError, ValueError):
        return False


def _loaded(path: Path) -> Row:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        told = json.loads((file.metadata() or {})["pair"])
    return Row(_widened(load_tensors(path)), tuple(told["nouns"]), tuple(told["categories"]), str(told["caption"]))


def _widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.float() for name, each in tensors.items()}


def _existing(folder: Path) -> Path:
    return folder if folder.is_dir() else _existing(folder.parent)
