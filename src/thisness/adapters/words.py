"""Learned words: new tokens whose rows stand beside the vocabulary, never in it.

The base's tokenizers and embedding matrices are not changed: for the length of a `with` their places are taken by a
copy of the tokenizer that knows the tokens, and by a module that looks up new numbers in rows of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bases import Base
from ..errors import ArtefactError, PromptError, raise_all
from ..prompt import check_new_tokens


class LearnedRows(nn.Module):
    """A token embedding with further rows.

    Args:
        original: the embedding that knows the vocabulary; its weights are shared, not copied.
        first: the number of the first new token; all below are the vocabulary's.
        rows: (tokens, width), a tensor or a parameter; or a module that computes them anew whenever they are read.
    """

    def __init__(self, original: nn.Module, first: int, rows: Tensor | nn.Module) -> None:
        super().__init__()
        self.original, self.first = original, first
        if isinstance(rows, (nn.Parameter, nn.Module)):
            self.rows = rows
        else:
            self.register_buffer("rows", rows, persistent=False)

    def table(self) -> Tensor:
        """(tokens, width): what new numbers mean."""
        return table_of(self.rows)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (batch, length) -> (batch, length, width)."""
        known = self.original(ids.clamp(max=self.first - 1))
        new = F.embedding((ids - self.first).clamp(min=0), self.table())
        return torch.where((ids < self.first).unsqueeze(-1), known, new.to(known.dtype))

    @property
    def num_embeddings(self) -> int:
        return self.first + len(self.table())

    @property
    def embedding_dim(self) -> int:
        return int(self.table().shape[1])


