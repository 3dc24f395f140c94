"""TEA by dimension: how much each dimension matters to the context. Not in the paper.

A dimension d goes alpha_d = alpha w_d / mean(w) of the way to the noun, at most all of it (`tea.rotate`). The rules:

    rows of a word (token level)        w_d = sqrt( mean over g of (d <g, s> / d row_d)^2 ), s the states of the context
                                        words and of the end mark in this very sentence, g random directions: how far
                                        those states move when the word's dimension d does (FLUX's CLIP: the pooled
                                        state, which alone is read)
    states (prompt level)               w_d = standard deviation of dimension d at the end mark between sentences that
                                        differ in their context alone ("a dog in the snow", "a dog at night" ...)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters.words import overridden_rows, vocabulary_rows
from ..bases import Base
from ..conditioning import encode
from ..prompt import FilledPrompt, SlotWord
from .templates import sentences

PROBES = 8
CONTEXTS = (
    "a {subject} in the snow", "a {subject} on the beach", "a {subject} at night", "a {subject} in the city",
    "a {subject} in the forest", "a {subject} in the kitchen", "a {subject} wearing a red hat",
    "a {subject} with a blue ball", "a {subject} beside a tree", "a {subject} sleeping", "a {subject} running",
    "a pencil sketch of a {subject}", "a watercolour of a {subject}",
)  # fmt: skip


def of_rows(base: Base, filled: FilledPrompt, tokens: Sequence[str]) -> dict[str, Tensor]:
    """Weights of the dimensions of a word's rows in one sentence.

    Args:
        base: with the word attached.
        filled: the sentence.
        tokens: of the word.

    Returns:
        By text encoder: (tokens, width) at least 0, float32.
    """
    spans = filled.tokenize(base.tokenizer)
    positions = list(spans.where("context", "eos"))
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        rows = {name: row.requires_grad_(True) for name, row in vocabulary_rows(base, " ".join(tokens)).items()}
        with overridden_rows(base, tokens, rows):
            encoded = encode(base, filled)
            states = encoded.embeds[0, positions].float()
        squares = {name: torch.zeros_like(row) for name, row in rows.items()}
        for _ in range(PROBES):
            direction = torch.randn(states.shape, generator=generator).to(states.device)
            flows = list(
                torch.autograd.grad(states, list(rows.values()), direction, retain_graph=True, allow_unused=True)
            )
            for at, (name, row) in enumerate(rows.items()):
                if (
                    flows[at] is None and encoded.pooled is not None
                ):  # an encoder of which only the pooled state is read
                    along = torch.randn(encoded.pooled.shape, generator=generator).to(states.device)
                    (flows[at],) = torch.autograd.grad(encoded.pooled.float(), row, along, retain_graph=True)
                squares[name] += flows[at].detach().float().square()
    return {name: (square / PROBES).sqrt() for name, square in squares.items()}


@torch.no_grad()
def of_states(base: Base, noun: str) -> Tensor:
    """Weights of the dimensions of encoded sentences: (width,), at least 0.

    Args:
        base: its text encoder as it is now.
        noun: the subject of the sentences; those with words that the base must spell are left out.
    """
    found = encode(base, sentences(base, CONTEXTS, SlotWord(noun, noun)))
    ends = torch.stack([row[span.end] for row, span in zip(found.embeds, found.spans, strict=True)])
    return ends.float().std(0, unbiased=False) if len(ends) > 1 else torch.ones_like(ends[0])
