"""Semantic collapse over toys: what `learn --track-collapse` recorded of each word, as curves over the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pages import curves

if TYPE_CHECKING:
    from thisness.diagnostics.collapse_experiment import CollapseDiagnosis

SENTENCES = 64  # of each kind
PANELS = {
    "norm beside the noun's": lambda found, step: fmean(_rows(found, step).log_ratio),
    "angle to the noun, degrees": lambda found, step: fmean(_rows(found, step).angle),
    "to the class's sentences (L2)": lambda found, step: found.times[step]["between"]["l2"].value,
    "among its own sentences (L2)": lambda found, step: found.times[step]["within"]["l2"].value,
    "to simple sentences (L2)": lambda found, step: found.times[step]["to_simple"]["l2"].value,
}
"""Title -> (diagnosis, step) -> number."""


def _rows(found: CollapseDiagnosis, step: int) -> Any:
    return next(iter(found.row_times[step].values()))


def diagnoses(folder: Path) -> dict[str, CollapseDiagnosis]:
    """By toy, of all concepts in a folder whose learning was recorded."""
    from thisness.bases import load_base
    from thisness.concept import Concept
    from thisness.diagnostics.collapse_experiment import diagnose_collapse

    base, found = load_base("playroom-sd"), {}
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (each / "collapse").is_dir() and (each / "concept.json").is_file():
            found[each.name] = diagnose_collapse(base, Concept.load(each, base), folder=each, count=SENTENCES)
    return found


def section(folders: Mapping[str, Path], figure: Path) -> list[str]:
    """Lines of Markdown; the figure is written. folders: of concepts, by method."""
    found = {method: diagnoses(folder) for method, folder in folders.items()}
    found = {method: toys for method, toys in found.items() if toys}
    if not found:
        return []
    lines: dict[str, dict[str, dict[float, list[float]]]] = {title: {} for title in PANELS}
    head = "| | toys | verdict over training |" + "".join(f" {title}: first | last |" for title in PANELS)
    table = [head, "|---" * (3 + 2 * len(PANELS)) + "|"]
    for method, toys in found.items():
        steps = sorted(set.intersection(*(set(each.times) for each in toys.values())))
        for title, number in PANELS.items():
            lines[title][method] = {step: [number(each, step) for each in toys.values()] for step in steps}
        verdicts = Counter(each.verdicts[0].word for each in toys.values())
        said = ", ".join(f"{word} {count}" for word, count in verdicts.most_common())
        ends = [lines[title][method] for title in PANELS]
        cells = [f"{fmean(each[steps[0]]):.2f} | {fmean(each[steps[-1]]):.2f}" for each in ends]
        table.append(f"| {method} | {len(toys)} | {said} | {' | '.join(cells)} |")
    curves(lines, figure, "Semantic collapse while words are learned: thin lines are toys, thick ones their means")
    return [
        "## Collapse while learning",
        "",
        *table,
        "",
        f"![curves over the steps]({figure.parent.name}/{figure.name})",
        "",
    ]