class OverriddenRows(nn.Module):
    """A token embedding that gives other rows for some numbers.

    Args:
        original: the embedding that knows all numbers; its weights are shared, not copied.
        numbers: (tokens,) which.
        rows: (tokens, width) what they mean instead; gradients flow.
    """

    numbers: Tensor

    def __init__(self, original: nn.Module, numbers: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.original, self.rows = original, rows
        self.register_buffer("numbers", numbers, persistent=False)
        self.training = original.training

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (batch, length) -> (batch, length, width)."""
        same = ids.unsqueeze(-1).eq(self.numbers)  # (batch, length, tokens)
        known = self.original(ids)
        other = F.embedding(same.int().argmax(-1), self.rows).to(known.dtype)
        return torch.where(same.any(-1, keepdim=True), other, known)

    @property
    def num_embeddings(self) -> int:
        return int(self.original.num_embeddings)  # type: ignore[arg-type]

    @property
    def embedding_dim(self) -> int:
        return int(self.rows.shape[1])


def table_of(rows: Tensor | nn.Module) -> Tensor:
    """(tokens, width), from what holds or computes it."""
    return rows if isinstance(rows, Tensor) else rows()


def text_parts(base: Base) -> dict[str, tuple[str, nn.Module]]:
    """By the name of each text encoder, the name of its tokenizer and the encoder itself."""
    tokenizers = [part.name for part in base.part_list if part.kind == "tokenizer"]
    encoders = {name: module for name, module in base.modules.items() if name.startswith("text_encoder")}
    return {name: (own, encoder) for (name, encoder), own in zip(encoders.items(), tokenizers, strict=True)}


def vocabulary_rows(base: Base, text: str) -> dict[str, Tensor]:
    """The rows that the text encoders read for some words.

    Returns:
        By encoder: (tokens of the text, width), copies in float32.

    Raises:
        PromptError: a tokenizer makes no tokens of it, or only the mark for unknown ones.
    """
    found = {}
    for name, (own, encoder) in text_parts(base).items():
        tokenizer = base.parts[own]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids or all(number in tokenizer.all_special_ids for number in ids):
            raise PromptError(f"the base has no token for {text!r}: name another word that it knows")
        found[name] = looked_up(encoder, ids).to(base.device)
    return found


def looked_up(encoder: nn.Module, ids: Sequence[int]) -> Tensor:
    """Rows of a text encoder's embedding, (tokens, width) float32, copies; wherever the encoder is just now."""
    table = _embedding_of(encoder)
    where = next(encoder.parameters()).device
    return table(torch.tensor(list(ids), device=where)).detach().float().clone()


def random_rows(base: Base, seed: int) -> dict[str, Tensor]:
    """A row as rare as they come: drawn like the vocabulary's, in mean and deviation of each coordinate. (1, width)."""
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for name, (_, encoder) in text_parts(base).items():
        known = _embedding_of(encoder)
        while isinstance(known, LearnedRows):  # other words may be attached
            known = known.original
        table = known.weight.detach().float().cpu()
        rows[name] = (table.mean(0) + table.std(0) * torch.randn(1, table.shape[1], generator=generator)).to(
            base.device
        )
    return rows


def start_rows(base: Base, word: str, seed: int) -> dict[str, Tensor]:
    """The row that a new word starts from, by text encoder: (1, width).

    Args:
        word: whose row; of several tokens the last one's. A random row if empty.
        seed: of the random row.
    """
    if not word:
        return random_rows(base, seed)
    return {name: rows[-1:].clone() for name, rows in vocabulary_rows(base, word).items()}


@contextmanager
def attached_words(
    base: Base, tokens: Sequence[str], rows: Mapping[str, Tensor | nn.Module]
) -> Iterator[dict[str, LearnedRows]]:
    """Teach a base new words for the length of a `with`.

    Args:
        base: may have other words attached.
        tokens: "<rufus>", "<rufus_1>" ..., in the order of their rows.
        rows: by the name of each text encoder, (tokens, width); a parameter stays one and receives gradients, a module
            computes them whenever they are read.

    Yields:
        The modules that hold the rows, by text encoder.

    Raises:
        ArtefactError: rows missing, or of another number or width; all of it at once.
        PromptError: a token that the tokenizer would mistake for another.
    """
    parts = text_parts(base)
    problems = [f"no rows for {name}" for name in parts if name not in rows]
    problems += [f"rows for {name}, which the base does not have" for name in rows if name not in parts]
    for name in parts.keys() & rows.keys():
        shape, width = tuple(table_of(rows[name]).shape), int(_embedding_of(parts[name][1]).embedding_dim)
        if shape != (len(tokens), width):
            problems.append(f"the rows of {name} are {shape}: expected {(len(tokens), width)}")
    raise_all(problems, ArtefactError, f"the words {', '.join(tokens)} do not fit {base.name}")
    for own, _ in parts.values():
        check_new_tokens(tokens, base.parts[own])

    before_tokenizers = {own: base.parts[own] for own, _ in parts.values()}
    before_tables = {name: _embedding_of(encoder) for name, (_, encoder) in parts.items()}
    places = [place for _, encoder in parts.values() for place in _places(encoder)]
    attached: dict[str, LearnedRows] = {}
    try:
        for name, (own, encoder) in parts.items():
            tokenizer = copy.deepcopy(before_tokenizers[own])
            first = len(tokenizer)
            if tokenizer.add_tokens(list(tokens)) != len(tokens):
                raise PromptError(f"the tokenizer does not take the words {', '.join(tokens)}: choose another name")
            attached[name] = LearnedRows(before_tables[name], first, rows[name].to(base.device))
            attached[name].training = encoder.training
            encoder.set_input_embeddings(attached[name])  # type: ignore[operator]
            base.parts[own] = tokenizer
        yield attached
    finally:
        _put_back(places)
        for own, _ in parts.values():
            base.parts[own] = before_tokenizers[own]


@contextmanager
def overridden_rows(base: Base, tokens: Sequence[str], rows: Mapping[str, Tensor]) -> Iterator[None]:
    """Let tokens that the base knows mean something else for the length of a `with`; no weight is changed.

    Args:
        base: with the words attached.
        tokens: each one token of every tokenizer: "<rufus>", "<rufus_1>" ...
        rows: by the name of each text encoder, (tokens, width).

    Raises:
        PromptError: a word that is not one token.
    """
    parts = text_parts(base)
    before = {name: _embedding_of(encoder) for name, (_, encoder) in parts.items()}
    places = [place for _, encoder in parts.values() for place in _places(encoder)]
    try:
        for name, (own, encoder) in parts.items():
            numbers = [base.parts[own](token, add_special_tokens=False)["input_ids"] for token in tokens]
            unfit = [token for token, found in zip(tokens, numbers, strict=True) if len(found) != 1]
            raise_all([f"{token} is not one token" for token in unfit], PromptError)
            index = torch.tensor([found[0] for found in numbers], device=base.device)
            encoder.set_input_embeddings(OverriddenRows(before[name], index, rows[name].to(base.device)))  # type: ignore[operator]
        yield
    finally:
        _put_back(places)


def _places(encoder: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Where an encoder keeps its embedding: module, attribute, embedding. T5 has it twice, with one weight."""
    table = _embedding_of(encoder)
    weight = getattr(table, "weight", table)
    return [
        (module, name, child)
        for module in encoder.modules()
        for name, child in module._modules.items()
        if child is not None and (child is table or getattr(child, "weight", None) is weight)
        if not isinstance(module, (LearnedRows, OverriddenRows))
    ]


def _put_back(places: Sequence[tuple[nn.Module, str, nn.Module]]) -> None:
    for module, name, child in places:
        setattr(module, name, child)


def _embedding_of(encoder: nn.Module) -> Any:
    return encoder.get_input_embeddings()  # type: ignore[operator]
