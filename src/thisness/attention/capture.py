"""Recording attention maps. Looking changes nothing: the pictures stay the same, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ThisnessError
from .context import Context, Rows
from .intervention import Intervention, Where
from .sites import Site


class CaptureMaps(Intervention):
    """Records attention probabilities, averaged over heads.

    Attributes:
        maps: by step and name of the site: (rows, Lq, Lk) float32, on the model's device. Each line sums to 1. A site
            that runs twice in a step (gradient checkpointing) is there once.
    """

    def __init__(
        self, where: Where | None = None, *, rows: Rows | None = None, max_resolution: int = 32, detach: bool = True
    ) -> None:
        """
        Args:
            where: sites and steps; cross-attention by default.
            rows: which rows of the batch; those of the role "cond" by default.
            max_resolution: sites of a grid finer than this squared are passed over: their maps are huge (self-attention
                at 64x64: 64 MiB for each row and step).
            detach: False keeps the graph, for losses on maps.
        """
        self.where = where if where is not None else Where(kinds=("cross",))
        self.rows = rows if rows is not None else Rows(role="cond")
        self.max_resolution = max_resolution
        self.detach = detach
        self.maps: dict[tuple[int, str], Tensor] = {}

    def reads_probs(self, site: Site, q: Tensor, k: Tensor, context: Context) -> bool:
        return q.shape[-2] <= self.max_resolution**2

    def probs(self, site: Site, probs: Tensor, context: Context) -> Tensor:
        seen = probs.detach() if self.detach else probs
        chosen = self.rows.find(context, len(probs))
        if len(chosen) != len(probs):
            seen = seen[chosen]
        self.maps[context.step, site.name] = seen.mean(1)
        return probs

    def average(self, side: int | None = None) -> Tensor:
        """Mean over steps and sites.

        Args:
            side: of the grid that maps of other sizes are brought to; the largest recorded one by default. Queries must
                form squares.

        Returns:
            (rows, side*side, Lk), each line of which sums to 1.

        Raises:
            ThisnessError: nothing was recorded, the grids are not square, or the numbers of keys differ.
        """
        if not self.maps:
            raise ThisnessError("no attention map was recorded: run the model while this is attached")
        recorded = list(self.maps.values())
        sides = [round(each.shape[1] ** 0.5) for each in recorded]
        if len({each.shape[2] for each in recorded}) > 1 or any(
            s * s != each.shape[1] for s, each in zip(sides, recorded, strict=True)
        ):
            raise ThisnessError("maps of other numbers of keys, or of grids that are no squares, have no average")
        side = side or max(sides)
        total = torch.zeros_like(_resized(recorded[0], side))
        for each in recorded:
            total = total + _resized(each, side)
        return total / len(recorded)


def _resized(maps: Tensor, side: int) -> Tensor:
    """maps: (rows, Lq, Lk) over a square grid -> (rows, side*side, Lk)."""
    rows, queries, keys = maps.shape
    own = round(queries**0.5)
    if own == side:
        return maps
    grid = maps.transpose(1, 2).reshape(rows, keys, own, own)
    grid = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return grid.reshape(rows, keys, side * side).transpose(1, 2)
