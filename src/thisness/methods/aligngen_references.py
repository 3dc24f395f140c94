"""References of which the text's concept rows and the picture alone may read: AlignGen's mask on a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attention import Context, Site
from ..errors import ThisnessError
from ..tokens import TokenSpans
from .aligngen_parts import Backend, Plan, selective_attention
from .flux_references import KeysValues, Mode, Reference, References, RowLora

if TYPE_CHECKING:
    from collections.abc import Iterator

ConceptRows = Sequence[Sequence[Sequence[int]]]
"""For each row of a batch, for each reference: the text's rows that may read it."""
BLACK = "black"  # role of the rows whose references are black


@dataclass(frozen=True)
class ConceptSpans(TokenSpans):
    """A tokenized sentence, and by number of the reference the rows of its S* and name."""

    concepts: tuple[tuple[int, tuple[int, ...]], ...] = ()


class SelectiveReferences(References):
    """References under a selective mask (eq. 6), which may differ from row to row of a batch.

    Attributes:
        backend: of `selective_attention`. "dense" goes through the model's own attention back-end, which must take
            masks; "split" needs none.
        bind: a concept reads its own reference alone.
        selective: False: all of the text reads all references, as in OminiControl.
        rows: concept rows, for one row of a batch or for each, where who drives the transformer sets them; None: of the
            spans of what each row reads (`ConceptSpans`), which the sampler tells.
        image_guidance: s of v_black + s (v - v_black), with v_black of rows whose references are black; 1: v alone.
        black: what stands for each reference in those rows.
    """

    def __init__(
        self, items: Sequence[Reference], lora: RowLora, mode: Mode = "joint", *, backend: Backend = "split",
        bind: bool = True, selective: bool = True, cache: bool = True, image_guidance: float = 1.0,
        black: Sequence[Reference] = (), owner: str = "",
    ) -> None:  # fmt: skip
        super().__init__(items, lora, mode, cache=cache, owner=owner)
        self.backend, self.bind, self.selective = backend, bind, selective
        self.image_guidance, self.black = image_guidance, list(black)
        self.rows: ConceptRows | None = None
        self._plans: dict[Any, Plan] = {}
        self._context: Context | None = None
        self._dark: KeysValues = {}

    @contextmanager
    def with_pair(self, reference: Reference, black: Reference) -> Iterator[None]:
        """One more reference, and what stands for it in black rows, for the length of a `with`."""
        with ExitStack() as stack:
            self.black.append(black)
            stack.callback(self.black.remove, black)
            stack.enter_context(self.with_reference(reference))
            yield

    # --- who reads what ---

    def concept_rows(self, context: Context, batch: int) -> ConceptRows:
        """Of each row of the batch.

        Raises:
            ThisnessError: not known, or of another number of rows.
        """
        rows = self.rows
        if rows is None and len(context.rows) == batch and context.spans:
            return [self._rows_of(context.spans.get(role, ()), sample) for role, sample in context.rows]
        if rows is None or len(rows) not in (1, batch):
            known = "nobody said" if rows is None else f"for {len(rows)} rows it is known"
            raise ThisnessError(
                f"the model was called with {batch} rows, and {known} where in their text the concepts are: sample "
                "with thisness.sample, or set `rows` of the references"
            )
        return list(rows) * batch if len(rows) < batch else rows

    def _rows_of(self, spans: Sequence[TokenSpans], sample: int) -> list[tuple[int, ...]]:
        read = spans[sample if len(spans) > 1 else 0] if spans else None
        found: Mapping[int, tuple[int, ...]] = dict(read.concepts) if isinstance(read, ConceptSpans) else {}
        return [found.get(number, ()) for number in range(len(self.items))]

    def plan(self, context: Context, batch: int) -> Plan:
        """Who reads whom in a call of so many rows."""
        rows = tuple(tuple(tuple(part) for part in each) for each in self.concept_rows(context, batch))
        key = (self.text, self.noisy, tuple(self.lengths), rows)
        if key not in self._plans:
            if len(self._plans) > 3:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = Plan(self.text, self.noisy, self.lengths, rows, self.mode, bind=self.bind)
        return self._plans[key]

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor | None:
        if not self.selective or not self.items or self.backend == "dense":
            return None
        return selective_attention(q, k, v, self.plan(context, len(q)), self.backend)

    def mask(self, site: Site, q: Tensor, k: Tensor, mask: Tensor | None, context: Context) -> Tensor | None:
        if not self.selective or not self.items:
            return super().mask(site, q, k, mask, context)
        own = self.plan(context, len(q)).bias(q.device, q.dtype)[:, :, : q.shape[-2]]
        return own if mask is None else own + mask

    # --- rows whose references are black ---

    def branches(self, roles: tuple[str, ...], context: Context) -> tuple[str, ...]:
        self._context = context
        return roles if self.image_guidance == 1 else (*roles, BLACK)

    def guided(self, predictions: Mapping[str, Tensor], scale: float, context: Context) -> Tensor | None:
        if BLACK not in predictions:
            return None
        black = predictions[BLACK]
        seen = black + self.image_guidance * (predictions["cond"] - black)
        if "uncond" not in predictions:
            return seen
        return predictions["uncond"] + scale * (seen - predictions["uncond"])

    def _are_black(self, batch: int) -> Tensor | None:
        """(B,) bool; None where no row is."""
        rows = self._context.rows if self._context is not None and self.image_guidance != 1 else ()
        dark = torch.tensor([row.role == BLACK for row in rows], dtype=torch.bool)
        return dark if len(dark) == batch and bool(dark.any()) else None

    def _tokens(self, hidden: Tensor) -> list[Tensor]:
        own, dark = super()._tokens(hidden), self._are_black(len(hidden))
        if dark is None:
            return own
        here = dark.to(hidden.device)[:, None, None]
        pairs = zip(self.black, own, strict=True)
        return [torch.where(here, black.tokens.to(hidden), tokens) for black, tokens in pairs]

    def _read(self, model: Any, pooled: Tensor, like: Tensor) -> KeysValues:
        self._dark = {}
        if self._are_black(len(like)) is not None:
            items, self.items = self.items, self.black
            try:
                self._dark = super()._read(model, pooled, like)
            finally:
                self.items = items
        return super()._read(model, pooled, like)

    def qkv(
        self, site: Site, attn: Any, q: Tensor, k: Tensor, v: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        dark = self._are_black(len(k)) if self._dark else None
        if dark is None:
            return super().qkv(site, attn, q, k, v, context)
        here = dark.to(k.device)[:, None, None]
        pairs = zip(self._dark[site.name], self._layers[site.name], strict=True)
        more_k, more_v = (torch.where(here, black, seen) for black, seen in pairs)
        return q, torch.cat([k, more_k], 1), torch.cat([v, more_v], 1)
