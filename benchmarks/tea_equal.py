"""The extensions of TEA beside plain TEA that costs as much identity.

Plain TEA is a curve: the word alone, then its norm alone (alpha 0), then alpha upwards, each toy with its own identity
and its own share of the sentence followed. An extension stands somewhere else; the question is what plain TEA gives
at the extension's identity. So for each toy the sweep is read there, in straight lines between its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from claims import HEAD, line, over_toys

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored

Point = tuple[float, float]
"""Identity, and what is compared at it."""
INTRODUCTION = """\
For each toy plain TEA is read off its sweep at the identity that the extension leaves to this toy, in straight lines
between the values of alpha; a toy that lies outside of what the sweep reaches is left out, and counted. Where the
sweep has one identity more than once, the highest of what it gives there is plain TEA's."""


def at(curve: Sequence[Point], identity: float) -> float | None:
    """What the curve has at this identity: the highest of its crossings; None outside of it.

    Args:
        curve: points in the order of the knob, at least two.
        identity: where to read.
    """
    found = []
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if min(x0, x1) <= identity <= max(x0, x1):
            found += [max(y0, y1)] if x0 == x1 else [y0 + (identity - x0) / (x1 - x0) * (y1 - y0)]
    return max(found) if found else None


def gains(
    rows: Mapping[str, Sequence[Scored]], sweep: Sequence[str], label: str, metric: str, identity: str
) -> tuple[dict[str, float], int]:
    """For each toy how much the recipe has over plain TEA at its identity; how many toys lie outside of the sweep."""
    from thisness.evaluation.statistics import unit_means

    means = {each: (unit_means(rows[each], identity), unit_means(rows[each], metric)) for each in (*sweep, label)}
    own = means[label]
    found: dict[str, float] = {}
    toys = sorted(set.intersection(*(set(each) for pair in means.values() for each in pair)))
    for toy in toys:
        plain = at([(means[each][0][toy], means[each][1][toy]) for each in sweep], own[0][toy])
        if plain is not None:
            found[toy] = own[1][toy] - plain
    return found, len(toys) - len(found)


def section(
    rows: Mapping[str, Sequence[Scored]], sweep: Sequence[str], extensions: Mapping[str, str],
    metrics: Sequence[tuple[str, str]], identity: str,
) -> list[str]:  # fmt: skip
    """Markdown; extensions: label by what it is called; metrics: title, name. Nothing where the sweep was not run."""
    there = {says: label for says, label in extensions.items() if rows.get(label)}
    if not there or not all(rows.get(label) for label in sweep):
        return []
    lines = ["### At equal identity", "", INTRODUCTION, "", *HEAD]
    for says, label in there.items():
        for title, metric in metrics:
            found, outside = gains(rows, sweep, label, metric, identity)
            asked = f"{title}, {label} - plain TEA: higher" + (f" ({outside} toys outside)" if outside else "")
            lines.append(line(f"{says}: {title}", asked, "ours", over_toys(list(found.values()), "higher")))
    return [*lines, ""]


def unchanged(
    rows: Mapping[str, Sequence[Scored]], label: str, plain: str, beside: str, metric: str, title: str
) -> list[str]:
    """How often a recipe made the picture that it makes without doing anything, and what another one gives there."""
    import numpy as np
    from runs import opened

    from thisness.evaluation.statistics import by_key, estimate

    keyed = [by_key(rows.get(each, ())) for each in (label, plain, beside)]
    shared = [key for key in keyed[0] if all(key in each and each[key].image for each in keyed)]

    def pixels(row: Scored) -> Any:
        assert row.image is not None
        return np.asarray(opened(row.image))

    same = [key for key in shared if np.array_equal(pixels(keyed[0][key]), pixels(keyed[1][key]))]
    if not same:
        return []
    own, other = (estimate([each[key] for key in same], metric).mean for each in (keyed[0], keyed[2]))
    says = f"In {len(same)} of {len(shared)} pictures `{label}` is the same as `{plain}`"
    return [f"{says}; over these {title} is {own:.2f}, by `{beside}` {other:.2f} (means over toys).", ""]
