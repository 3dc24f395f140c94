"""T5 and CLIP of the embedded FLUX: taught to keep what a caption says, as `text.py` does, then frozen.

The transformer attends to T5's states of all 40 positions, padding included, and reads CLIP at the end mark alone.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig, Task
from ..captions import ATTRIBUTES, caption_and_mentions, names_of, renamed
from ..flux_models import POOLED, POOLED_LENGTH, SENTENCE, STATES, build_t5_tokenizer, make_flux_clip, make_t5
from ..world import Scene, random_scene
from .text import estranged

FLUX_TEXT = LoopConfig(
    steps=1200,
    lr=1.5e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    warmup=100,
    schedule="cosine",
    final_fraction=0.01,
    clip=1.0,
    precision="auto",
    seed=22,
    preview_every=400,
)
WIDER = (0.08, 0.04)  # how often a caption says the parent, and the broadest name


def ids_of(tokenizer: Any, sentences: list[str], length: int) -> Tensor:
    """(N, length), padded and, if need be, cut."""
    return tokenizer(sentences, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def called(noun: str, rng: Random) -> str:
    """What a caption calls a toy: its class, rarely its parent or the broadest name."""
    leaf, parent, broadest = names_of(noun)
    drawn = rng.random()
    return parent if drawn < WIDER[0] else broadest if drawn < sum(WIDER) else leaf


class FluxTextTask(Task):
    """Linear heads read every attribute off T5's state at the end mark and at a random padding token, and off CLIP's
    at its end mark."""

    name = "flux-text"

    def __init__(self, clip_tokenizer: Any, batch_size: int = 64, scenes: int = 65536) -> None:
        self.tokenizer, self.clip_tokenizer = build_t5_tokenizer(), clip_tokenizer
        self.t5, self.clip_text = make_t5(self.tokenizer), make_flux_clip(clip_tokenizer)
        self.batch_size, self.scenes = batch_size, scenes
        self.heads = nn.ModuleDict(
            {
                f"{name}_{where}".replace(" ", "_"): nn.Linear(POOLED if where == "clip" else STATES, len(values) + 1)
                for name, values in ATTRIBUTES.items()
                for where in ("t5", "clip")
            }
        )

    def modules(self) -> dict[str, nn.Module]:
        return {"t5": self.t5, "clip": self.clip_text, "heads": self.heads}

    def _batch(self, seeds: list[int], rng: Random, split: Any = "train") -> tuple[list[str], Tensor]:
        scenes: list[Scene] = [random_scene(seed, split) for seed in seeds]
        pairs = [caption_and_mentions(scene, rng) for scene in scenes]
        said = torch.tensor([[len(v) if m[n] < 0 else m[n] for n, v in ATTRIBUTES.items()] for _, m in pairs])
        sentences = []
        for number, (sentence, _) in enumerate(pairs):
            noun = scenes[number].subject.identity.noun
            name = called(noun, rng)
            said[number, 0] = said[number, 0] if name == noun else len(ATTRIBUTES["class"])
            sentences.append(estranged(renamed(sentence, noun, name), rng))
        return sentences, said

    def states(self, sentences: list[str], padding: Tensor) -> list[tuple[str, Tensor]]:
        """The three states that are read: "t5" twice, "clip" once, (N, width) each."""
        words = ids_of(self.tokenizer, sentences, SENTENCE).to(self.device)
        clip = ids_of(self.clip_tokenizer, sentences, POOLED_LENGTH).to(self.device)
        rows = torch.arange(len(words), device=self.device)
        t5 = self.t5(input_ids=words)[0]
        end = words.eq(self.tokenizer.eos_token_id).int().argmax(-1)
        return [
            ("t5", t5[rows, end]),
            ("t5", t5[rows, padding.to(self.device)]),
            ("clip", self.clip_text(input_ids=clip).pooler_output),
        ]

    def _logits(self, where: str, states: Tensor) -> dict[str, Tensor]:
        return {n: self.heads[f"{n}_{where}".replace(" ", "_")](states.float()) for n in ATTRIBUTES}

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        seeds = torch.randint(0, self.scenes, (self.batch_size,), generator=rng).tolist()
        sentences, said = self._batch(seeds, Random(int(torch.randint(0, 1 << 40, (), generator=rng))))
        padding = torch.randint(SENTENCE - 8, SENTENCE, (len(sentences),), generator=rng)
        said, total, parts = said.to(self.device), torch.zeros((), device=self.device), {}
        for number, (where, states) in enumerate(self.states(sentences, padding)):
            logits = self._logits(where, states)
            own = torch.stack([F.cross_entropy(logits[n], said[:, i]) for i, n in enumerate(ATTRIBUTES)]).sum()
            total, parts[("t5", "padding", "clip")[number]] = total + own, own.detach()
        return {"loss": total, **parts}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Per cent right of the worst attribute, off each of the three states."""
        sentences, said = self._batch(list(range(512)), Random(0), "held-out")
        self.t5.eval(), self.clip_text.eval()
        read = self.states(sentences, torch.full((512,), SENTENCE - 2))
        self.t5.train(), self.clip_text.train()
        out = {}
        for (where, states), title in zip(read, ("end", "padding", "clip"), strict=True):
            logits = self._logits(where, states)
            right = [
                100 * float((logits[n].argmax(1).cpu() == said[:, i]).float().mean()) for i, n in enumerate(ATTRIBUTES)
            ]
            out[f"worst, {title}"] = min(right)
        longest = max(len(self.tokenizer(sentence).input_ids) for sentence in sentences)
        return out | {"longest caption in tokens": float(longest)}
