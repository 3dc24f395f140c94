"""What all methods that train share: settings, encoded pictures and sentences, the batch, the loss, the run.

A method adds what it trains (words, weights) and, if need be, other sentences, other rows, further losses.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..bases import FLOW, Base
from ..concept import Concept
from ..conditioning import Conditioning, encode
from ..errors import ConfigurationError
from ..prompt import Prompt, SlotWord
from ..sampling import SamplingOptions
from ..subject import Subject
from ..training.diffusion import (
    cumulative_alphas,
    draw_flow,
    draw_timesteps,
    interpolated,
    min_snr,
    noised,
    row_losses,
    target,
)
from ..training.latents import encode_subject
from ..training.loop import LoopConfig, Task, train
from ..training.optimizers import check_optimizer
from ..training.precision import computes_in_bf16
from ..training.prior import class_latents
from ..training.tracking import Curves
from .meaning import KeptMeaning
from .registry import Method, Stopped
from .templates import SETS, class_set, sentences
from .updates import UpdateSettings, setting

if TYPE_CHECKING:
    from ..diagnostics.collapse_features import Tracker


@dataclass(frozen=True)
class TuningSettings(UpdateSettings):
    """Settings of every method that learns a subject."""

    captions: Literal["plain", "object", "bare"] = setting(
        "plain", "'a photo of a ...', the 27 sentences for objects, or 'photo of a ...'"
    )
    flip: bool = setting(False, "also learn from mirrored pictures")
    crops: int = setting(0, "random crops of each picture beside the whole one")
    background: float = setting(1.0, "weight of the loss outside the subject's mask; 1: masks are not used")
    snr_gamma: float | None = setting(None, "min-SNR weighting, 5 is usual; none: all noise levels alike")
    checkpointing: bool = setting(False, "compute activations twice to keep less of them: for small accelerators")
    preview_every: int = setting(0, "steps between previews; 0: none")
    track_collapse: int = setting(0, "steps between measurements of semantic collapse; 0: none, -1: 20 times in all")
    checkpoint_seconds: float = setting(60.0, "between checkpoints")
    tracker: Curves = setting("auto", "curves for TensorBoard beside the log; auto: if it is installed")

    def __post_init__(self) -> None:
        wrong = []
        if self.batch_size < 1:
            wrong.append(f"batch_size {self.batch_size} must be at least 1")
        if self.track_collapse < -1:
            wrong.append(f"track_collapse {self.track_collapse} must be at least -1")
        if not 0 <= self.crops <= 64:
            wrong.append(f"crops {self.crops} must be in 0 ... 64")
        if not 0 <= self.background <= 1:
            wrong.append(f"background {self.background} must be in 0 ... 1")
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            wrong.append(f"snr_gamma {self.snr_gamma} must be above 0")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.loop("fp32")

    def loop(self, precision: Literal["fp32", "bf16"]) -> LoopConfig:
        """The same for the loop."""
        return self.updates(
            precision, preview_every=self.preview_every, checkpoint_seconds=self.checkpoint_seconds,
            tracker=self.tracker,
        )  # fmt: skip


@dataclass(frozen=True)
class PriorSettings:
    """Settings of methods that may keep the class as it was."""

    prior_pictures: int = setting(200, "pictures of the class, made by the base once; 0: no prior preservation")
    prior_weight: float = setting(1.0, "of the class pictures' loss")
    prior_batch: int = setting(1, "class pictures in each step")
    prior_steps: int | None = setting(None, "sampling steps of the class pictures; the base's own by default")

    def check_prior(self) -> None:
        """Raises ValueError."""
        if self.prior_pictures < 0 or self.prior_batch < 1 or self.prior_weight < 0:
            raise ValueError("prior_pictures and prior_weight must be at least 0, prior_batch at least 1")


@dataclass(frozen=True)
class MeaningSettings:
    """Settings of methods that learn a word."""

    keep_meaning: float = setting(0.0, "of a penalty on the word's norm and angle to its noun's; 0.1 is usual, 0: none")

    def check_meaning(self) -> None:
        """Raises ValueError."""
        if not 0 <= self.keep_meaning <= 1000:
            raise ValueError(f"keep_meaning {self.keep_meaning} must be in 0 ... 1000")


@dataclass
class Batch:
    """Rows of one step: first those of the subject, then those of the class.

    Attributes:
        clean: (rows, C, h, w).
        sentences: one for each row.
        weight: (rows, 1, h, w) of the loss, or None.
        own: how many rows show the subject.
        rows: which of the encoded pictures these are, (own,).
    """

    clean: Tensor
    sentences: list[str]
    weight: Tensor | None
    own: int
    rows: Tensor


@dataclass
class Draw:
    """A batch with its noise: `timesteps` and `alpha` (rows,), `noise` and `noisy` (rows, C, h, w).

    Of flow matching `alpha` is the time t, and timesteps are 1000 t.
    """

    batch: Batch
    timesteps: Tensor
    noise: Tensor
    alpha: Tensor
    noisy: Tensor


class TuningTask(Task):
    """Denoising of a subject's pictures under sentences with its word, and of class pictures under the class noun.

    Args:
        subject, base, settings: of the run.
        word: what stands for the subject; its tokens must be attached to the base.
        modules: what is trained, by name; learned rows are called "words".
        groups: for the optimizer.
        text_trains: all sentences are encoded anew in each step, since the text encoder trains; otherwise only those
            with a learned word.
        prior: (pictures, C, h, w) clean latents of the class, or None.
        own_sentences: all that stand beside pictures of the subject; those of the setting `captions` by default.
    """

    def __init__(
        self,
        subject: Subject,
        base: Base,
        settings: Any,
        word: SlotWord,
        tokens: Sequence[str],
        modules: dict[str, nn.Module],
        groups: list[dict[str, Any]],
        *,
        text_trains: bool = False,
        prior: Tensor | None = None,
        own_sentences: Sequence[str] | None = None,
    ) -> None:
        self.subject, self.base, self.options, self.word, self.tokens = subject, base, settings, word, tuple(tokens)
        self._modules, self._groups = modules, groups
        if settings.snr_gamma is not None and base.prediction_type == FLOW:
            raise ConfigurationError(
                f"snr_gamma weighs the levels of a noise schedule, and {base.name} was trained by flow matching: leave "
                "it out"
            )
        self.name = f"learning {subject.name}"
        self.prior = prior
        self.batch_size = settings.batch_size + (settings.prior_batch if prior is not None else 0)
        self.own_sentences = list(own_sentences or sentences(base, SETS[settings.captions], word))
        noun = SlotWord(subject.noun, subject.noun)
        self.class_sentences = sentences(base, class_set(settings.captions), noun)
        own = self.own_sentences if text_trains or "words" in modules else []
        self.changing = {*own, *(self.class_sentences if text_trains else ())}
        weight = getattr(settings, "keep_meaning", 0.0)
        self.meaning = KeptMeaning(base, subject.noun, modules["words"], weight) if weight else None
        self.tracker: Callable[[int], dict[str, Tensor]] | None = None

    def modules(self) -> dict[str, nn.Module]:
        return self._modules

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self._groups

    def settings(self) -> dict[str, Any]:
        base = {"signature": self.base.signature, "prediction_type": self.base.prediction_type}
        subject = {"hash": self.subject.hash, "name": self.subject.name, "noun": self.subject.noun}
        return {"subject": subject, "base": base, "method": decisive(self.options)}

    def on_start(self, device: torch.device) -> None:
        """Encode everything that does not change, once."""
        options = self.options
        self.latents = encode_subject(
            self.base, self.subject, flip=options.flip, crops=options.crops, seed=options.seed
        ).to(device)
        self.alphas = None if self.base.prediction_type == FLOW else cumulative_alphas(self.base.scheduler)
        if self.prior is not None:
            self.prior = self.prior.to(device)
        with torch.no_grad():
            fixed = [s for s in dict.fromkeys([*self.own_sentences, *self.class_sentences]) if s not in self.changing]
            encoded = encode(self.base, fixed) if fixed else None
            self.fixed = {s: encoded.rows([at]) for at, s in enumerate(fixed)} if encoded is not None else {}

    def batch(self, step: int, rng: torch.Generator) -> Batch:
        """Which rows of which pictures under which sentences."""
        options, latents = self.options, self.latents
        rows = self.rows(rng)
        clean = latents.draw(rows, rng)
        words = self.captions(rows, rng)
        weight = self.weights(rows)
        if self.prior is not None:
            count = options.prior_batch
            kept = self.prior[torch.tensor(_draw(len(self.prior), count, rng)).to(self.prior.device)]
            words += [self.class_sentences[at] for at in _draw(len(self.class_sentences), count, rng)]
            clean = torch.cat([clean, kept])
            if weight is not None:
                weight = torch.cat([weight, torch.ones_like(weight[:1]).expand(count, *weight.shape[1:])])
        return Batch(clean, words, weight, len(rows), rows)

    def rows(self, rng: torch.Generator) -> Tensor:
        """Which encoded pictures of the subject are in the batch, (batch_size,)."""
        return torch.randint(0, len(self.latents), (self.options.batch_size,), generator=rng)

    def captions(self, rows: Tensor, rng: torch.Generator) -> list[str]:
        """A sentence for each of them."""
        return [self.own_sentences[at] for at in _draw(len(self.own_sentences), len(rows), rng)]

    def weights(self, rows: Tensor) -> Tensor | None:
        """Of the loss at each position, (rows, 1, h, w); None for all 1."""
        background, mask = self.options.background, self.latents.mask
        if background == 1 or mask is None:
            return None
        return background + (1 - background) * mask[rows.to(mask.device)]

    def further(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a method's own, weighted, to be added to those of denoising; asked after the denoiser ran."""
        return {}

    def conditioning(self, words: Sequence[str]) -> Conditioning:
        """One row for each sentence; each distinct one is encoded at most once, and only if it changes in training."""
        return conditioning_of(self.base, words, self.changing, self.fixed)

    def draw(self, step: int, rng: torch.Generator) -> Draw:
        """All that is random in a step."""
        batch = self.batch(step, rng)
        counts = [batch.own, len(batch.clean) - batch.own]
        if self.alphas is None:
            time = torch.cat([draw_flow(n, rng) for n in counts if n]).to(self.device)
            noise = torch.randn(batch.clean.shape, generator=rng).to(self.device)
            noisy = interpolated(batch.clean, noise, time).to(self.base.dtype)
            return Draw(batch, 1000 * time, noise, time, noisy)
        timesteps = torch.cat([draw_timesteps(n, len(self.alphas), rng) for n in counts if n])
        noise = torch.randn(batch.clean.shape, generator=rng).to(self.device)
        alpha, timesteps = self.alphas[timesteps].to(self.device), timesteps.to(self.device)
        return Draw(batch, timesteps, noise, alpha, noised(batch.clean, noise, alpha).to(self.base.dtype))

    def losses(self, draw: Draw, prediction: Tensor) -> dict[str, Tensor]:
        """As `loss`, of what the denoiser answered, (rows, C, h, w)."""
        batch, kind = draw.batch, self.base.prediction_type
        losses = row_losses(prediction, target(batch.clean, draw.noise, draw.alpha, kind), batch.weight)
        if self.options.snr_gamma is not None:
            losses = losses * min_snr(draw.alpha, self.options.snr_gamma, kind)
        parts = {"subject": losses[: batch.own].mean()}
        total = parts["subject"]
        if len(batch.clean) > batch.own:
            parts["class"] = losses[batch.own :].mean()
            total = total + self.options.prior_weight * parts["class"]
        further = self.further(batch)
        if self.meaning is not None:
            further["meaning"] = self.meaning()
        for name, more in further.items():
            parts[name], total = more, total + more
        if len(parts) == 1:
            return {"loss": total}
        return {"loss": total, **{name: part.detach() for name, part in parts.items()}}

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        tracked = self.tracker(step) if self.tracker is not None else {}
        draw = self.draw(step, rng)
        prediction = self.base.predict(draw.noisy, draw.timesteps, self.conditioning(draw.batch.sentences))
        return {**self.losses(draw, prediction), **tracked}

    def preview(self, folder: Path, step: int) -> None:
        """A sheet of the subject in three scenes, by the code that makes people's pictures."""
        from ..generation import generate
        from ..images import save_png, sheet

        prompts = [Prompt(scene).fill({"subject": self.word}).text for scene in PREVIEWS]
        rows = [generate(self.base, text, seeds=(0, 1)).images for text in prompts]
        side = min(max(self.base.resolution, 96), 512)
        title = f"{self.subject.name}, step {step}"
        page = sheet(rows, references=self.subject.images[:6], title=title, row_labels=prompts, tile=side)
        save_png(page, folder / f"step-{step:06d}.png")


