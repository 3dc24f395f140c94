"""Cells of the pages that the experiments write: means over toys with their intervals, differences with their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored


def _of(rows: Sequence[Scored], family: str | None) -> list[Scored]:
    return [row for row in rows if family is None or row.family == family]


def cell(rows: Sequence[Scored], family: str | None, metric: str) -> str:
    """ "0.83 (0.75-0.91)"; "-" where nothing has a value."""
    from thisness.evaluation.statistics import estimate

    found = estimate(_of(rows, family), metric)
    if found.mean is None:
        return "-"
    return f"{found.mean:.2f}" if found.low is None else f"{found.mean:.2f} ({found.low:.2f}-{found.high:.2f})"


def compared(one: Sequence[Scored], other: Sequence[Scored], family: str | None, metric: str) -> str:
    """How much higher the first is on the same cases and seeds: "+0.12 (p .03)"."""
    from thisness.evaluation.statistics import paired

    found = paired(_of(one, family), _of(other, family), metric)
    return "-" if found.difference is None else f"{found.difference:+.2f} (p {found.p:.2f})"
