"""What the denoiser reads: embeddings, and where in them each word is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import ThisnessError
from ..prompt import TokenSpans


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One or several encoded sentences. Never changed in place: adjustments make new ones.

    Args:
        embeds: (batch, length, width).
        pooled: (batch, width) vector of the whole sentence, for families that use one; else None.
        mask: (batch, length) of 0 and 1, or None where every position is read.
        spans: the tokens of each row, in the tokenizer that counts the positions of `embeds`; () if unknown.
        extras: whatever else a family's denoiser takes, each (batch, ...); for instance sizes and crops.

    Raises:
        ThisnessError: the parts differ in the number of rows.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    spans: tuple[TokenSpans, ...] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {"embeds": len(self.embeds)}
        counts |= {name: len(each) for name, each in (("pooled", self.pooled), ("mask", self.mask)) if each is not None}
        counts |= {name: len(each) for name, each in self.extras.items()}
        if self.spans:
            counts["spans"] = len(self.spans)
        if self.embeds.ndim != 3 or len(set(counts.values())) > 1:
            raise ThisnessError(f"conditioning of embeds {tuple(self.embeds.shape)} and rows {counts}: they differ")

    def __len__(self) -> int:
        """Rows."""
        return len(self.embeds)

    def with_embeds(self, embeds: Tensor) -> Conditioning:
        """The same with other embeddings, (batch, length, width)."""
        return replace(self, embeds=embeds)

    def rows(self, indices: Sequence[int]) -> Conditioning:
        """Some rows, in the order given; one may be taken several times. Gradients flow."""
        index = torch.as_tensor(list(indices), dtype=torch.long, device=self.embeds.device)
        spans = tuple(self.spans[i] for i in indices) if self.spans else ()
        return self._mapped(lambda each: each.index_select(0, index.to(each.device)), spans)

    def expand(self, count: int) -> Conditioning:
        """Bring to `count` rows: one row is repeated, `count` rows are left as they are.

        Raises:
            ThisnessError: another number of rows.
        """
        if len(self) == count:
            return self
        if len(self) != 1:
            raise ThisnessError(f"conditioning has {len(self)} rows: expected 1 or {count}")
        return self._mapped(lambda each: each.expand(count, *each.shape[1:]), self.spans * count)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Move; `dtype` applies to floating-point tensors."""
        return self._mapped(
            lambda each: each.to(device=device, dtype=dtype if each.is_floating_point() else None), self.spans
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of several, one after the other; `spans` are kept where all have them.

        Raises:
            ThisnessError: some have what others lack.
        """

        def joined(name: str, tensors: Sequence[Tensor | None]) -> Tensor | None:
            there = [each for each in tensors if each is not None]
            if len(there) not in (0, len(tensors)):
                raise ThisnessError(f"{name} is in some of the conditionings only")
            return torch.cat(there) if there else None

        names = dict.fromkeys(name for part in parts for name in part.extras)
        spans = tuple(span for part in parts for span in part.spans) if all(part.spans for part in parts) else ()
        extras = {name: joined(name, [part.extras.get(name) for part in parts]) for name in names}
        return Conditioning(
            torch.cat([part.embeds for part in parts]),
            joined("pooled", [part.pooled for part in parts]),
            joined("mask", [part.mask for part in parts]),
            spans,
            {name: extra for name, extra in extras.items() if extra is not None},
        )

    def _mapped(self, change: Callable[[Tensor], Tensor], spans: tuple[TokenSpans, ...]) -> Conditioning:
        return Conditioning(
            change(self.embeds),
            None if self.pooled is None else change(self.pooled),
            None if self.mask is None else change(self.mask),
            spans,
            {name: change(extra) for name, extra in self.extras.items()},
        )


Adjustment = Callable[[Conditioning], Conditioning]
"""A change of what the denoiser reads: a pure function."""

ADJUSTMENTS: dict[str, type] = {}
"""Adjustments that can be named in a recipe: each a frozen dataclass of settings whose instances are `Adjustment`s, or
`SentenceAdjustment`s. Importing `thisness.methods` registers them all."""
