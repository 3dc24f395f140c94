"""Deciding what each position may attend to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ThisnessError
from .context import Context, Rows
from .intervention import Intervention, Where
from .sites import Site

Bias = Callable[[Site, int, int], Tensor | None]


class MaskAttention(Intervention):
    """Adds a bias to the scores before the softmax: 0 leaves a key as it is, -inf hides it."""

    def __init__(self, bias: Tensor | Bias, where: Where | None = None, *, rows: Rows | None = None) -> None:
        """
        Args:
            bias: broadcastable to (H, Lq, Lk), or to (rows, H, Lq, Lk) with `rows` the number of those chosen; or a
                function that makes it from the site, Lq and Lk, None for no bias there. No query may lose every key:
                its result would not be a number.
            where: sites and steps; cross-attention by default; or joint attention, whose first keys are the text's.
            rows: which rows of the batch; all by default.
        """
        self.bias = bias
        self.where = where if where is not None else Where(kinds=("cross", "dual", "single"))
        self.rows = rows if rows is not None else Rows()

    @classmethod
    def hide(cls, tokens: Sequence[int], where: Where | None = None, *, rows: Rows | None = None) -> MaskAttention:
        """Hide some keys, as if they were not there.

        Args:
            tokens: their positions, for instance `conditioning.spans[0].of("subject")`.
            where, rows: as above.
        """

        def bias(site: Site, queries: int, keys: int) -> Tensor:
            if len(set(tokens)) >= keys or max(tokens, default=0) >= keys:
                raise ThisnessError(f"cannot hide tokens {list(tokens)} of {keys} at {site.name}: some must be left")
            made = torch.zeros(1, 1, keys)
            made[..., list(tokens)] = float("-inf")
            return made

        return cls(bias, where, rows=rows)

    def mask(self, site: Site, q: Tensor, k: Tensor, mask: Tensor | None, context: Context) -> Tensor | None:
        bias = self.bias if isinstance(self.bias, Tensor) else self.bias(site, q.shape[-2], k.shape[-2])
        if bias is None:
            return mask
        chosen = self.rows.find(context, len(q))
        bias = bias.to(q)
        bias = bias if bias.ndim == 4 else bias.expand(1, *[1] * (3 - bias.ndim), *bias.shape)
        if len(chosen) != len(q):
            full = bias.new_zeros(len(q), *bias.shape[1:])
            full[chosen] = bias
            bias = full
        return bias if mask is None else mask + bias
