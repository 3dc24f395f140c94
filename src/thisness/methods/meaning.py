"""A learned word held to what its class word means: a penalty on its row's direction and norm while it learns.

Semantic collapse (Bui et al., arXiv 2506.22685) is put down to rows that grow long and turn away from the class word's,
since nothing in the objectives of Textual Inversion and its kin holds them. The paper turns them back afterwards
(`tea`); this keeps them from leaving. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.words import vocabulary_rows
from ..bases import Base


def meaning_loss(rows: Tensor, anchor: Tensor) -> Tensor:
    """mean over rows of (1 - cos(v, c)) + (|v|/|c| - 1)^2: 0 where direction and norm are the class word's.

    Args:
        rows: v, (tokens, width).
        anchor: c, (width,), not zero.
    """
    ratio = rows.norm(dim=1) / anchor.norm()
    return (1 - F.cosine_similarity(rows, anchor[None], dim=1) + (ratio - 1).square()).mean()


class KeptMeaning:
    """The weighted penalty of a word's rows, anew in each step.

    Args:
        base: that knows the noun; of several tokens their mean direction and mean norm count.
        noun: the class word.
        words: by text encoder, the rows that are trained, (tokens, width).
        weight: of the penalty.
    """

    def __init__(self, base: Base, noun: str, words: nn.Module, weight: float) -> None:
        from .tea import anchor_row

        self.weight = weight
        self.anchors = {name: anchor_row(rows) for name, rows in vocabulary_rows(base, noun).items()}
        self.words: Mapping[str, Tensor] = dict(words.named_parameters())

    def __call__(self) -> Tensor:
        pairs: Iterable[tuple[Tensor, Tensor]] = (
            (rows.float(), self.anchors[name].to(rows.device)) for name, rows in self.words.items()
        )
        return self.weight * torch.stack([meaning_loss(*pair) for pair in pairs]).mean()
