"""TEA at token level: the rows of a learned word, in a sentence (`tea_adjustment`) or for good (`bake`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters import EMBEDDINGS
from ..adapters.words import looked_up, text_parts, vocabulary_rows
from ..bases import Base
from ..concept import Concept
from ..errors import ConfigurationError, raise_all
from .tea import Rotated, anchor_row, rotate, rotate_together

if TYPE_CHECKING:
    from .tea_adjustment import Tea


def word_tokens(concept: Concept) -> list[str]:
    """The learned tokens of the concept's own word; not those that keep its pictures' poses or backgrounds."""
    return [token for token in concept.tokens if token in concept.word.text.split()]


def adjusted_rows(
    tea: Tea, base: Base, tokens: Sequence[str], noun: str, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Rotated]:
    """Token level: the rows of a learned word, turned toward the noun's. The word must be attached.

    Args:
        tokens: "<rufus>", "<rufus_1>" ...
        noun: of one token or several.
        weights: by text encoder, (tokens, width).

    Returns:
        By text encoder; vectors (tokens, width) float32.
    """
    assert tea.alpha != "auto"
    found, rule = {}, tea.rule("token")
    anchors = anchor_rows(base, noun, str(tea.lookup))
    for name, rows in rows_of(base, tokens).items():
        anchor = anchor_row(anchors[name], tea.several)
        if tea.multi_vector == "mean":
            found[name] = rotate_together(rows, anchor, tea.alpha, **rule)
        else:
            own = weights[name] if weights is not None else None
            found[name] = rotate(rows, anchor, tea.alpha, **rule, weights=own)
    return found


def rows_of(base: Base, tokens: Sequence[str]) -> dict[str, Tensor]:
    """The rows of attached tokens as they are now, by text encoder: (tokens, width) float32, copies."""
    return vocabulary_rows(base, " ".join(tokens))


def anchor_rows(base: Base, noun: str, lookup: str = "word") -> dict[str, Tensor]:
    """The noun's rows by text encoder, (tokens, width) float32.

    Args:
        lookup: "word": of the tokens that a prompt makes of it, which end in "</w>" at the end of a word. "raw": the
            entry of that very name, which is a piece from inside of words; the official code takes it.

    Raises:
        PromptError: the base cannot read it.
        ConfigurationError: "raw", and there is no entry of that name.
    """
    if lookup == "word":
        return vocabulary_rows(base, noun)
    found = {}
    for name, (own, encoder) in text_parts(base).items():
        number = base.parts[own].get_vocab().get(noun)
        if number is None:
            raise ConfigurationError(
                f"tea: lookup=raw: the vocabulary has no entry {noun!r}: name another, or lookup=word"
            )
        found[name] = looked_up(encoder, [number]).to(base.device)
    return found


def pieces_of(tokenizer: Any, noun: str) -> list[str]:
    """The tokens of a noun as text."""
    numbers = tokenizer(noun, add_special_tokens=False)["input_ids"]
    return [piece.removesuffix("</w>").removeprefix("\u2581") for piece in tokenizer.convert_ids_to_tokens(numbers)]


@torch.no_grad()
def bake(concept: Concept, base: Base, tea: Tea) -> Concept:
    """A copy of a concept whose word's rows are adjusted once and for all: save it, or export it for other programs.

    Args:
        concept: with a learned word.
        base: that it was learned on.
        tea: how; alpha a number, weights equal.

    Returns:
        The same concept with other rows; its settings say under "tea" how they were made.

    Raises:
        ConfigurationError: no learned word, no noun, settings that need a sentence, or it was baked before.
    """
    tokens, noun = word_tokens(concept), tea.noun or concept.noun
    problems = []
    if "tea" in concept.settings:
        problems.append(f"{concept.name!r} was baked already: start from the concept as it was learned")
    if not tokens or EMBEDDINGS not in concept.tensors:
        problems.append(f"{concept.name!r} ({concept.method}) has no learned word: there are no rows to bake")
    if not noun:
        problems.append(f"{concept.name!r} has no noun: say one, tea:noun=dog")
    if tea.alpha == "auto" or tea.weights != "equal":
        problems.append("alpha=auto and weights=context depend on the sentence: give a number, and equal weights")
    raise_all(problems, ConfigurationError, "bake")
    with concept.attach(base):
        found = adjusted_rows(tea, base, tokens, noun)
    places = torch.tensor([concept.tokens.index(token) for token in tokens])
    rows = {}
    for name, before in concept.tensors[EMBEDDINGS].items():
        rows[name] = before.clone()
        rows[name][places] = found[name].vectors.to(before.device, before.dtype)
    rule = tea.rule("token")
    noted = {"alpha": tea.alpha, "gamma": rule["gamma"], "beta": rule["beta"], "norm": rule["norm"], "noun": noun}
    more = {"multi_vector": tea.multi_vector, "several": tea.several, "lookup": tea.lookup}
    return concept.with_tensors({**concept.tensors, EMBEDDINGS: rows}, tea={**noted, **more})
