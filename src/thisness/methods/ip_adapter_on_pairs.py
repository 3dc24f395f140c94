"""IP-Adapter and IP-Adapter Plus on pairs: the picture that is shown is drawn again, under its caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..attention import crossing_sites
from ..bases import Base
from ..conditioning import encode
from .image_encoders import EMBEDDED, open_encoder
from .ip_adapter_training import (
    Batch,
    IPAdapterTraining,
    TrainedTokens,
    drops,
    make_adapter,
    save_weights,
    without,
)
from .ip_adapter_weights import VIT_H, encoded, encoder_signature
from .pair_training import PairSettings, PairTraining, Row, base_latents, mask_at, picture_size
from .pairs import Pair
from .updates import setting

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class IPAdapterPairSettings(PairSettings):
    """How IP-Adapters are trained."""

    subject_weight: float = setting(0.0, "added to the weight of the loss inside of the subject's mask; 0: all alike")
    drop: float = setting(0.05, "share of the rows without picture, as many without text, as many without both")
    image_encoder: str = setting("", "a CLIP folder or hub id; the embedded one for embedded bases, else the published")
    shows: Literal["drawn", "read"] = setting(
        "drawn", "drawn: the picture itself (the paper); read: the pair's other one"
    )
    tokens: int = setting(0, "of a picture; 0: the published number")
    width: int = setting(0, "of ip-adapter-plus's resampler, a multiple of 64; 0: the text's, at most 1280")

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [] if 0 <= self.drop <= 1 / 3 else [f"drop {self.drop} must be in 0 ... 1/3"]
        wrong += (
            [] if self.width % 64 == 0 and 0 <= self.width <= 8192 else [f"width {self.width} must be a multiple of 64"]
        )
        wrong += [] if 0 <= self.tokens <= 1024 else [f"tokens {self.tokens} must be in 0 ... 1024"]
        if wrong:
            raise ValueError("; ".join(wrong))


class IPAdapterOnPairs(PairTraining):
    """Rows: "target" (C, h, w), "mask" (1, h, w), "features" of the image encoder."""

    Settings: ClassVar[type[PairSettings]] = IPAdapterPairSettings
    masks: ClassVar[bool] = False

    @classmethod
    def check(cls, method: str, base: Base) -> None:
        crossing_sites(base.denoiser, method)

    def __init__(self, method: str, base: Base, settings: IPAdapterPairSettings) -> None:
        self.method, self.base, self.options = method, base, settings
        embedded = base.facts.folder.startswith("playroom/")
        self.encoder = settings.image_encoder or (EMBEDDED if embedded else VIT_H)
        self.vision, self.prepare = open_encoder(self.encoder)
        self.vision.to(base.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.adapter = make_adapter(method, base, self.vision, settings.tokens, settings.width).to(base.device)
        self.training = IPAdapterTraining(base, self.adapter, settings.subject_weight)
        side = self.vision.config.image_size
        empty = torch.zeros(1, 3, side, side, device=base.device)
        _, self.null = encoded(self.vision, empty, self.training.reads)

    def key(self) -> dict[str, Any]:
        return {"features": self.encoder, "reads": self.training.reads, "shows": self.options.shows}

    def encode(self, pair: Pair) -> dict[str, Tensor]:
        drawn = base_latents(self.base, pair.picture)
        image = pair.picture if self.options.shows == "drawn" else pair.looks[0][0]
        pixels = self.prepare(images=[image], return_tensors="pt")["pixel_values"].to(self.base.device)
        features, _ = encoded(self.vision, pixels, self.training.reads)
        return {"target": drawn, "mask": mask_at(pair, drawn), "features": features[0]}

    def modules(self) -> dict[str, nn.Module]:
        return {"adapter": self.adapter}

    def parameter_groups(self) -> list[dict[str, Any]]:
        matrices = [p for p in self.adapter.parameters() if p.ndim > 1]
        return [
            {"params": matrices},
            {"params": [p for p in self.adapter.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]

    def batch(self, rows: Sequence[Row]) -> Batch:
        return Batch(
            torch.stack([row.tensors["target"] for row in rows]).float(),
            [row.caption for row in rows],
            torch.stack([row.tensors["features"] for row in rows]).float().to(self.base.device),
            torch.stack([row.tensors["mask"] for row in rows]).float(),
        )

    def loss(self, rows: Sequence[Row], rng: torch.Generator) -> dict[str, Tensor]:
        no_picture, no_text = drops(len(rows), rng, self.options.drop)
        full = self.batch(rows)
        sentences = ["" if gone else text for text, gone in zip(full.sentences, no_text.tolist(), strict=True)]
        features = without(full.features, self.null, no_picture)
        return self.training.loss(Batch(full.targets, sentences, features, full.mask), rng)

    @torch.no_grad()
    def gap(self, rows: Sequence[Row], rng: torch.Generator, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        adapter: Any = modules["adapter"]
        full, steps = self.batch(rows), len(self.training.alphas)
        noise, t = torch.randn(full.targets.shape, generator=rng), torch.linspace(0.02 * steps, 0.9 * steps, len(rows))
        features = {
            "right": full.features, "swapped": full.features.roll(1, 0), "absent": self.null.expand_as(full.features)
        }  # fmt: skip
        losses = {
            name: float(
                self.training.mean(Batch(full.targets, full.sentences, each, full.mask), noise, t.long(), adapter)
            )
            for name, each in features.items()
        }
        return {**losses, "gap": losses["swapped"] - losses["right"]}

    @torch.no_grad()
    def pictures(self, rows: Sequence[Row], modules: Mapping[str, nn.Module]) -> list[list[Image]]:
        """What is shown, and what is drawn; no guidance."""
        from ..sampling import SamplingOptions, decode_images, sample

        adapter: Any = modules["adapter"]
        base, batch, size = self.base, self.batch(rows), picture_size(self.base, self.options)
        acting = TrainedTokens(adapter, self.training.sites, adapter["image_proj"](batch.features))
        options, seeds = SamplingOptions(steps=20, guidance=1.0, height=size, width=size), list(range(len(rows)))
        latents = sample(base, encode(base, batch.sentences), None, seeds, options, interventions=[acting])
        made = (each.to(base.device, base.dtype) for each in (batch.targets, latents))
        return [list(each) for each in zip(*(decode_images(base, each) for each in made), strict=True)]

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        adapter: Any = modules["adapter"]
        encoder = {"name": self.encoder}
        if self.encoder == EMBEDDED:
            encoder["signature"] = encoder_signature()
        save_weights(folder, self.method, self.base, adapter, encoder)