def conditioning_of(
    base: Base, words: Sequence[str], changing: Collection[str], fixed: Mapping[str, Conditioning]
) -> Conditioning:
    """One row for each sentence; those that change are encoded, each once, the others are taken from `fixed`."""
    distinct = list(dict.fromkeys(words))
    live = [s for s in distinct if s in changing]
    encoded = encode(base, live) if live else None
    parts = [encoded.rows([live.index(s)]) if encoded is not None and s in live else fixed[s] for s in distinct]
    return Conditioning.cat(parts).rows([distinct.index(s) for s in words])


SMALL_GRID = 1024  # latent positions up to which the whole matrix of attention is cheap to keep
PREVIEWS = ("a photo of a {subject}", "a {subject} on the beach", "a {subject} in the snow")


class TuningMethod(Method):
    """A method whose learning is a `TuningTask` in the project's one loop."""

    Settings: ClassVar[type] = TuningSettings

    @staticmethod
    def decisive(settings: Any) -> dict[str, Any]:
        return decisive(settings)

    @abstractmethod
    def task(self, subject: Subject, base: Base, settings: Any, progress: bool) -> AbstractContextManager[TuningTask]:
        """What is trained, attached to the base for the length of the `with`."""

    @abstractmethod
    def tensors(self, task: TuningTask) -> dict[str, dict[str, Tensor]]:
        """What was learned, by file."""

    def keeps(self, task: TuningTask) -> dict[str, list[str]]:
        """By attribute, for each picture the words that keep it; see `Concept.create`."""
        return {}

    def learn(
        self, subject: Subject, base: Base, settings: Any, folder: Path, *, resume: bool = True, progress: bool = True,
        stop_after: float | None = None,
    ) -> Concept:  # fmt: skip
        check_optimizer(settings.optimizer, base.device)  # before class pictures are made
        with (
            prepared_for_training(base, settings.checkpointing),
            self.task(subject, base, settings, progress) as task,
        ):
            config = settings.loop(precision_for(settings.precision, base.device))
            task.tracker = tracker = tracker_of(task, settings, folder, resume)
            result = train(
                task, config, folder, resume=resume, progress=progress, stop_after=stop_after, device=base.device
            )
            if not result.finished:
                raise Stopped(
                    f"stopped by {result.stopped_by} at step {result.steps} of {settings.steps}: "
                    "the same command goes on from there"
                )
            take_average(task)
            if tracker is not None:
                tracker.record(result.steps)
            return self.concept(task, settings)

    def concept(self, task: TuningTask, settings: Any) -> Concept:
        """What a task learned, with its manifest."""
        return Concept.create(
            self.name, task.subject, task.base, word=task.word.text, tokens=task.tokens, tensors=self.tensors(task),
            settings=decisive(settings), keeps=self.keeps(task),
        )  # fmt: skip


