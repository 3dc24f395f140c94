"""TEA on the Playroom: what turning the learned word toward its noun gives and costs, for three methods.

    .venv/bin/python benchmarks/tea.py              goes on where it was stopped; writes docs/results/tea.md
    .venv/bin/python benchmarks/tea.py --only-page  from what the run holds

One run of `thisness bench run playroom --size full --families two-part`: each method alone and with TEA at its
defaults; a second one of its extensions and a sweep of alpha, on the same concepts, sentences and seeds. Then what was
recorded while the words were learned (tea_collapse.py), the words of some steps in sentences (tea_steps.py), and two
toys in one sentence (tea_pairs.py).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tea_collapse
import tea_equal
import tea_pairs
import tea_steps
from claims import HEAD, RULE, Claim, lines
from pages import cell, compared, save_figure
from runs import tradeoff

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored
    from thisness.evaluation.results import Run

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("textual-inversion", "dreambooth-lora", "custom-diffusion")
SWEPT = "textual-inversion"
TRACKED = ("textual-inversion", "custom-diffusion")  # what they learn is read by the text encoder
TUNED = {"dreambooth-lora": "text_encoder=true"}  # as the paper has it: else there is nothing for TEA to adjust
ALPHAS = (0.1, 0.3, 0.5, 0.7)
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
    """Each method with and without: by label, what is run."""
    found: dict[str, str] = {}
    for method in methods:
        learned = f"{method}:track_collapse=-1" if method in TRACKED else method
        learned = f"{method}:{TUNED[method]}" if method in TUNED else learned
        found |= {method: learned, f"{method}-tea": f"{learned}+tea"}
    return found


def variants() -> dict[str, str]:
    """The sweep and the extensions, on the words of one method."""
    found = {SWEPT: SWEPT, f"{SWEPT}-tea": f"{SWEPT}+tea"}
    found |= {f"alpha-{alpha}".replace(".", "-"): f"{SWEPT}+tea:alpha={alpha}" for alpha in ALPHAS}
    found |= {"norm-alone": f"{SWEPT}+tea:alpha=0", "weights-context": f"{SWEPT}+tea:weights=context"}
    return found | {"auto": f"{SWEPT}+tea:alpha=auto", "keep-meaning": f"{SWEPT}:keep_meaning=0.1"}


PUBLISHED = {
    "textual-inversion": (".64", ".55", "-2.34"),
    "dreambooth-lora": ("1.87", ".77", "4.57"),
    "custom-diffusion": (".34", "-.13", ".37"),
}
"""Gains on CustomConcept101 in points of CLIP-T, full and context, and of CLIP-I (table 2)."""


def claims(methods: Sequence[str]) -> list[Claim]:
    """The paper's, for each method with TEA beside it without."""
    found = []
    for method in methods:
        with_tea, full, context, kept = f"{method}-tea", *PUBLISHED.get(method, ("", "", ""))
        found += [
            Claim(f"{method}: more of the sentence", "clip-t", with_tea, method, published=full),
            Claim(f"{method}: more of the context", "clip-t-context", with_tea, method, published=context),
            Claim(f"{method}: the same, as read", "oracle:follow", with_tea, method),
            Claim(f"{method}: identity stays", "clip-i", with_tea, method, "kept", kept),
            Claim(f"{method}: the same by playroom-identity", "dino-i", with_tea, method, "kept"),
        ]
    return found


def sweep_claims() -> list[Claim]:
    """Table 1's direction, and ours of what is beyond the paper."""
    far, near, plain = "alpha-0-5", "alpha-0-1", f"{SWEPT}-tea"
    found = [
        Claim("a larger alpha gives more of the sentence", "clip-t", far, near, published="table 1"),
        Claim("... and of the context", "clip-t-context", far, near, published="table 1"),
        Claim("... and costs identity", "clip-i", far, near, "lower", "table 1"),
    ]
    for label, says in (
        ("auto", "alpha by sentence"), ("weights-context", "strength by dimension"), ("keep-meaning", "prevention"),
    ):  # fmt: skip
        found.append(Claim(f"{says}: followed better than plain TEA", "oracle:follow", label, plain, published="ours"))
        found.append(Claim(f"{says}: identity not below plain TEA's", "dino-i", label, plain, "kept", "ours"))
    return found


