"""References of which the text's concept rows and the picture alone may read: AlignGen's mask on a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..attention import Context, Site
from ..errors import ThisnessError
from .aligngen_parts import Backend, Plan, selective_attention
from .flux_references import Mode, Reference, References, RowLora

ConceptRows = Sequence[Sequence[Sequence[int]]]
"""For each row of a batch, for each reference: the text's rows that may read it."""


class SelectiveReferences(References):
    """References under a selective mask (eq. 6), which may differ from row to row of a batch.

    Attributes:
        backend: of `selective_attention`. "dense" goes through the model's own attention back-end, which must take
            masks; "split" needs none.
        bind: a concept reads its own reference alone.
        selective: False: all of the text reads all references, as in OminiControl.
        rows: concept rows, for one row of a batch or for each; whoever drives the transformer sets them.
    """

    def __init__(
        self, items: Sequence[Reference], lora: RowLora, mode: Mode = "joint", *, backend: Backend = "split",
        bind: bool = True, selective: bool = True, cache: bool = True, owner: str = "",
    ) -> None:  # fmt: skip
        super().__init__(items, lora, mode, cache=cache, owner=owner)
        self.backend, self.bind, self.selective = backend, bind, selective
        self.rows: ConceptRows | None = None
        self._plans: dict[Any, Plan] = {}

    def concept_rows(self, context: Context, batch: int) -> ConceptRows:
        """Of each row of the batch.

        Raises:
            ThisnessError: not known, or of another number of rows.
        """
        rows = self.rows
        if rows is None or len(rows) not in (1, batch):
            found = "none" if rows is None else f"those of {len(rows)}"
            raise ThisnessError(f"the model was called with {batch} rows, and of the concepts' rows are known {found}")
        return list(rows) * batch if len(rows) < batch else rows

    def _plan(self, context: Context, batch: int) -> Plan:
        rows = tuple(tuple(tuple(part) for part in each) for each in self.concept_rows(context, batch))
        key = (self.text, self.noisy, tuple(self.lengths), rows)
        if key not in self._plans:
            if len(self._plans) > 3:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = Plan(*key[:2], self.lengths, rows, self.mode, bind=self.bind)
        return self._plans[key]

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor | None:
        if not self.selective or self.backend == "dense":
            return None
        return selective_attention(q, k, v, self._plan(context, len(q)), self.backend)

    def mask(self, site: Site, q: Tensor, k: Tensor, mask: Tensor | None, context: Context) -> Tensor | None:
        if not self.selective:
            return super().mask(site, q, k, mask, context)
        own = self._plan(context, len(q)).bias(q.device, q.dtype)[:, :, : q.shape[-2]]
        return own if mask is None else own + mask
