"""Keys and values from elsewhere: from another row of the batch, or from a run before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigurationError, ThisnessError
from .context import Context, Rows
from .intervention import Intervention, Where
from .sites import Site

KeysValues = tuple[Tensor, Tensor]  # (rows, Lk, H*D) each
Cache = Mapping[tuple[int, str], KeysValues]  # by step and name of the site


class SwapKeysValues(Intervention):
    """Lets some rows attend to the keys and values of others, in the place of their own."""

    def __init__(
        self, source: Rows, target: Rows, where: Where | None = None, *, keys: bool = True, values: bool = True
    ) -> None:
        """
        Args:
            source: the rows to attend to: one, or as many as there are targets.
            target: the rows that attend to them.
            where: sites and steps; self-attention by default.
            keys, values: which of the two are exchanged.

        Raises:
            ConfigurationError: neither keys nor values.
        """
        if not keys and not values:
            raise ConfigurationError("SwapKeysValues with neither keys nor values changes nothing: choose one of them")
        self.source, self.target = source, target
        self.where = where if where is not None else Where(kinds=("self",))
        self.keys, self.values = keys, values

    def qkv(
        self, site: Site, attn: Any, q: Tensor, k: Tensor, v: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        source, target = self.source.find(context, len(k)), self.target.find(context, len(k))
        if not source or not target or len(source) not in (1, len(target)):
            raise ThisnessError(
                f"cannot swap rows: {self.source} are {len(source)} and {self.target} are {len(target)} of {len(k)}"
            )
        taken = list(range(len(k)))
        for index, row in enumerate(target):
            taken[row] = source[index] if len(source) > 1 else source[0]
        return q, k[taken] if self.keys else k, v[taken] if self.values else v


class RecordKeysValues(Intervention):
    """Records keys and values, for `InjectKeysValues`.

    Attributes:
        cache: by step and name of the site: keys and values, each (rows, Lk, H*D), on the model's device.
    """

    def __init__(self, where: Where | None = None, *, rows: Rows | None = None) -> None:
        """
        Args:
            where: sites and steps; self-attention by default.
            rows: which rows of the batch; those of the role "cond" by default.
        """
        self.where = where if where is not None else Where(kinds=("self",))
        self.rows = rows if rows is not None else Rows(role="cond")
        self.cache: dict[tuple[int, str], KeysValues] = {}

    def qkv(
        self, site: Site, attn: Any, q: Tensor, k: Tensor, v: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.rows.find(context, len(k))
        self.cache[context.step, site.name] = (k[chosen].detach(), v[chosen].detach())
        return q, k, v


class InjectKeysValues(Intervention):
    """Lets some rows attend to recorded keys and values beside their own."""

    def __init__(self, cache: Cache, where: Where | None = None, *, rows: Rows | None = None) -> None:
        """
        Args:
            cache: from `RecordKeysValues`, or (rows, Lk, H*D) made otherwise; of one row, which all targets get, or of
                as many rows as there are targets. Where it has nothing for a step and site, nothing is injected.
            where: sites and steps; every site that the cache has by default.
            rows: the rows that attend to them; those of the role "cond" by default. The others attend as before.

        Raises:
            ConfigurationError: the cache is empty.
        """
        if not cache:
            raise ConfigurationError(
                "InjectKeysValues with an empty cache changes nothing: record keys and values first"
            )
        self.cache = cache
        self.where = where if where is not None else Where()
        self.rows = rows if rows is not None else Rows(role="cond")
        self._places: dict[str, tuple[int, int, list[int]]] = {}  # by site: first and last key, targets
        self._names = {name for _, name in cache}

    def match(self, site: Site) -> bool:
        return site.name in self._names and self.where.at(site)

    def qkv(
        self, site: Site, attn: Any, q: Tensor, k: Tensor, v: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._places.pop(site.name, None)
        entry = self.cache.get((context.step, site.name))
        if entry is None:
            return q, k, v
        targets = self.rows.find(context, len(k))
        more_k, more_v = (self._for_batch(each.to(k), targets, len(k)) for each in entry)
        self._places[site.name] = (k.shape[1], k.shape[1] + more_k.shape[1], targets)
        return q, torch.cat([k, more_k], 1), torch.cat([v, more_v], 1)

    def mask(self, site: Site, q: Tensor, k: Tensor, mask: Tensor | None, context: Context) -> Tensor | None:
        """Hides what was injected from the other rows."""
        first, last, targets = self._places.get(site.name, (0, 0, []))
        if first == last or len(targets) == len(k):
            return mask
        hidden = torch.zeros(len(k), 1, 1, k.shape[-2], dtype=q.dtype, device=q.device)
        others = [row for row in range(len(k)) if row not in set(targets)]
        hidden[others, :, :, first:last] = float("-inf")
        return hidden if mask is None else mask + hidden

    def _for_batch(self, recorded: Tensor, targets: list[int], batch: int) -> Tensor:
        """recorded: (1 or targets, Lk, H*D) -> (batch, Lk, H*D); zeros where it is hidden."""
        if len(recorded) not in (1, len(targets)):
            raise ThisnessError(f"{len(recorded)} rows were recorded, but {self.rows} are {len(targets)} of {batch}")
        full = recorded.new_zeros(batch, *recorded.shape[1:])
        full[targets] = recorded
        return full