def row(label: str, rows: Sequence[Scored]) -> str:
    return f"| {label} | {' | '.join(cell(rows, None, metric) for _, metric in METRICS)} | {len(rows)} |"


def difference(label: str, one: Sequence[Scored], other: Sequence[Scored]) -> str:
    return f"| {label} | {' | '.join(compared(one, other, None, metric) for _, metric in METRICS)} |"


def page(root: Path, target: Path, pair_seeds: Sequence[int]) -> None:
    """Write it from what the runs hold."""
    from thisness.evaluation.results import read_run
    from thisness.evaluation.statistics import by_recipe
    from thisness.files import write_text

    run = read_run(root / "methods")
    rows: Mapping[str, Sequence[Scored]] = by_recipe(run.scored)
    methods = [method for method in METHODS if rows.get(method) and rows.get(f"{method}-tea")]
    head = "| | " + " | ".join(title for title, _ in METRICS) + " |"
    rule = "|---" * (len(METRICS) + 1) + "|"
    text = ["# TEA on the Playroom", "", INTRODUCTION, ""]
    seeds, count = len(run.benchmark["seeds"]), len(run.scored)
    text += [f"{len(run.references)} toys, {seeds} seeds, {count} pictures; by {', '.join(methods)} (`--methods`)."]
    missing = [method for method in METHODS if method not in methods]
    text += ["", *([f"Not run yet: {', '.join(missing)}.", ""] if missing else [])]
    text += ["## Claims", "", RULE, "", *HEAD, *lines(claims(methods), rows)]
    swept = read_run(root / "variants") if (root / "variants" / "run.json").exists() else None
    text += [*(lines(sweep_claims(), by_recipe(swept.scored)) if swept else []), ""]
    text += ["## With and without", "", f"{head} pictures |", f"{rule}---|"]
    for method in methods:
        text += [row(method, rows[method]), row(f"{method} + TEA", rows[f"{method}-tea"])]
    text += ["", "With TEA minus without:", "", head, rule]
    text += [difference(method, rows[f"{method}-tea"], rows[method]) for method in methods]
    figures = target.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    compare(run, rows, methods, figures / "pictures.webp")
    text += ["", f"![with and without]({target.stem}/pictures.webp)", ""]
    if swept is not None:
        others = swept
        by = by_recipe(others.scored)
        seeds = len(others.benchmark["seeds"])
        text += [f"## {SWEPT}: alpha, and beyond the paper", ""]
        text += [f"{len(others.references)} toys, {seeds} seed{'s' if seeds > 1 else ''}.", ""]
        text += [f"{head} pictures |", f"{rule}---|"]
        text += [row(said, by[label]) for label, said in variants().items() if by.get(label)]
        text += ["", "Minus the method alone:", "", head, rule]
        text += [
            difference(said, by[label], by[SWEPT])
            for label, said in variants().items()
            if label != SWEPT and by.get(label)
        ]
        text += ["", "Alpha 0, .1, .2, .3, .5, .7 along the line; then the extensions beside the word alone:", ""]
        across, up = ("oracle:follow", "followed"), ("dino-i", "identity")
        turned = sorted([*ALPHAS, 0.2])
        swung = [f"alpha-{alpha}".replace(".", "-") if alpha != 0.2 else f"{SWEPT}-tea" for alpha in turned]
        text += tradeoff(by, ["norm-alone", *swung], figures / "alpha.png", across, up, joined=True)
        beyond = [SWEPT, f"{SWEPT}-tea", "norm-alone", "weights-context", "auto", "keep-meaning"]
        text += tradeoff(by, beyond, figures / "extensions.png", across, up)
        added = {"alpha by sentence": "auto", "strength by dimension": "weights-context", "prevention": "keep-meaning"}
        compared_at = [(title, metric) for title, metric in METRICS if metric in ("oracle:follow", "clip-t-context")]
        text += tea_equal.section(by, [SWEPT, "norm-alone", *swung], added, compared_at, "dino-i")
        text += tea_equal.unchanged(by, "auto", SWEPT, "norm-alone", *across)
    text += tea_collapse.section(
        {method: run.folder / "concepts" / method for method in TRACKED}, figures / "collapse.png"
    )
    text += tea_steps.section(run.folder / "concepts" / SWEPT, run, root / "steps", figures / "steps.png")
    for method in (SWEPT,) if pair_seeds else ():
        folders = {path.name: path for path in sorted((run.folder / "concepts" / method).glob("*")) if _whole(path)}
        text += tea_pairs.section(
            method, folders, run.references, root / "pairs", figures / "pairs.webp", pair_seeds
        )  # fmt: skip
    write_text(target, "\n".join(text).rstrip() + "\n")


def _whole(folder: Path) -> bool:
    return (folder / "COMPLETE.json").is_file()


def compare(run: Run, rows: Mapping[str, Sequence[Scored]], methods: Sequence[str], path: Path, toys: int = 4) -> None:
    """Rows: a toy's reference, then one sentence by each method without and with TEA."""
    from PIL import Image

    from thisness.images import Tile, sheet

    lines = []
    names = list(run.references)
    for number, name in enumerate(names[:: max(1, len(names) // toys)][:toys]):
        line = [Tile(Image.open(run.references[name][0]).convert("RGB"), name)]
        own = [each for each in rows[methods[0]] if each.subject == name and each.image] if methods else []
        if not own:
            continue
        wanted = own[(7 * number) % len(own)]
        for method in methods:
            for label, title in ((method, method), (f"{method}-tea", "+ TEA")):
                same = [
                    each for each in rows[label]
                    if (each.subject, each.case, each.seed) == (name, wanted.case, wanted.seed) and each.image
                ]  # fmt: skip
                if same and same[0].image:
                    picture = Image.open(same[0].image).convert("RGB")
                    line.append(Tile(picture, f"{title}: {wanted.sentence}" if not title.startswith("+") else title))
        lines.append(line)
    if lines:
        save_figure(sheet(lines, title="Without and with TEA, same seeds", tile=144), path)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tea")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "tea.md")
    parser.add_argument("--methods", default=",".join(METHODS), help="by commas")
    parser.add_argument("--subjects", default=TOYS)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--variant-seeds", default="0-2", help="of the sweep and the extensions; none: without them")
    parser.add_argument("--pair-seeds", default="0-2", help="of two toys in one sentence; none: without them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-page", action="store_true", help="write the page from what the runs hold")
    given = parser.parse_args(words)

    from thisness.cli.options import parse_seeds

    code = 0
    if not given.only_page:
        code = run(
            given.runs / "methods", recipes(given.methods.split(",")), given.subjects, given.seeds, given.workers
        )
        if code in (0, 1) and given.variant_seeds != "none":
            reuse(given.runs / "methods", given.runs / "variants")
            more = run(given.runs / "variants", variants(), given.subjects, given.variant_seeds, given.workers)
            code = max(code, more)
    if code in (0, 1):
        page(given.runs, given.page, parse_seeds(given.pair_seeds) if given.pair_seeds != "none" else [])
        print(given.page)
    return code


def run(out: Path, asked: Mapping[str, str], subjects: str, seeds: str, workers: int) -> int:
    """0 or 1 (some pictures could not be made) if there is something to read."""
    from thisness.cli import run as thisness

    typed = ["bench", "run", "playroom", "--extend", "--size", "full", "--families", "two-part", "--subjects", subjects]
    typed += ["--recipes", ";".join(f"{label}={recipe}" for label, recipe in asked.items()), "--seeds", seeds]
    return thisness([*typed, "--judge", "oracle:columns=follow", "--workers", str(workers), "--out", str(out)])


def reuse(source: Path, target: Path) -> None:
    """Words that one run has learned need not be learned by the other."""
    for folder in (source / "concepts" / SWEPT).glob("*"):
        copy = target / "concepts" / SWEPT / folder.name
        if _whole(folder) and not copy.exists():
            shutil.copytree(folder, copy)


if __name__ == "__main__":
    sys.exit(main())
