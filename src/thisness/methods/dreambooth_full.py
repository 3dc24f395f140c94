"""DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation, all weights trained.

Ruiz et al., CVPR 2023, arXiv 2208.12242. Equation -> function:

    eq. 1, E w_t || x_theta(a_t x + s_t eps, c) - x ||^2       `tuning.TuningTask.loss` (in the base's own target)
    eq. 2, + lambda w_t' || x_theta(a_t' x_pr + ..., c_pr) - x_pr ||^2   the same: settings prior_*
    x_pr, sampled from the frozen model (section 3.3)          `training.prior.class_latents`
    theta, all weights of the denoiser (section 3.3)           `adapters.replaced.all_weights`, `trainable_copies`
    "a [identifier] [class noun]" (section 3.1)                `dreambooth.identifier_word`
    a diffusers folder of the fine-tuned model                 `adapters.folder.FolderHandler`

The base's own weights are kept beside the trained copies, so that it is afterwards what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..adapters import EMBEDDINGS, REPLACED, replaced_weights
from ..adapters.folder import FolderHandler
from ..adapters.replaced import all_weights, by_name, learned_weights, trainable_copies
from ..adapters.words import text_parts
from ..bases import Base
from ..subject import Subject
from .dreambooth import IdentifierSettings, attached_identifier, identifier_group, identifier_word
from .registry import register_method
from .tuning import PriorSettings, TuningMethod, TuningSettings, TuningTask, prior_latents
from .updates import setting


@dataclass(frozen=True)
class DreamBoothSettings(IdentifierSettings, PriorSettings, TuningSettings):
    """Of the paper, for Stable Diffusion: 1000 steps at 5e-6, one picture of the subject and one of the class."""

    lr: float = setting(5e-6, "learning rate of the denoiser")
    checkpoint_seconds: float = setting(600.0, "between checkpoints: each holds three times the weights")
    storage: Literal["fp16", "fp32"] = setting("fp16", "number format of the learned weights in the concept")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_prior()
        if wrong := self.word_problems():
            raise ValueError("; ".join(wrong))


@register_method("dreambooth")
class DreamBooth(TuningMethod):
    """Learns all weights of the denoiser; optionally the text encoder, and a word of its own."""

    Settings = DreamBoothSettings
    presets = {
        "small": {
            "steps": 300, "lr": 2e-4, "batch_size": 4, "prior_batch": 4, "prior_pictures": 32, "identifier": "new",
            "identifier_lr": 2e-3, "schedule": "cosine", "storage": "fp32", "checkpoint_seconds": 60.0,
        },
        "paper": {"steps": 1000, "lr": 5e-6, "prior_pictures": 1000},
        "detex-paper": {"steps": 1000, "lr": 1e-6, "captions": "bare"},
    }  # fmt: skip
    handler = FolderHandler()

    @contextmanager
    def task(self, subject: Subject, base: Base, settings: DreamBoothSettings, progress: bool) -> Iterator[TuningTask]:
        prior = prior_latents(base, subject, settings, progress)
        word, tokens = identifier_word(subject, settings.identifier)
        denoiser = next(name for name, module in base.modules.items() if module is base.denoiser)
        parts = [denoiser, *(text_parts(base) if settings.text_encoder else ())]
        weights = {name: trainable_copies(base.modules[name], all_weights(base.modules[name])) for name in parts}
        self.weights, modules = weights, dict[str, nn.Module](weights)
        groups: list[dict[str, Any]] = [
            {
                "params": list(copies.parameters()),
                "lr": settings.lr if name == denoiser else settings.text_lr or settings.lr,
            }
            for name, copies in weights.items()
        ]
        with ExitStack() as stack:
            self.words = stack.enter_context(attached_identifier(base, settings, tokens, settings.seed))
            if tokens and settings.identifier_lr:
                modules["words"] = self.words
                groups.append(identifier_group(self.words, settings))
            for name, copies in weights.items():
                own = by_name(copies)
                stack.enter_context(
                    replaced_weights(base.modules[name], own, owner=subject.name, train=True, whole=True)
                )
            yield TuningTask(
                subject, base, settings, word, tokens, modules, groups, text_trains=settings.text_encoder, prior=prior
            )

    def tensors(self, task: TuningTask) -> dict[str, dict[str, Tensor]]:
        trained = {
            key: tensor
            for part, copies in self.weights.items()
            for key, tensor in learned_weights(task.base, copies, part).items()
        }
        if task.options.storage == "fp16":
            trained = {key: _halved(tensor) for key, tensor in trained.items()}
        files = {REPLACED: trained}
        if task.tokens:
            files[EMBEDDINGS] = {n: p.detach().float().cpu().clone() for n, p in self.words.named_parameters()}
        return files


def _halved(tensor: Tensor) -> Tensor:
    """In half precision, where its numbers are in its range."""
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor
