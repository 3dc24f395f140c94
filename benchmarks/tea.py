"""TEA on the Playroom: what turning the learned word toward its noun gives and costs, for three methods.

    .venv/bin/python benchmarks/tea.py              goes on where it was stopped; writes docs/results/tea.md
    .venv/bin/python benchmarks/tea.py --only-page  from what the run holds

One run of `thisness bench run playroom --size full --families two-part`: each method alone and with TEA at its
defaults, its extensions, and a sweep of alpha, on the same concepts, sentences and seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pages import cell, compared

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored
    from thisness.evaluation.results import Run

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("textual-inversion", "dreambooth-lora", "custom-diffusion")
SWEPT = "textual-inversion"
ALPHAS = (0.1, 0.3, 0.5)
TOYS = "rufus,mimi,bruno,hazel,saffron,kiwi,bolt,earl,hiker,beetle,dog-10,cat-11"
METRICS = (
    ("CLIP-T full", "clip-t"),
    ("concept", "clip-t-concept"),
    ("context", "clip-t-context"),
    ("followed", "oracle:follow"),
    ("CLIP-I", "clip-i"),
    ("identity", "dino-i"),
)
"""Title, metric."""
INTRODUCTION = """\
Made by `.venv/bin/python benchmarks/tea.py`; do not edit. Held-out toys, four pictures each, sentences of two parts
("a {subject} sleeping on the beach", "wearing a red hat in the snow"). Every number is a mean over toys of their
means, with its 95 % interval over toys; differences are of the same sentences and seeds, p of a sign-flip test over
toys. CLIP-T is of `playroom-clip` (docs/weights.md says how little it knows of classes and accessories), "followed"
is what the embedded judge reads of what the sentence asks for, identity the cosine of `playroom-identity` to the
references."""


def recipes(methods: Sequence[str]) -> dict[str, str]:
    """By label, what is run."""
    found: dict[str, str] = {}
    for method in methods:
        found[method] = method
        found[f"{method}-tea"] = f"{method}+tea"
    if SWEPT in methods:
        found |= {f"alpha-{alpha}".replace(".", "-"): f"{SWEPT}+tea:alpha={alpha}" for alpha in ALPHAS}
        found |= {"norm-alone": f"{SWEPT}+tea:alpha=0", "weights-context": f"{SWEPT}+tea:weights=context"}
        found["keep-meaning"] = f"{SWEPT}:keep_meaning=0.1"
    return found


def row(label: str, rows: Sequence[Scored]) -> str:
    return f"| {label} | {' | '.join(cell(rows, None, metric) for _, metric in METRICS)} | {len(rows)} |"


def difference(label: str, one: Sequence[Scored], other: Sequence[Scored]) -> str:
    return f"| {label} | {' | '.join(compared(one, other, None, metric) for _, metric in METRICS)} |"


def page(run: Run) -> str:
    from thisness.evaluation.statistics import by_recipe

    rows: Mapping[str, Sequence[Scored]] = by_recipe(run.scored)
    methods = [method for method in METHODS if method in rows and f"{method}-tea" in rows]
    head = "| | " + " | ".join(title for title, _ in METRICS) + " |"
    rule = "|---" * (len(METRICS) + 1) + "|"
    text = ["# TEA on the Playroom", "", INTRODUCTION, ""]
    text += [f"{len(run.references)} toys, {len(run.benchmark['seeds'])} seeds, {len(run.scored)} pictures.", ""]
    text += ["## With and without", "", f"{head} pictures |", f"{rule}---|"]
    for method in methods:
        text += [row(method, rows[method]), row(f"{method} + TEA", rows[f"{method}-tea"])]
    text += ["", "With TEA minus without:", "", head, rule]
    text += [difference(method, rows[f"{method}-tea"], rows[method]) for method in methods]
    others = [label for label in recipes([SWEPT]) if label in rows and label not in (*METHODS, f"{SWEPT}-tea")]
    if others:
        text += ["", f"## {SWEPT}: alpha, and beyond the paper", "", f"{head} pictures |", f"{rule}---|"]
        text += [row(recipes([SWEPT])[label], rows[label]) for label in others]
        text += ["", "Minus the method alone:", "", head, rule]
        text += [difference(recipes([SWEPT])[label], rows[label], rows[SWEPT]) for label in others]
    return "\n".join(text).rstrip() + "\n"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "tea")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "tea.md")
    parser.add_argument("--methods", default=",".join(METHODS), help="by commas")
    parser.add_argument("--subjects", default=TOYS)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-page", action="store_true", help="write the page from what the run holds")
    given = parser.parse_args(words)

    from thisness.cli import run
    from thisness.evaluation.results import read_run
    from thisness.files import write_text

    code = 0
    if not given.only_page:
        asked = ";".join(f"{label}={recipe}" for label, recipe in recipes(given.methods.split(",")).items())
        typed = ["bench", "run", "playroom", "--size", "full", "--families", "two-part", "--recipes", asked]
        typed += ["--subjects", given.subjects, "--seeds", given.seeds, "--workers", str(given.workers)]
        code = run([*typed, "--judge", "oracle:columns=follow", "--out", str(given.run)])
    if code in (0, 1):
        write_text(given.page, page(read_run(given.run)))
        print(given.page)
    return code


if __name__ == "__main__":
    sys.exit(main())