@torch.no_grad()
def take_average(task: Task) -> None:
    """What was trained becomes its running mean, where one was kept."""
    for name, averaged in task.ema.items():
        for parameter, mean in zip(task.modules()[name].parameters(), averaged.parameters(), strict=True):
            parameter.copy_(mean)


def tracker_of(task: TuningTask, settings: Any, folder: Path, resume: bool) -> Tracker | None:
    """What measures semantic collapse while a task learns, if the settings ask for it; it changes nothing of that."""
    if not settings.track_collapse:
        return None
    from ..diagnostics.collapse_features import Tracker

    every = settings.track_collapse if settings.track_collapse > 0 else max(settings.steps // 20, 1)
    return Tracker(task.base, task.word, task.tokens, task.subject.noun, every, folder, resume)


def decisive(settings: Any) -> dict[str, Any]:
    """The settings that decide the result, as JSON data, with no path of this machine."""
    values = {
        key: value
        for key, value in asdict(settings).items()
        if key not in ("checkpoint_seconds", "preview_every", "track_collapse", "tracker")
    }
    for key, none in (("keep_meaning", 0), ("ema", None), ("optimizer", "adamw")):
        if values.get(key, "") == none:
            del values[key]  # what was learned before there was such a setting counts as the same
    for each in fields(settings):
        if each.metadata.get("model") and Path(values[each.name]).expanduser().is_dir():
            values[each.name] = Path(values[each.name]).resolve().name
    return values


def prior_latents(base: Base, subject: Subject, settings: Any, progress: bool) -> Tensor | None:
    """The class's latents as the settings ask for, made if need be; nothing must be attached to the base."""
    if not settings.prior_pictures:
        return None
    (sentence,) = sentences(base, class_set(settings.captions), SlotWord(subject.noun, subject.noun))
    options = SamplingOptions(steps=settings.prior_steps)
    return class_latents(base, sentence, settings.prior_pictures, options, progress=progress)


@contextmanager
def prepared_for_training(base: Base, checkpointing: bool = False) -> Iterator[None]:
    """Plain attention on the CPU where pictures are small: the fused kernel's backward pass costs 41 % of a step there.

    Args:
        base: whose denoiser.
        checkpointing: keep only the activations at the borders of blocks, and compute the others twice.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    denoiser = base.denoiser
    before = dict(getattr(denoiser, "attn_processors", {}))
    positions = math.prod(base.latent_shape(base.resolution, base.resolution)[-2:])
    fused = [type(each) is AttnProcessor2_0 for each in before.values()]
    plain = base.device.type == "cpu" and positions <= SMALL_GRID and bool(fused) and all(fused)
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    modes = [(m, {name: m.__dict__[name] for name in names if name in m.__dict__}) for m in denoiser.modules()]
    try:
        if plain:
            denoiser.set_attn_processor(AttnProcessor())
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        yield
    finally:
        if plain:
            denoiser.set_attn_processor(dict(before))
        for module, mode in modes:
            for name in names:
                module.__dict__.pop(name, None)
            module.__dict__.update(mode)


def precision_for(asked: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the hardware computes in it, unless told otherwise."""
    if asked != "auto":
        return "bf16" if asked == "bf16" else "fp32"
    return "bf16" if computes_in_bf16(device) else "fp32"


def _draw(choices: int, count: int, rng: torch.Generator) -> list[int]:
    return torch.randint(0, choices, (count,), generator=rng).tolist()
