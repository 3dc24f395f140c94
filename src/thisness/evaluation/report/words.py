"""What the pages say in words, the same in HTML and Markdown: plain text, not yet escaped."""

from __future__ import annotations

from ..statistics import CONFIDENCE, EXACT_UP_TO, FLIPS, RESAMPLES
from .content import LEVEL, Report
from .kinds import direction
from .text import number

PERCENT = round(CONFIDENCE * 100)

WHAT = (
    "Personalization teaches an image model one particular thing (this dog, this mug) from a few photos, and then asks "
    "for it in new scenes. Two things can go wrong, and they pull against each other: the thing is no longer this one "
    "(identity), or the sentence is no longer followed (prompt following). This page shows how the recipes that were "
    "compared do on both."
)
HEADLINE = (
    "Each numbered dot is one recipe: the higher, the more its pictures show the same thing as the reference photos; "
    "the further right, the better they follow the sentence. Bars are {percent} % intervals: how far the mean could "
    "move if other subjects had been chosen. The dashed front joins the recipes that no other one beats on both axes."
)
TABLE = (
    "Every recipe in every metric: the mean, and below it its {percent} % interval. A metric's number means something "
    "only beside another number of the same metric; what each one is stands at the end of this page."
)
FAMILIES = (
    "The sentences come in families: some ask for another pose, some for another background, and so on. A recipe can "
    "lead overall and still fail one family, so here are both measures for each family alone."
)
PAIRS = (
    "Two recipes are compared only where both made a picture of the same subject, sentence and seed, which removes "
    "what is easy or hard for everybody. The last column names a winner only where chance is an unlikely explanation "
    "(corrected p at most {level:g})."
)
EXAMPLES = (
    "The pictures that rank best and worst in both measures together, for each recipe, beside a reference photo of "
    "what they should show. Numbers are averages over many pictures; these are what an average hides."
)
GALLERY = (
    "The same subject, sentence and seed by every recipe. The rows were chosen by a fixed rule (a few of each family, "
    "another subject in each where possible), not by how they look."
)
FAILURES = (
    "Pictures that could not be made, and why. They have no values and are left out of means; the table counts them."
)
IDENTITIES = (
    "What exactly was measured: model, weights, preprocessing, pooling, masking, aggregation. Two numbers may be "
    "compared only where all of it is equal."
)
MAKING = "What ran, on what, and the command that runs it again."
METHOD = (
    "A mean is over subjects: each subject's pictures are averaged first, so that each counts the same. Intervals are "
    f"percentile bootstrap, {RESAMPLES} resamples of whole subjects with a fixed seed, {PERCENT} %. p is of a "
    f"two-sided sign-flip test over subjects (all patterns up to {EXACT_UP_TO} subjects, above {FLIPS} random ones), "
    "corrected after Holm over all pairs of one metric. A failed picture, and a value that a metric could "
    "not give, are left out of means and counted beside them."
)


def filled(text: str) -> str:
    """A text with the numbers that it names."""
    return text.format(percent=PERCENT, level=LEVEL)


def title(report: Report) -> str:
    return f"{len(report.recipes)} recipe{'s' * (len(report.recipes) != 1)} on {report.benchmark.get('name', '?')}"


def size(report: Report) -> str:
    """How much was measured."""
    made = sum(each.rows - each.failed for each in report.recipes)
    failed = sum(each.failed for each in report.recipes)
    return (
        f"{made} pictures of {report.subjects} subject{'s' * (report.subjects != 1)}"
        f"{f', {failed} more failed' if failed else ''}; base model {report.base.get('name', '?')}"
    )


def findings(report: Report) -> list[str]:
    """The headline in sentences."""
    lines = []
    for metric, what in ((report.y, "identity"), (report.x, "prompt following")):
        known = [(each.values[metric], each.recipe) for each in report.recipes if each.values[metric].mean is not None]
        if known:
            turn = direction(report.identities.get(metric, {}))
            best, name = max(known, key=lambda pair: turn * (pair[0].mean or 0.0))
            within = "" if best.low is None else f" ({number(best.low)} to {number(best.high)})"
            lines.append(f"Best {what} ({metric}): {name}, {number(best.mean)}{within}.")
    on_front = [each.recipe for each in report.recipes if each.front]
    if on_front and len(report.recipes) > 1:
        beaten = len(report.recipes) - len(on_front)
        rest = f"; {beaten} other{'s' * (beaten != 1)} beaten by one of these" if beaten else ", that is all of them"
        lines.append(f"On the front: {', '.join(on_front)}{rest}.")
    won = sum(bool(pair.higher) for pair in report.pairs)
    if report.pairs:
        lines.append(f"{won} of {len(report.pairs)} paired differences are significant after correction.")
    return lines
