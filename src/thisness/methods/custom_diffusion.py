"""Multi-Concept Customization of Text-to-Image Diffusion (Custom Diffusion).

Kumari et al., CVPR 2023, arXiv 2212.04488. Equation -> function:

    eq. 2, E w_t || eps - eps_theta(x_t, c, t) ||              `tuning.TuningTask.loss`
    only K = W^k c and V = W^v c are trained (section 3.1)     `adapters.replaced`
    V* before the noun, from a rare token's row (section 3.2)  `adapters.words.start_rows`
    regularization on pictures of the class (section 3.2)      settings prior_*; made by the base (as in its appendix)
    several concepts at once, one word each (section 3.3)      `learn_joint`
    eq. 4, concepts merged under constraints (section 3.3)     `merged_weight`, `merge`

The paper's random scale of pictures, with "far away" and "close up" in the sentence, is not here: `crops` shows parts
of a picture, with no word for it. The class's regularization set is made by the base, where the paper also takes real
pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..adapters import EMBEDDINGS, REPLACED, AdapterHandler, attached_words, replaced_weights
from ..adapters.replaced import by_name, keys_and_values, learned_weights, trainable_copies
from ..adapters.words import start_rows
from ..bases import Base
from ..concept import Concept
from ..conditioning import encode
from ..errors import ConfigurationError, PromptError
from ..files import listed
from ..prompt import Prompt, SlotWord, placeholder_tokens
from ..subject import Subject
from .packed import PackedTask, learn_together
from .registry import learned_already, register_method, settings_for
from .templates import OBJECT, sentences
from .tuning import (
    MeaningSettings,
    PriorSettings,
    TuningMethod,
    TuningSettings,
    TuningTask,
    decisive,
    prior_latents,
)
from .updates import setting

STARTS = ("ktn", "pll", "ucd")
"""Rare words whose rows new words start from, in the published code."""


@dataclass(frozen=True)
class CustomDiffusionSettings(MeaningSettings, PriorSettings, TuningSettings):
    """Of the paper: 250 steps of eight pictures, half of them of the class, at 8e-5; mirrored ones, too."""

    steps: int = setting(250, "updates of keys, values and the word")
    lr: float = setting(8e-5, "learning rate of keys and values, as it is used")
    word_lr: float | None = setting(None, "of the word's row; lr by default")
    batch_size: int = setting(4, "pictures of the subject in each step")
    prior_batch: int = setting(4, "class pictures in each step")
    clip: float | None = setting(None, "largest norm of the gradient")
    flip: bool = setting(True, "also learn from mirrored pictures")
    captions: Literal["plain", "object", "bare"] = setting(
        "bare", "'a photo of a ...', the 27 sentences for objects, or 'photo of a ...'"
    )
    start: str = setting("ktn", "rare word whose row the new word starts from; a random row if empty")
    keep_start: bool = setting(True, "no gradient through keys and values of the sentence's first token")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_prior()
        self.check_meaning()
        if self.word_lr is not None and self.word_lr <= 0:
            raise ValueError(f"word_lr {self.word_lr} must be above 0")


@register_method("custom-diffusion")
class CustomDiffusion(TuningMethod):
    """Learns the keys and values of cross-attention, and a word before the noun."""

    Settings = CustomDiffusionSettings
    presets = {
        "small": {
            "steps": 400, "lr": 2e-3, "word_lr": 0.01, "prior_pictures": 32, "captions": "plain", "start": "",
            "flip": False, "schedule": "cosine", "clip": 1.0,
        },
        "paper": {"steps": 250, "lr": 8e-5},
        "detex-paper": {"steps": 300, "lr": 8e-5},
        "scp-paper": {"steps": 1000, "lr": 5e-6, "batch_size": 1, "prior_batch": 1},
        "tea-paper": {"steps": 2000, "lr": 1e-5, "batch_size": 1, "prior_batch": 1},
    }  # fmt: skip
    handler = AdapterHandler()

    @contextmanager
    def task(
        self, subject: Subject, base: Base, settings: CustomDiffusionSettings, progress: bool
    ) -> Iterator[TuningTask]:
        prior = prior_latents(base, subject, settings, progress)
        tokens = placeholder_tokens(subject.name)
        word = SlotWord(f"{tokens[0]} {subject.noun}", subject.noun)
        rows = start_rows(base, settings.start, settings.seed)
        words = nn.ParameterDict({name: nn.Parameter(row) for name, row in rows.items()})
        weights = self.weights = trainable_copies(base.denoiser, keys_and_values(base.denoiser))
        groups: list[dict[str, Any]] = [
            {"params": list(weights.values())},
            {"params": list(words.values()), "lr": settings.word_lr or settings.lr},
        ]
        modules: dict[str, nn.Module] = {"weights": weights, "words": words}
        owner, train = subject.name, {"train": True, "keep_start": settings.keep_start}
        with (
            attached_words(base, tokens, dict(words.items())),
            replaced_weights(base.denoiser, by_name(weights), owner=owner, **train),
        ):
            yield TuningTask(subject, base, settings, word, tokens, modules, groups, prior=prior)

    def tensors(self, task: TuningTask) -> dict[str, dict[str, Tensor]]:
        modules = task.modules()
        words = {name: row.detach().float().cpu().clone() for name, row in modules["words"].named_parameters()}
        return {EMBEDDINGS: words, REPLACED: learned_weights(task.base, self.weights)}


# --- several concepts at once ---


def learn_joint(
    subjects: Sequence[Subject],
    base: Base,
    *,
    folder: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    stop_after: float | None = None,
    preset: str | None = None,
    **settings: Any,
) -> list[Concept]:
    """Learn several subjects in one training: keys and values are shared, each subject has its own word.

    A step has `batch_size` rows of each subject and `prior_batch` of its class; the loss is the mean over subjects, so
    each is seen as often as alone, as in the paper (500 steps for two). All concepts hold the same keys and values:
    attach them together, or one alone.

    Args:
        subjects: at least two, each with a name of its own.
        settings: of custom-diffusion; `start` may name a word for each subject, "ktn+pll". Without, they start from
            those of the published code, and further ones from random rows.
        base, folder, resume, progress, stop_after, preset: as for `learn`; a folder for each concept is written.

    Returns:
        A concept for each subject, in their order.

    Raises:
        ConfigurationError: fewer than two subjects, two of one name, or as for `learn`.
        ArtefactError, Stopped: as for `learn`.
    """
    names = [subject.name for subject in subjects]
    if len(subjects) < 2:
        raise ConfigurationError(f"joint learning of {listed(names) or 'nothing'}: give at least two subjects")
    full = settings_for(CustomDiffusion, base, settings, preset)

    def finished(place: Path, subject: Subject) -> Concept | None:
        return learned_already(place, CustomDiffusion, subject, base, full, **_joint_with(names, subject.name))

    return learn_together(
        partial(_joint, base, full, progress), subjects, base, full, finished, folder=folder, most=None, resume=resume,
        progress=progress, stop_after=stop_after,
    )  # fmt: skip


@contextmanager
def _joint(
    base: Base, settings: CustomDiffusionSettings, progress: bool, subjects: Sequence[Subject]
) -> Iterator[tuple[PackedTask, Callable[[], list[Concept]]]]:
    """The joint task, attached to the base, and what gives its concepts."""
    priors = [prior_latents(base, subject, settings, progress) for subject in subjects]
    weights = trainable_copies(base.denoiser, keys_and_values(base.denoiser))
    tasks: dict[str, TuningTask] = {}
    with ExitStack() as stack:
        for number, (subject, prior) in enumerate(zip(subjects, priors, strict=True)):
            rows = start_rows(base, _start_of(settings.start, number), settings.seed + number)
            words = nn.ParameterDict({name: nn.Parameter(row) for name, row in rows.items()})
            tokens = placeholder_tokens(subject.name)
            stack.enter_context(attached_words(base, tokens, dict(words.items())))
            word = SlotWord(f"{tokens[0]} {subject.noun}", subject.noun)
            groups = [{"params": list(words.values()), "lr": settings.word_lr or settings.lr}]
            tasks[subject.name] = TuningTask(
                subject, base, settings, word, tokens, {"words": words}, groups, prior=prior
            )
        owner, train = "+".join(tasks), {"train": True, "keep_start": settings.keep_start}
        stack.enter_context(replaced_weights(base.denoiser, by_name(weights), owner=owner, **train))
        groups = [{"params": list(weights.values())}, *(g for task in tasks.values() for g in task.parameter_groups())]

        def concepts() -> list[Concept]:
            made = []
            for name, task in tasks.items():
                words = {n: row.detach().float().cpu().clone() for n, row in task.modules()["words"].named_parameters()}
                made.append(Concept.create(
                    CustomDiffusion.name, task.subject, base, word=task.word.text, tokens=task.tokens,
                    tensors={EMBEDDINGS: words, REPLACED: learned_weights(base, weights)},
                    settings={**decisive(settings), **_joint_with(list(tasks), name)},
                ))  # fmt: skip
            return made

        yield PackedTask(base, tasks, shared={"weights": weights}, groups=groups), concepts


def _joint_with(names: Sequence[str], own: str) -> dict[str, list[str]]:
    return {"joint_with": [name for name in names if name != own]}


def _start_of(start: str, number: int) -> str:
    """The word that the subject of a number starts from; "" for a random row."""
    words = STARTS if start == STARTS[0] else start.split("+")
    return words[number] if number < len(words) else ""


# --- merging concepts that were learned apart ---


def merged_weight(original: Tensor, wanted: Tensor, targets: Tensor, regular: Tensor, ridge: float = 1e-6) -> Tensor:
    """The weight nearest to the original, as seen by ordinary sentences, that gives the targets what is wanted.

        W^ = argmin_W || W R^T - W_0 R^T ||_F  subject to  W C^T = V
           = W_0 + (V - W_0 C^T) (d C^T)^-1 d,   d = C (R^T R)^-1

    Args:
        original: W_0, (out, width).
        wanted: V, (out, targets).
        targets: C, text features of the concepts' words, (targets, width). Where they depend on one another, the
            constraints are met as far as they can be met together.
        regular: R, text features of ordinary sentences, (features, width).
        ridge: times the mean of R^T R's diagonal, is added to it: sentences alone need not span the space.

    Returns:
        (out, width), in the original's number format.

    Source: eq. 4 and its closed form; computed in float64.
    """
    w, v, c, r = (each.double() for each in (original, wanted, targets, regular))
    gram = r.T @ r
    gram = gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * ridge * gram.diagonal().mean()
    d = torch.linalg.solve(gram, c.T).T  # (targets, width)
    lagrange = (v - w @ c.T) @ torch.linalg.pinv(d @ c.T, rtol=1e-9, hermitian=True)
    return (w + lagrange @ d).to(original.dtype)


@torch.no_grad()
def merge(concepts: Sequence[Concept], base: Base, captions: Sequence[str] = ()) -> tuple[Concept, ...]:
    """Concepts that can be used together, from some that were learned apart.

    Each keeps its word; all of them hold the same merged keys and values, so that they may be attached at once.

    Args:
        concepts: at least two, of methods that replace keys and values, learned on this base.
        base: with nothing attached.
        captions: ordinary sentences that should stay as they were; otherwise the 27 sentences for objects, as far as
            the base reads them, and further ones of its own, about the concepts' nouns.

    Raises:
        ConfigurationError: fewer than two, two of one name, or concepts that replace other weights than the others.
        ArtefactError: of another base.
    """
    names = [concept.name for concept in concepts]
    if len(concepts) < 2 or len(set(names)) < len(names):
        raise ConfigurationError(f"merging {', '.join(names) or 'nothing'}: give at least two concepts, each once")
    held = [concept.tensors.get(REPLACED, {}) for concept in concepts]
    if any(set(each) != set(held[0]) or not each for each in held):
        raise ConfigurationError(f"merging {', '.join(names)}: each must replace the same keys and values")
    for concept in concepts:
        concept.check_base(base)
    regular = _features(base, [(text, None) for text in captions or _ordinary(base, concepts)])
    targets = []
    for concept in concepts:
        with attached_words(base, concept.tokens, concept.tensors[EMBEDDINGS]):
            targets.append(_features(base, [("photo of a {subject}", concept.word), ("a {subject}", concept.word)]))
    part, merged = base.modules, {}
    for key in held[0]:
        name, _, rest = key.partition(".")
        original = part[name].get_parameter(rest).detach().float().cpu()
        wanted = torch.cat([each[key].float() @ c.T for each, c in zip(held, targets, strict=True)], 1)
        merged[key] = merged_weight(original, wanted, torch.cat(targets), regular)
    others = {concept.name: [name for name in names if name != concept.name] for concept in concepts}
    return tuple(
        concept.with_tensors({**concept.tensors, REPLACED: {k: t.clone() for k, t in merged.items()}},
                             merged_with=others[concept.name])
        for concept in concepts
    )  # fmt: skip


def _ordinary(base: Base, concepts: Sequence[Concept]) -> list[str]:
    """Sentences that have nothing to do with what was learned, but for the nouns."""
    scenes = ("a {subject}", "a {subject} on the beach", "a {subject} in the snow", "a {subject} in the forest")
    found: list[str] = []
    for noun in dict.fromkeys(concept.noun for concept in concepts):
        for templates in (OBJECT, scenes):
            try:
                found += sentences(base, templates, SlotWord(noun, noun))
            except PromptError:
                continue
    return list(dict.fromkeys(found))


def _features(base: Base, texts: Sequence[tuple[str, SlotWord | None]]) -> Tensor:
    """Text features, (tokens, width) float32 on the CPU: of whole sentences without their first token and padding; of
    those with a learned word from it to the end mark."""
    found = []
    for text, word in texts:
        prompt = Prompt(text).fill({"subject": word} if word else {})
        encoded = encode(base, prompt)
        (spans,) = encoded.spans
        first = min(spans.of("subject")) if word else 1
        found.append(encoded.embeds[0, first : spans.end + 1].float().cpu())
    return torch.cat(found)
