"""What an intervention may know while the model runs: the step, and which row of the batch is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ThisnessError

if TYPE_CHECKING:
    from ..tokens import TokenSpans


class Row(NamedTuple):
    """One row of the batch that the denoiser sees.

    role: its branch: "cond" (the sentence), "uncond" (the negative sentence under guidance), or a method's own.
    sample: which of the pictures made together it belongs to, from 0.
    """

    role: str
    sample: int


class Rows(NamedTuple):
    """A choice of rows: of a role, of a sample; None takes any."""

    role: str | None = None
    sample: int | None = None

    def find(self, context: Context, batch: int) -> list[int]:
        """Which rows of a batch these are, in order.

        Raises:
            ThisnessError: the roles of the rows are not known, or those of another batch.
        """
        if self.role is None and self.sample is None:
            return list(range(batch))
        if len(context.rows) != batch:
            raise ThisnessError(
                f"the model was called with {batch} rows but the roles of {len(context.rows)} are known: set "
                "context.rows, or sample with thisness.sample, which does"
            )
        return [
            index
            for index, row in enumerate(context.rows)
            if self.role in (None, row.role) and self.sample in (None, row.sample)
        ]


@dataclass
class Context:
    """State of the run, shared by all interventions that are attached to a model. The sampler keeps it up to date.

    Attributes:
        rows: what each row of the batch is; () if nobody said.
        step: number of the step, from 0.
        steps: how many there are.
        timestep: the scheduler's number for the noise level.
        spans: by role, the tokens of what its rows read, one or one for each sample; () or no entry where unknown.
        extra: whatever else interventions share.
    """

    rows: tuple[Row, ...] = ()
    step: int = 0
    steps: int = 0
    timestep: float = 0.0
    spans: dict[str, tuple[TokenSpans, ...]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def rows_of(roles: Sequence[str], samples: int) -> tuple[Row, ...]:
    """Rows of a batch of branches one after the other: all samples of the first role, all of the second ..."""
    return tuple(Row(role, sample) for role in roles for sample in range(samples))
