"""DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation.

Ruiz et al., CVPR 2023, arXiv 2208.12242, with low-rank weights (Hu et al., LoRA, 2021). Equation -> function:

    eq. 1, E w_t || x_theta(a_t x + s_t eps, c) - x ||^2       `tuning.TuningTask.loss` (in the base's own target)
    eq. 2, + lambda w_t' || x_theta(a_t' x_pr + ..., c_pr) - x_pr ||^2   the same: settings prior_*
    x_pr, sampled from the frozen model (section 3.3)          `training.prior.class_latents`
    "a [identifier] [class noun]" (section 3.1)                `identifier_word`
    rare-token identifier (section 3.2)                        setting `identifier`, `attached_identifier`
    W + (alpha / rank) B A (LoRA, eq. 3)                       `adapters.inserted_lora`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..adapters import EMBEDDINGS, LORA, AdapterHandler, attached_words, inserted_lora
from ..adapters.lora import learned
from ..adapters.words import start_rows, text_parts
from ..bases import Base
from ..errors import ConfigurationError
from ..prompt import SlotWord, placeholder_tokens
from ..subject import Subject
from .registry import register_method
from .tuning import PriorSettings, TuningMethod, TuningSettings, TuningTask, prior_latents
from .updates import setting

TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "transformer": ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    "all": (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "time_emb_proj"),
    ),
}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
NEW = "new"


@dataclass(frozen=True)
class IdentifierSettings:
    """Settings of the word, and of the text encoder that reads it."""

    text_encoder: bool = setting(False, "train the text encoder, too")
    text_lr: float | None = setting(None, "its learning rate; lr by default")
    identifier: str = setting("sks", "rare word before the noun, or 'new': a token of its own")
    identifier_lr: float = setting(0.0, "learning rate of the new token's row; 0: it stays as it starts")
    identifier_start: str = setting("", "word whose row the new token starts from; a random row by default")

    def word_problems(self) -> list[str]:
        """What is wrong with them."""
        wrong = []
        if self.identifier_lr < 0 or (self.text_lr is not None and self.text_lr <= 0):
            wrong.append("identifier_lr must be at least 0, text_lr above 0")
        if self.identifier_lr and self.identifier != NEW:
            wrong.append(f"identifier_lr needs identifier={NEW}: a row of the vocabulary is never trained")
        return wrong


@dataclass(frozen=True)
class DreamBoothLoraSettings(IdentifierSettings, PriorSettings, TuningSettings):
    """Of the published example scripts: rank 4, 1e-4, one picture of the subject and one of the class a step."""

    rank: int = setting(4, "of the low-rank weights")
    alpha: float | None = setting(None, "their scale times the rank; the rank by default")
    targets: Literal["attention", "transformer", "all"] = setting(
        "attention", "of the denoiser: q, k, v and out; the whole transformer blocks; or the convolutions, too"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_prior()
        wrong = self.word_problems()
        if not 1 <= self.rank <= 1024:
            wrong.append(f"rank {self.rank} must be in 1 ... 1024")
        if self.alpha is not None and self.alpha <= 0:
            wrong.append(f"alpha {self.alpha} must be above 0")
        if wrong:
            raise ValueError("; ".join(wrong))


def identifier_word(subject: Subject, identifier: str) -> tuple[SlotWord, tuple[str, ...]]:
    """ "sks dog", or "<rufus> dog" with its new token."""
    tokens = placeholder_tokens(subject.name) if identifier == NEW else ()
    return SlotWord(f"{' '.join(tokens) or identifier} {subject.noun}", subject.noun), tokens


@contextmanager
def attached_identifier(
    base: Base, settings: IdentifierSettings, tokens: tuple[str, ...], seed: int
) -> Iterator[nn.ParameterDict]:
    """The new token, if there is one, with its row by text encoder (1, width); it requires gradients if it trains."""
    if not tokens:
        yield nn.ParameterDict()
        return
    rows = start_rows(base, settings.identifier_start, seed)
    words = nn.ParameterDict({name: nn.Parameter(row) for name, row in rows.items()})
    words.requires_grad_(bool(settings.identifier_lr))
    with attached_words(base, tokens, dict(words.items())):
        yield words


def identifier_group(words: nn.ParameterDict, settings: IdentifierSettings) -> dict[str, Any]:
    """For the optimizer: no decay, for the row has a meaning where it starts."""
    return {"params": list(words.values()), "lr": settings.identifier_lr, "weight_decay": 0.0}


def target_modules(model: nn.Module, ends: tuple[str, ...]) -> list[str]:
    """Names of the linear and convolutional modules of a model that end so, low-rank weights on them or not."""
    kinds = (nn.Linear, nn.Conv2d)
    named = [name for name, m in model.named_modules() if isinstance(getattr(m, "base_layer", m), kinds)]
    found = [name for name in named if name.endswith(tuple(f".{end}" for end in ends))]
    if not found:
        raise ConfigurationError(f"{type(model).__name__} has no modules called {', '.join(ends)}")
    return found


@register_method("dreambooth-lora")
class DreamBoothLora(TuningMethod):
    """Learns low-rank weights of the denoiser; optionally of the text encoder, and a word of its own."""

    Settings = DreamBoothLoraSettings
    presets = {
        "small": {
            "steps": 400, "lr": 2e-3, "batch_size": 4, "prior_batch": 4, "prior_pictures": 32, "rank": 16,
            "identifier": NEW, "identifier_lr": 2e-3, "schedule": "cosine",
        },
        "paper": {"steps": 1000, "lr": 1e-4, "prior_pictures": 1000},
        "detex-paper": {"steps": 1000, "lr": 1e-4},
        "scp-paper": {"steps": 2000, "lr": 1e-4},
        "tea-paper": {"steps": 3000, "lr": 1e-4, "text_encoder": True},
    }  # fmt: skip
    handler = AdapterHandler()

    @contextmanager
    def task(
        self, subject: Subject, base: Base, settings: DreamBoothLoraSettings, progress: bool
    ) -> Iterator[TuningTask]:
        prior = prior_latents(base, subject, settings, progress)
        word, tokens = identifier_word(subject, settings.identifier)
        modules: dict[str, nn.Module] = {}
        groups: list[dict[str, Any]] = []
        with ExitStack() as stack:
            words = self.words = stack.enter_context(attached_identifier(base, settings, tokens, settings.seed))
            if tokens and settings.identifier_lr:
                modules["words"] = words
                groups.append(identifier_group(words, settings))
            self.scale = (settings.alpha or settings.rank) / settings.rank
            self.layers: dict[str, dict[str, Any]] = {}
            for part, ends in self._parts(base, settings).items():
                model = base.modules[part]
                ranks = {name: settings.rank for name in target_modules(model, ends)}
                layers = stack.enter_context(inserted_lora(model, ranks, subject.name, self.scale, settings.seed))
                self.layers[part] = layers
                modules[part] = _bag(layers, subject.name)
                rate = settings.lr if part == self._denoiser(base) else settings.text_lr or settings.lr
                groups.append({"params": list(modules[part].parameters()), "lr": rate})
            yield TuningTask(
                subject, base, settings, word, tokens, modules, groups, text_trains=settings.text_encoder, prior=prior
            )

    def tensors(self, task: TuningTask) -> dict[str, dict[str, Tensor]]:
        name = task.subject.name
        files = {
            LORA: {
                key: tensor
                for part, layers in self.layers.items()
                for key, tensor in learned(layers, name, part, self.scale).items()
            }
        }
        if task.tokens:
            files[EMBEDDINGS] = {n: p.detach().float().cpu().clone() for n, p in self.words.named_parameters()}
        return files

    def _parts(self, base: Base, settings: DreamBoothLoraSettings) -> dict[str, tuple[str, ...]]:
        parts = {self._denoiser(base): TARGETS[settings.targets]}
        if not settings.text_encoder:
            return parts  # T5 is never tuned: as in diffusers, FLUX's CLIP is
        clip = [name for name, (_, encoder) in text_parts(base).items() if type(encoder).__name__.startswith("CLIP")]
        return parts | {name: TEXT_TARGETS for name in clip}

    @staticmethod
    def _denoiser(base: Base) -> str:
        return next(name for name, module in base.modules.items() if module is base.denoiser)


def _bag(layers: dict[str, Any], name: str) -> nn.Module:
    """The low-rank weights alone, as a module: what a checkpoint holds."""
    return nn.ParameterDict(
        {
            f"{module}/{end}".replace(".", "/"): getattr(layer, end)[name].weight
            for module, layer in layers.items()
            for end in ("lora_A", "lora_B")
        }
    )
