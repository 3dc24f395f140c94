"""What came of a run, in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .results import State, identity_hash

if TYPE_CHECKING:
    from .starting import Start


@dataclass
class Finished:
    """What came of a run.

    Attributes:
        folder: where it lies.
        made: pictures that this call made.
        failures: by recipe and reason, how many pictures could not be made.
        problems: what went wrong in scoring; the same command tries it again.
        notes: what judges could not rate.
        summary: a line for each recipe.
    """

    folder: Path
    made: int = 0
    failures: dict[tuple[str, str], int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every picture was made and scored."""
        return not self.failures and not self.problems


def summary(begun: Start, state: State) -> list[str]:
    """A line for each recipe: pictures, failures, seconds, means of its values."""
    current = {name: identity_hash(each) for name, each in begun.metrics().items()}
    lines = []
    width = max((len(label) for label in begun.recipes), default=0)
    for label in begun.recipes:
        rows = [row for row in begun.rows if row.recipe == label and row.role == "picture"]
        made = [state.pictures[row.id] for row in rows if row.id in state.pictures]
        failed = sum(row.id in state.failures for row in rows)
        seconds = sum(entry["seconds"] for entry in made)
        learned = sum(e["seconds"] for (owner, _), e in state.learned.items() if owner == begun.owner[label])
        values: dict[str, list[float]] = {}
        for row in rows:
            for name, value in state.values(row.id, current).items():
                if value is not None:
                    values.setdefault(name, []).append(value)
        said = [f"{len(made)} of {len(rows)} pictures", f"{failed} failures", f"{seconds:.1f} s"]
        said += [f"learned in {learned:.1f} s"] if learned and begun.prepares[label] else []
        said += [f"{name} {sum(found) / len(found):.3f}" for name, found in values.items()]
        lines.append(f"{label:<{width}}  " + ", ".join(said))
    return lines


def failed_lines(failures: Mapping[tuple[str, str], int]) -> Iterable[str]:
    """What failed, one line for each recipe and reason."""
    for (recipe, reason), count in failures.items():
        yield f"{recipe}: {count} pictures could not be made: {reason}"
