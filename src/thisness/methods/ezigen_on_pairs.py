"""EZIGen's adapter on pairs: subjects before white are read, the picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..attention import crossing_sites
from ..bases import Base
from ..conditioning import Conditioning, encode
from ..errors import ConfigurationError
from .ezigen_adapter import EZIGenAdapter
from .ezigen_training import (
    PROMPT,
    Batch,
    EZIGenTraining,
    TrainedSubjects,
    TrainingConfig,
    drops,
    parameter_groups,
    save_weights,
)
from .pair_training import PairSettings, PairTraining, Row, base_latents, mask_at, picture_size
from .pairs import Pair
from .updates import setting

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class EZIGenPairSettings(PairSettings):
    """How EZIGen's adapter is trained."""

    gate_lr: float = setting(1e-3, "learning rate of the gates, which start closed")
    choice: Literal["all", "first"] = setting("all", "blocks with an adapter: all, or the first of each transformer")
    drop_subject: float = setting(0.2, "share of the rows without a subject; its keys are absent, not zero")
    drop_both: float = setting(0.05, "of those, the share of all rows that have no text either")
    drop_text: float = setting(0.05, "share of the rows with a subject and no text")
    late: float = setting(0.5, "share of the rows whose noise levels are of the lower half; 0: uniform, as the paper")
    prompt: str = setting(PROMPT, "read with the subject")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{noun}" not in self.prompt:
            raise ValueError(f"prompt {self.prompt!r} must contain {{noun}}")
        if self.gate_lr <= 0:
            raise ValueError(f"gate_lr {self.gate_lr} must be above 0")
        try:
            _ = self.config
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @property
    def config(self) -> TrainingConfig:
        """The same for the loss."""
        return TrainingConfig(self.subject_weight, self.drop_subject, self.drop_both, self.drop_text, self.late)


class EZIGenOnPairs(PairTraining):
    """Rows: "target" (C, h, w), "mask" (1, h, w), "subjects" (n, C, h, w)."""

    Settings: ClassVar[type[PairSettings]] = EZIGenPairSettings

    @classmethod
    def check(cls, method: str, base: Base) -> None:
        crossing_sites(base.denoiser, method)

    def __init__(self, method: str, base: Base, settings: EZIGenPairSettings) -> None:
        self.base, self.options = base, settings
        self.adapter = EZIGenAdapter.of(base.denoiser, choice=settings.choice).float().to(base.device)
        self.training = EZIGenTraining(base, self.adapter, settings.config)
        self._words: dict[str, Conditioning] = {}

    def encode(self, pair: Pair) -> dict[str, Tensor]:
        drawn = base_latents(self.base, pair.picture)
        read = torch.stack([base_latents(self.base, each) for each in pair.subjects])
        return {"target": drawn, "mask": mask_at(pair, drawn), "subjects": read}

    def modules(self) -> dict[str, nn.Module]:
        return {"adapter": self.adapter}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.adapter, self.options.gate_lr)

    def loss(self, rows: Sequence[Row], rng: torch.Generator) -> dict[str, Tensor]:
        no_subject, no_text = drops(len(rows), rng, self.options.config)
        return self.training.loss(self.batch(rows, no_subject.tolist(), no_text.tolist()), rng)

    def batch(self, rows: Sequence[Row], no_subject: Sequence[bool] = (), no_text: Sequence[bool] = ()) -> Batch:
        """Rows without what is dropped."""
        told = [n for n in range(len(rows)) if not (no_subject and no_subject[n])]
        counts = [len(row.tensors["subjects"]) if n in told else 0 for n, row in enumerate(rows)]
        targets = torch.stack([row.tensors["target"] for row in rows]).float()
        subjects = [rows[n].tensors["subjects"].float() for n in told]
        nouns = [noun for n in told for noun in rows[n].nouns]
        return Batch(
            targets,
            ["" if no_text and no_text[n] else row.caption for n, row in enumerate(rows)],
            counts,
            torch.cat(subjects) if subjects else targets[:0],
            Conditioning.cat([self.words(noun) for noun in nouns]) if nouns else None,
            torch.stack([row.tensors["mask"] for row in rows]).float(),
        )

    @torch.no_grad()
    def words(self, noun: str) -> Conditioning:
        """What is read with a noun; encoded once."""
        if noun not in self._words:
            self._words[noun] = encode(self.base, self.options.prompt.replace("{noun}", noun))
        return self._words[noun]

    def gap(self, rows: Sequence[Row], rng: torch.Generator, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        adapter: Any = modules["adapter"]
        return self.training.gap(self.batch(rows), rng, adapter)

    def pictures(self, rows: Sequence[Row], modules: Mapping[str, nn.Module]) -> list[list[Image]]:
        """The subject in all steps, 20 of them."""
        from ..sampling import SamplingOptions, decode_images, sample

        adapter: Any = modules["adapter"]
        base, batch = self.base, self.batch(rows)
        seen = torch.randn((1, *batch.targets.shape[1:]), generator=torch.Generator().manual_seed(0))
        acting = TrainedSubjects(adapter, self.training.keys(batch, seen, adapter), batch.reads)
        size = picture_size(base, self.options)
        options, seeds = SamplingOptions(steps=20, height=size, width=size), list(range(len(rows)))
        latents = sample(base, encode(base, batch.sentences), None, seeds, options, interventions=[acting])
        firsts = torch.stack([row.tensors["subjects"][0] for row in rows])
        shown = [each.to(base.device, base.dtype) for each in (firsts, batch.targets, latents)]
        return [list(each) for each in zip(*(decode_images(base, each) for each in shown), strict=True)]

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        adapter: Any = modules["adapter"]
        save_weights(folder, self.base, adapter, self.options.prompt)
