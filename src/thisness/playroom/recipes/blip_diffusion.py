"""BLIP-Diffusion on the Playroom: a small querying transformer over the states of `playroom-clip` and the noun's own
row of the vocabulary, and low-rank weights of the keys and values that read the sentence.

In 15 % of the rows the picture is not read, and the noun stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.lora import inserted_lora, learned
from ...methods.blip_diffusion import LORA_PART, NAME, normalised
from ...methods.blip_qformer import QFormer, QFormerConfig
from ...methods.elite import keys_and_values
from ...training.loop import LoopConfig
from .word_hosts import WordHostTask

BLIP = LoopConfig(
    steps=1800,
    lr=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=50,
    schedule="linear-tail",
    tail=0.5,
    final_fraction=0.02,
    clip=1.0,
    precision="auto",
    seed=23,
    preview_every=300,
)
QUERIES, RANK, LEVEL = 8, 8, -1
SIZES: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 0,
    "max_position_embeddings": 8, "num_query_tokens": QUERIES,
}  # fmt: skip
ADAPTER = "blip"


class BlipDiffusionTask(WordHostTask):
    """Queries, projection and low-rank weights; all else is frozen."""

    name = NAME
    words = QUERIES
    keeps_noun = True
    drop_subject = 0.15

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        width = int(self.text_encoder.config.hidden_size)
        config = QFormerConfig(**SIZES, encoder_hidden_size=self.encoder.width, words_size=width, out_size=width)
        torch.manual_seed(BLIP.seed)
        self.qformer = QFormer(config)
        nn.init.normal_(self.qformer.query_tokens, std=1.0)
        nn.init.normal_(self.qformer.embeddings.position_embeddings.weight, std=0.02)
        with torch.no_grad():
            self.qformer.output_projection.weight.mul_(0.1)
            self.qformer.output_projection.bias.copy_(self.usual_row())
        ranks = {name.removesuffix(".weight"): RANK for name in keys_and_values(self.base.denoiser)}
        self.kept = ExitStack()  # for as long as the task: the base is its own
        self.layers = self.kept.enter_context(inserted_lora(self.base.denoiser, ranks, ADAPTER, seed=BLIP.seed))
        self.lora = nn.ModuleDict(
            {
                name.replace(".", "/"): nn.ModuleList([layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]])
                for name, layer in self.layers.items()
            }
        )

    def modules(self) -> dict[str, nn.Module]:
        return {"qformer": self.qformer, "lora": self.lora}

    def rows(self, pixels: Tensor, nouns: Sequence[str]) -> Tensor:
        return self.qformer(normalised(self.encoder.states(pixels, [LEVEL])[0]), *self.noun_rows(nouns))

    def finish(self, folder: Path) -> None:
        """The querying transformer, and the low-rank weights."""
        tensors = dict(self.qformer.state_dict())
        tensors |= learned(self.layers, ADAPTER, LORA_PART.rstrip("."))
        self.save(folder, tensors, {"method": NAME, "level": LEVEL, "qformer": asdict(self.qformer.config)})
