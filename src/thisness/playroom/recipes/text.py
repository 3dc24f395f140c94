"""Tokenizer and text encoder: a CLIPTextModel taught to keep everything that a caption says, then frozen for good.

Linear heads must read each attribute (with "not said" as a value of its own) from the end token and from a random
padding token, because the UNet attends to all of them. Words the world does not know are thrown in now and then, so
that they do no harm.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig, Task
from ..captions import ALWAYS, ATTRIBUTES, OFTEN, caption, caption_and_mentions
from ..models import TEXT_LENGTH, TEXT_WIDTH, make_text_encoder
from ..world import Scene, random_scene, rng_of

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

TEXT = LoopConfig(
    steps=1600,
    lr=2e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    warmup=100,
    schedule="cosine",
    final_fraction=0.01,
    clip=1.0,
    precision="auto",
    seed=5,
    preview_every=400,
)
STRANGERS = """
toy cute little big happy sad shiny old new lovely small tiny fluffy my your the one very some nice clay soft round
funny brave proud quiet bright dark sunny rainy morning evening summer winter
close up portrait view of and at by under over near behind sks
""".split()  # noqa: SIM905


def build_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE of the CLIP kind, 48 tokens long, with a merge for every word that the world's captions use."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    sentences = [caption(random_scene(i), rng_of("bpe", i), ALWAYS if i % 2 else OFTEN) for i in range(20000)]
    sentences += [" ".join(STRANGERS)] * 50
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(
        sentences, trainers.BpeTrainer(vocab_size=2000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    )
    import json

    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys("".join(pair) for pair in merges)]
    vocabulary = list(dict.fromkeys(vocabulary)) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, model_max_length=TEXT_LENGTH
    )


def estranged(sentence: str, rng: Random, probability: float = 0.15) -> str:
    """The sentence with, now and then, a word before its noun or at its end that the world does not know."""
    if rng.random() >= probability:
        return sentence
    word = (
        rng.choice(STRANGERS)
        if rng.random() < 0.6
        else "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 7)))
    )
    words = sentence.split()
    words.insert(rng.randrange(len(words) + 1), word)
    return " ".join(words)


def tokenize(tokenizer: CLIPTokenizer, sentences: list[str]) -> Tensor:
    """Token ids (N, 48), padded and, if need be, cut."""
    return tokenizer(
        sentences, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


class TextTask(Task):
    """Cross-entropy of what the caption says, read off two tokens."""

    name = "text"

    def __init__(self, batch_size: int = 96, scenes: int = 65536) -> None:
        self.tokenizer, self.batch_size, self.scenes = build_tokenizer(), batch_size, scenes
        self.encoder: CLIPTextModel = make_text_encoder(self.tokenizer)
        self.heads = nn.ModuleDict(
            {n.replace(" ", "_"): nn.Linear(TEXT_WIDTH, len(v) + 1) for n, v in ATTRIBUTES.items()}
        )
        self._scenes: dict[int, Scene] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "heads": self.heads}

    def _batch(self, seeds: list[int], rng: Random, split="train") -> tuple[Tensor, Tensor]:
        pairs = [caption_and_mentions(random_scene(seed, split), rng) for seed in seeds]
        ids = tokenize(self.tokenizer, [estranged(sentence, rng) for sentence, _ in pairs])
        said = torch.tensor([[len(v) if m[n] < 0 else m[n] for n, v in ATTRIBUTES.items()] for _, m in pairs])
        return ids, said

    def _logits(self, ids: Tensor, padding: Tensor) -> list[dict[str, Tensor]]:
        out = self.encoder(input_ids=ids)
        rows = torch.arange(len(ids), device=ids.device)
        states = (out.pooler_output, out.last_hidden_state[rows, padding])
        return [{n: self.heads[n.replace(" ", "_")](h.float()) for n in ATTRIBUTES} for h in states]

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.encoder.device
        seeds = torch.randint(0, self.scenes, (self.batch_size,), generator=rng).tolist()
        ids, said = self._batch(seeds, Random(int(torch.randint(0, 1 << 40, (), generator=rng))))
        # padding only: after the end token (captions are at most 35 tokens long)
        padding = torch.randint(TEXT_LENGTH - 12, TEXT_LENGTH, (len(ids),), generator=rng)
        ids, said, padding = ids.to(device), said.to(device), padding.to(device)
        losses = [
            F.cross_entropy(x[n], said[:, i]) for x in self._logits(ids, padding) for i, n in enumerate(ATTRIBUTES)
        ]
        return {"loss": torch.stack(losses).sum()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        self.encoder.eval()
        ids, said = self._batch(list(range(512)), Random(0), "held-out")
        device = self.encoder.device
        end, pad = self._logits(ids.to(device), torch.full((512,), TEXT_LENGTH - 3, device=device))
        out = {n: float((end[n].argmax(1).cpu() == said[:, i]).float().mean()) for i, n in enumerate(ATTRIBUTES)}
        out["worst on padding"] = min(
            float((pad[n].argmax(1).cpu() == said[:, i]).float().mean()) for i, n in enumerate(ATTRIBUTES)
        )
        out["longest caption in tokens"] = float((ids != self.tokenizer.pad_token_id).sum(1).max() + 1)
        self.encoder.train()
        return out
