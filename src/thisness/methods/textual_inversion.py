"""An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion.

Gal et al., ICLR 2023, arXiv 2208.01618. Equation -> function:

    eq. 2, v* = argmin E || eps - eps_theta(z_t, t, c_theta(y)) ||^2   `tuning.TuningTask.loss`
    v* in place of a word's row, all else frozen (section 3)           `adapters.attached_words`, here only rows train
    start from the row of a coarse word (section 3)                    `first_rows`
    neutral sentences "a photo of S*", ... (appendix E)                `templates.OBJECT`
    several vectors for one word (section 5)                           setting `vectors`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..adapters import EMBEDDINGS, AdapterHandler, attached_words
from ..adapters.words import vocabulary_rows
from ..bases import Base
from ..prompt import SlotWord, placeholder_tokens
from ..subject import Subject
from .registry import register_method
from .tuning import MeaningSettings, TuningMethod, TuningSettings, TuningTask
from .updates import setting


@dataclass(frozen=True)
class TextualInversionSettings(MeaningSettings, TuningSettings):
    """Of the official code: one picture a step, 5e-3 after its scaling, no clipping, the 27 sentences for objects."""

    steps: int = setting(3000, "updates of the word")
    lr: float = setting(5e-3, "learning rate of the word's rows")
    clip: float | None = setting(None, "largest norm of the gradient")
    captions: Literal["plain", "object"] = setting("object", "'a photo of a ...', or the 27 sentences for objects")
    vectors: int = setting(1, "rows (tokens) that the word has")
    start: str = setting("", "word whose rows to start from; the subject's noun by default")
    keep_noun: bool = setting(False, "write '<word> noun' in sentences, not '<word>' alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_meaning()
        if not 1 <= self.vectors <= 64:
            raise ValueError(f"vectors {self.vectors} must be in 1 ... 64")


def first_rows(base: Base, text: str, count: int, seed: int) -> dict[str, Tensor]:
    """Rows to start from, by text encoder: (count, width).

    The last token of the text gives the first row (it ends the noun: "bear" of "teddy bear"); the others are the
    same with a little noise, for equal rows would get equal gradients but for their places.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for name, known in vocabulary_rows(base, text).items():
        start = known[-1:].cpu()
        noise = torch.randn(count - 1, start.shape[1], generator=generator) * 0.1 * start.std()
        rows[name] = torch.cat([start, start + noise]).to(base.device)
    return rows


@register_method("textual-inversion")
class TextualInversion(TuningMethod):
    """Learns rows of the token embedding, nothing else."""

    Settings = TextualInversionSettings
    presets = {
        "small": {"steps": 400, "lr": 0.02, "batch_size": 8, "vectors": 2, "captions": "plain", "schedule": "cosine"},
        "paper": {"steps": 5000, "lr": 0.04, "batch_size": 8},
        "detex-paper": {"steps": 5000, "lr": 5e-3, "flip": True},
        "scp-paper": {"steps": 1000, "lr": 5e-4, "flip": True},
        "tea-paper": {"steps": 3000, "lr": 5e-4},
    }
    handler = AdapterHandler()

    @contextmanager
    def task(
        self, subject: Subject, base: Base, settings: TextualInversionSettings, progress: bool
    ) -> Iterator[TuningTask]:
        tokens = placeholder_tokens(subject.name, settings.vectors)
        rows = first_rows(base, settings.start or subject.noun, settings.vectors, settings.seed)
        words = nn.ParameterDict({name: nn.Parameter(start) for name, start in rows.items()})
        learned = " ".join(tokens)
        word = SlotWord(f"{learned} {subject.noun}" if settings.keep_noun else learned, subject.noun)
        with attached_words(base, tokens, dict(words.items())):
            groups: list[dict[str, Any]] = [{"params": list(words.values())}]
            yield TuningTask(subject, base, settings, word, tokens, {"words": words}, groups)

    def tensors(self, task: TuningTask) -> dict[str, dict[str, Tensor]]:
        return {
            EMBEDDINGS: {n: p.detach().float().cpu().clone() for n, p in task.modules()["words"].named_parameters()}
        }
