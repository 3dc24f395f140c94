"""From sentences to what the denoiser reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..bases import Base
from ..prompt import FilledPrompt, clean_text
from .conditioning import Conditioning


def encode(base: Base, prompts: str | FilledPrompt | Sequence[str | FilledPrompt]) -> Conditioning:
    """Run the base's text encoders, once for each distinct sentence; gradients flow unless they are off.

    Args:
        base: whose encoders.
        prompts: sentences without placeholders, "" included, or filled ones.

    Returns:
        One row for each prompt, in their order, on the base's device, with their spans.

    Raises:
        PromptError: too long for the encoder, or characters that it cannot read.
    """
    listed = [prompts] if isinstance(prompts, (str, FilledPrompt)) else list(prompts)
    filled = [FilledPrompt.plain(clean_text(each, "the prompt")) if isinstance(each, str) else each for each in listed]
    place: dict[str, int] = {}
    for prompt in filled:
        place.setdefault(prompt.text, len(place))
    by_tokenizer = list(zip(*(base.tokenize(prompt) for prompt in filled), strict=True))
    first = [next(i for i, prompt in enumerate(filled) if prompt.text == text) for text in place]
    tokens = [
        torch.tensor([spans[i].ids for i in first], dtype=torch.long, device=base.device) for spans in by_tokenizer
    ]
    encoding = base.encode_tokens(tokens)
    distinct = Conditioning(
        encoding.embeds.to(base.dtype),
        None if encoding.pooled is None else encoding.pooled.to(base.dtype),
        encoding.mask,
    )
    rows = [place[prompt.text] for prompt in filled]
    ordered = distinct if rows == list(range(len(distinct))) else distinct.rows(rows)
    return Conditioning(ordered.embeds, ordered.pooled, ordered.mask, tuple(by_tokenizer[0]))


def encode_negative(base: Base, text: str = "") -> Conditioning:
    """What the denoiser reads in the branch without the sentence: `encode`, but zeros where the base wants them.

    Args:
        base: with `zero_negative`, as SDXL, it reads zeros for an empty negative prompt.
        text: the negative prompt.
    """
    encoded = encode(base, text)
    if not base.zero_negative or clean_text(text, "the negative prompt"):
        return encoded
    pooled = None if encoded.pooled is None else torch.zeros_like(encoded.pooled)
    return replace(encoded, embeds=torch.zeros_like(encoded.embeds), pooled=pooled)
