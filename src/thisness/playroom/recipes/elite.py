"""ELITE on the Playroom, in its two stages: first words, keys and values; then, with these frozen, the local stream.

stage 1   loss + 0.01 mean|w|; in half of the steps the deepest level's word alone, else all of them
stage 2   loss + 1e-4 mean|V_l|; the deepest level's word alone
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import Context, attached, rows_of
from ...methods.elite import (
    GLOBAL_PART,
    LOCAL_PART,
    GlobalMapper,
    LocalAttention,
    LocalMapper,
    keys_and_values,
    published,
    read_local,
)  # fmt: skip
from ...training.loop import LoopConfig
from .word_hosts import WordHostTask

LEVELS = (-1, 4)
HIDDEN = 40
WORDS, VALUES = 0.01, 1e-4  # weights of the penalties
SMALL = 0.1  # of the last layers at first
GLOBAL = LoopConfig(
    steps=1300,
    lr=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=50,
    schedule="linear-tail",
    tail=0.5,
    final_fraction=0.02,
    clip=1.0,
    precision="auto",
    seed=21,
    preview_every=325,
)
LOCAL = LoopConfig(
    steps=600,
    lr=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=30,
    schedule="linear-tail",
    tail=0.5,
    final_fraction=0.02,
    clip=1.0,
    precision="auto",
    seed=22,
    preview_every=200,
)


class EliteGlobalTask(WordHostTask):
    """Stage 1."""

    name = "elite-global"
    words = len(LEVELS)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        denoiser = self.base.denoiser
        width = int(self.text_encoder.config.hidden_size)
        torch.manual_seed(GLOBAL.seed)
        self.mapper = GlobalMapper(len(LEVELS), self.encoder.width, HIDDEN, width, keys_and_values(denoiser))
        last_layers(self.mapper, SMALL)
        with torch.no_grad():
            for level in range(len(LEVELS)):
                self.mapper.get_parameter(f"mapping_{level}.6.bias").copy_(self.usual_row())
            for name in self.mapper.names:
                self.mapper.projection(name).copy_(denoiser.get_parameter(name))
        put_on(denoiser, self.mapper)
        self.count = 1  # as it is used

    def modules(self) -> dict[str, nn.Module]:
        return {"global": self.mapper}

    def word(self, noun: str) -> str:
        return " ".join(self.tokens[: self.count])

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        self.count = 1 if float(torch.rand((), generator=rng)) < 0.5 else len(LEVELS)
        try:
            return super().loss(step, rng)
        finally:
            self.count = 1

    def rows(self, pixels: Tensor, nouns: Sequence[str]) -> Tensor:
        return self.mapper(self.encoder.states(pixels, LEVELS))

    def penalty(self, rows: Tensor) -> Tensor:
        return WORDS * rows.abs().mean()


class EliteLocalTask(WordHostTask):
    """Stage 2."""

    name = "elite-local"

    def __init__(self, *args: Any, mapper: GlobalMapper, **more: Any) -> None:
        super().__init__(*args, **more)
        self.frozen = mapper.eval().requires_grad_(False)
        denoiser = self.base.denoiser
        put_on(denoiser, self.frozen)
        width = int(self.text_encoder.config.hidden_size)
        torch.manual_seed(LOCAL.seed)
        self.mapper = LocalMapper(len(LEVELS), self.encoder.width, HIDDEN, width, keys_and_values(denoiser))
        with torch.no_grad():
            for name in self.mapper.names:
                self.mapper.projection(name).copy_(self.frozen.projection(name))
        self.values: dict[str, Tensor] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"local": self.mapper}

    def on_start(self, device: torch.device) -> None:
        super().on_start(device)
        self.frozen.to(device)

    def rows(self, pixels: Tensor, nouns: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return self.frozen(self.encoder.states(pixels, LEVELS))[:, :1]

    @contextmanager
    def _acting(self, pixels: Tensor, mask: Tensor, ids: Tensor) -> Iterator[None]:
        read = read_local(self.mapper, self.encoder.states(pixels, LEVELS), mask)
        self.values = {}

        def keys_values(site: str) -> tuple[Tensor, Tensor]:
            k, v = (F.linear(read, self.mapper.projection(f"{site}.{end}.weight")) for end in ("to_k", "to_v"))
            self.values[site] = v
            return k, v

        with attached(self.base.denoiser, _Everywhere(ids == self.first, keys_values)) as context:
            context.rows = rows_of(["cond"], len(ids))
            yield

    def acting(self, pixels: Tensor, mask: Tensor, ids: Tensor) -> AbstractContextManager[Any]:
        return self._acting(pixels, mask, ids)

    def penalty(self, rows: Tensor) -> Tensor:
        return VALUES * torch.stack([value.abs().mean() for value in self.values.values()]).mean()

    def finish(self, folder: Path) -> None:
        """Both mappers in one folder."""
        parts = ((GLOBAL_PART, self.frozen), (LOCAL_PART, self.mapper))
        tensors = {f"{part}{name}": value for part, mapper in parts for name, value in mapper.state_dict().items()}
        self.save(folder, tensors, {"method": "elite", "levels": list(LEVELS)})


class _Everywhere(LocalAttention):
    """In training: the word's places are known from the ids. places: (n, length) of bool."""

    def __init__(self, places: Tensor, keys_values: Any) -> None:
        super().__init__("", keys_values, 1.0)
        self.places = places.float()
        self.having = places.any(1).nonzero().flatten().tolist()

    def columns(self, context: Context, length: int) -> tuple[list[int], Tensor]:
        return self.having, self.places[self.having]


def last_layers(mapper: nn.Module, factor: float) -> None:
    """Make what the MLPs give small."""
    with torch.no_grad():
        for name, parameter in mapper.named_parameters():
            if name.startswith("mapping") and ".6." in name:
                parameter.mul_(factor if name.endswith("weight") else 0.0)


def put_on(denoiser: nn.Module, mapper: GlobalMapper) -> None:
    """Let cross-attention compute with the mapper's own keys' and values' weights: a denoiser of one's own."""
    for name in mapper.names:
        site, _, end = name.removesuffix(".weight").rpartition(".")
        setattr(denoiser.get_submodule(site), end, mapper.get_submodule(published(name)))
