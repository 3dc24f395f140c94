"""What a paper says, held against numbers: seen, not seen, or opposite, by one rule.

A claim compares two recipes on the same toys, sentences and seeds. d is the mean over toys of (first - second), and
[low, high] its 95 % bootstrap interval over toys.

    higher    seen if low > 0, opposite if high < 0, else not seen
    lower     the other way round
    kept      seen if low > -margin, opposite if high < -margin, else not seen

Fewer than six toys give no verdict: their sign-flip test cannot be below 0.05, and their intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored

Expects = Literal["higher", "lower", "kept"]
SEEN, NOT_SEEN, OPPOSITE, NONE = "seen", "not seen", "opposite", "no verdict"
MARGIN, FEWEST = 0.02, 6
RULE = (
    "By rule, for every line alike: d is the mean over toys of the difference on the same sentences and seeds, with "
    "its 95 % interval over toys. Higher: seen if the interval is above 0, opposite if it is below, else not seen; "
    f"lower: the other way round; kept: seen if the interval is above -{MARGIN} (or the margin that is said), "
    "opposite if it is below that, else not seen. p is of a sign-flip test over toys; nothing is corrected for the "
    f"number of lines. Fewer than {FEWEST} toys give no verdict."
)


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, as a comparison.

    Args:
        says: in words.
        metric: name of the value.
        first, second: labels of the recipes.
        expects: what the first is beside the second.
        published: the paper's numbers, or "ours" where no paper says it.
        families: of the cases that count; all by default.
        margin: for kept.
    """

    says: str
    metric: str
    first: str
    second: str
    expects: Expects = "higher"
    published: str = ""
    families: tuple[str, ...] = ()
    margin: float = MARGIN


def verdict(low: float | None, high: float | None, expects: Expects, margin: float = MARGIN) -> str:
    """By the rule above."""
    if low is None or high is None:
        return NONE
    if expects == "lower":
        low, high = -high, -low
    border = -margin if expects == "kept" else 0.0
    return SEEN if low > border else OPPOSITE if high < border else NOT_SEEN


def judged(claim: Claim, rows: Mapping[str, Sequence[Scored]]) -> tuple[str, str, str]:
    """Verdict, difference with its interval, p; for labels that are not there "no verdict"."""
    from thisness.evaluation.statistics import paired

    one, other = (
        [row for row in rows.get(label, ()) if not claim.families or row.family in claim.families]
        for label in (claim.first, claim.second)
    )
    found = paired(one, other, claim.metric)
    if found.difference is None:
        return NONE, "-", "-"
    span = "" if found.low is None else f" ({found.low:+.3f} to {found.high:+.3f})"
    low, high = (found.low, found.high) if found.units >= FEWEST else (None, None)
    return (
        verdict(low, high, claim.expects, claim.margin),
        f"{found.difference:+.3f}{span}",
        f"{found.p:.3f}",
    )


def line(says: str, asked: str, published: str, answer: tuple[str, str, str]) -> str:
    """A row of the table of claims."""
    said, difference, p = answer
    return f"| {says} | {asked} | {published or '-'} | {difference} | {p} | **{said}** |"


HEAD = ["| claim | first - second | paper | d | p | |", "|---|---|---|---|---|---|"]


def lines(
    claims: Sequence[Claim], rows: Mapping[str, Sequence[Scored]], names: Mapping[str, str] | None = None
) -> list[str]:
    """Rows of Markdown for claims of which at least one side was run; see `HEAD`."""
    names = names or {}
    found = []
    for claim in claims:
        if rows.get(claim.first) and rows.get(claim.second):
            margin = f" (margin {claim.margin:g})" if claim.expects == "kept" else ""
            pair = f"{names.get(claim.first, claim.first)} - {names.get(claim.second, claim.second)}"
            asked = f"{claim.metric}, {pair}: {claim.expects}{margin}"
            found.append(line(claim.says, asked, claim.published, judged(claim, rows)))
    return found


def over_toys(values: Sequence[float], expects: Expects, margin: float = MARGIN) -> tuple[str, str, str]:
    """As `judged`, of one number for each toy that should be over 0 (or under, or not under -margin)."""
    from statistics import fmean

    from thisness.evaluation.statistics import interval, sign_flip

    if not values:
        return NONE, "-", "-"
    low, high = interval(list(values))
    span = "" if low is None else f" ({low:+.3f} to {high:+.3f})"
    if len(values) < FEWEST:
        low = high = None
    return verdict(low, high, expects, margin), f"{fmean(values):+.3f}{span}", f"{sign_flip(list(values)):.3f}"
