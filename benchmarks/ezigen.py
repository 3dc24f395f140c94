"""EZIGen on the Playroom: full injection, a single pass, loops; the step at which the subject is read; editing.

    .venv/bin/python benchmarks/ezigen.py              goes on where it was stopped; writes docs/results/ezigen.md
    .venv/bin/python benchmarks/ezigen.py --only-page  from what the runs hold
    .venv/bin/python benchmarks/ezigen.py --subjects rufus,mimi --seeds 0 --families pose --sweep-subjects none \\
        --edit-toys none --cost-repeats 0 --beside "" --sampling steps=10    in minutes

Runs of `thisness bench run playroom --size one` (one reference for each toy, sentences of all families): the paper's
table of its parts, beside IP-Adapter and DreamBooth with low-rank weights; then, on fewer toys, the step at which the
subject is read, the share of the steps, the number of loops, and what is beyond the paper. Editing on scenes of the
Playroom (ezigen_edits.py); calls of the denoiser and times (ezigen_cost.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ezigen_cost
import ezigen_edits
import numpy as np
from claims import HEAD, RULE, Claim, line, lines, over_toys
from pages import curves
from runs import ROOT, bench, differences, opened, read, sampling_of, sheet_of, spec, table, tradeoff

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored

BESIDE = "ip-adapter,dreambooth-lora"
REFERENCE_STEPS = (1, 100, 300, 500, 800)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LOOPS = (0, 1, 2, 3, 5, 9)
PAPER = 0.4
"""The paper's share."""
EXTRAS: dict[str, dict[str, Any]] = {
    "fixed-noise": {"fresh": 0}, "half-fresh": {"fresh": 0.5}, "lock-statistics": {"lock_statistics": "true"},
    "lock-background": {"lock_background": "true"}, "best-of-loops": {"keep": "best"},
    "subject-guidance": {"subject_guidance": 3},
}  # fmt: skip
JUDGE = 'oracle:columns="follow,pose,background"'
METRICS = (
    ("CLIP-T", "clip-t"), ("followed", "oracle:follow"), ("CLIP-I", "clip-i"), ("identity", "dino-i"),
    ("identity, cut out", "dino-i-fg"), ("pose copied", "copy-pose"), ("contrast", "contrast"),
)  # fmt: skip
FAST_MARGIN = 0.01
INTRODUCTION = """\
Made by `.venv/bin/python benchmarks/ezigen.py`; do not edit. Held-out toys, **one** picture each, sentences of all
families. Every number is a mean over toys of their means, with its 95 % interval over toys; differences are on the same
sentences and seeds, p of a sign-flip test over toys. CLIP-T and CLIP-I are of `playroom-clip`, "followed" is what the
embedded judge reads of what the sentence asks for (docs/judges.md), identity the cosine of `playroom-identity` to the
picture, "cut out" with its background painted over; contrast is the deviation of pixels in levels of 255."""


def parts(end: str = "") -> list[Claim]:
    """The paper's of its parts; end: of the labels of a single pass and of loops."""
    single, iterated, full = f"single{end}", f"iterated{end}", "full"
    found = [
        Claim("a single pass follows the text better than all steps", "clip-t", single, full, published=".321, .286"),
        Claim("the same, as read", "oracle:follow", single, full),
        Claim("a single pass loses identity", "dino-i", single, full, "lower", ".560, .762"),
        Claim("loops bring identity back", "dino-i", iterated, single, published=".718, .560"),
        Claim("the same by CLIP-I", "clip-i", iterated, single, published=".782, .714"),
        Claim("loops cost a little text", "clip-t", iterated, single, "lower", ".316, .321"),
        Claim("with loops, better than by all steps, too", "clip-t", iterated, full, published=".316, .286"),
        Claim("the same, as read", "oracle:follow", iterated, full),
        Claim("full injection keeps most identity", "dino-i", iterated, full, "lower", ".718, .762"),
        Claim("more identity than DreamBooth", "dino-i", iterated, "dreambooth-lora", published=".718, .668"),
        Claim("more text than DreamBooth", "clip-t", iterated, "dreambooth-lora", published=".316, .305"),
        Claim("more identity than IP-Adapter", "dino-i", iterated, "ip-adapter", published="ours"),
        Claim("text as IP-Adapter", "clip-t", iterated, "ip-adapter", "kept", "ours"),
    ]
    fast = Claim("20 steps lose no identity", "dino-i", "fast", iterated, "kept", "ours", margin=FAST_MARGIN)
    return found if end else [*found, fast]


def usual_share() -> float:
    """Of the preset for the embedded base."""
    from thisness.methods import METHODS

    chosen = METHODS["ezigen"]
    assert chosen is not None
    return float(chosen.presets["small"].get("share", chosen.Settings().share))


def main_recipes(weights: Path | None, beside: Sequence[str]) -> dict[str, str]:
    """The paper's table, with the embedded base's share and the paper's; and what stands beside it."""
    usual = {"share": usual_share()}
    none, three = {"min_loops": 0, "max_loops": 0}, {"min_loops": 3, "max_loops": 3}
    found = {"base": "base", "full": spec("ezigen", weights, preset="full-injection")}
    found |= {"single": spec("ezigen", weights, **usual, **none), "iterated": spec("ezigen", weights, **usual, **three)}
    if usual["share"] != PAPER:
        found["single-paper"] = spec("ezigen", weights, share=PAPER, **none)
        found["iterated-paper"] = spec("ezigen", weights, share=PAPER, **three)
    found["fast"] = found["iterated"] + "+sampling:steps=20,scheduler=dpm++"
    return found | {method: spec(method, weights) for method in beside}


def label(kind: str, value: float) -> str:
    return f"{kind}-{value:g}".replace(".", "-")


def sweep_recipes(weights: Path | None) -> dict[str, str]:
    """Figure 9, the split ratio, the number of loops, and beyond the paper."""
    usual, three = {"share": usual_share()}, {"min_loops": 3, "max_loops": 3}
    found = {
        label("read", step): spec("ezigen", weights, preset="full-injection", reference_step=step)
        for step in REFERENCE_STEPS
    }
    found |= {label("share", r): spec("ezigen", weights, share=r, **three) for r in SHARES if r != usual["share"]}
    found |= {label("loops", n): spec("ezigen", weights, **usual, min_loops=n, max_loops=n) for n in LOOPS}
    return found | {name: spec("ezigen", weights, **usual, **three, **settings) for name, settings in EXTRAS.items()}


def sweep_claims() -> list[Claim]:
    found = []
    for earlier, later in zip(REFERENCE_STEPS, REFERENCE_STEPS[1:], strict=False):
        one, other = label("read", earlier), label("read", later)
        says = f"read at step {earlier} there is more identity than at {later}"
        found.append(Claim(says, "dino-i", one, other, published=FIGURE_9[earlier, later]))
    for less, more in zip(LOOPS, LOOPS[1:], strict=False):
        one, other = label("loops", more), label("loops", less)
        says = f"{more} loop{' gives' if more == 1 else 's give'} more identity than {less}"
        found.append(Claim(says, "dino-i", one, other))
    last, first = label("loops", LOOPS[-1]), label("loops", LOOPS[0])
    found.append(Claim("contrast decays with loops", "contrast", last, first, "lower", "70 to 54, 61 to 42"))
    small, large = label("share", SHARES[0]), label("share", SHARES[-1])
    found.append(Claim("a larger share gives more identity", "dino-i", large, small))
    found.append(Claim("a larger share costs text", "clip-t", large, small, "lower"))
    three = label("loops", 3)
    found.append(Claim("locked statistics keep contrast", "contrast", "lock-statistics", three, published="ours"))
    found.append(Claim("... and identity", "dino-i", "lock-statistics", three, "kept", "ours"))
    found.append(Claim("best of the loops: identity", "dino-i", "best-of-loops", three, published="ours"))
    found.append(Claim("a locked background keeps identity", "dino-i", "lock-background", three, "kept", "ours"))
    found.append(Claim("fixed noise keeps identity", "dino-i", "fixed-noise", three, "kept", "ours"))
    return found


FIGURE_9 = {(1, 100): ".762, .725", (100, 300): ".725, .661", (300, 500): ".661, .598", (500, 800): ".598, .427"}


def with_contrast(rows: Sequence[Scored]) -> list[Scored]:
    """The rows, and how far the pixels of each picture deviate from their mean."""
    return [
        row if row.image is None else replace(row, values={**row.values, "contrast": _deviation(row.image)})
        for row in rows
    ]


def _deviation(path: Path) -> float:
    return float(np.asarray(opened(path), np.float32).std(axis=(0, 1)).mean())


def by_recipe(folder: Path) -> dict[str, list[Scored]]:
    from thisness.evaluation.statistics import by_recipe as grouped

    run = read(folder)
    rows = grouped(with_contrast(run.scored)) if run else {}
    usual = rows.get(label("loops", 3))
    return rows | ({label("share", usual_share()): usual} if usual else {})  # the same recipe, which is run once


def along(
    rows: Mapping[str, Sequence[Scored]], kind: str, values: Sequence[float], metric: str
) -> dict[float, list[float]]:
    """At each value of a knob the means of the toys that all of them have, in the toys' order."""
    from thisness.evaluation.statistics import subject_of, unit_means

    found = {value: unit_means(rows.get(label(kind, value), ()), metric, subject_of) for value in values}
    found = {value: means for value, means in found.items() if means}
    toys = sorted(set.intersection(*(set(means) for means in found.values()))) if found else []
    return {value: [means[toy] for toy in toys] for value, means in found.items() if toys}


def falls(at: Mapping[float, Sequence[float]]) -> list[float]:
    """For each toy how much its values fall from one step of the knob to the next, by a line through them."""
    if len(at) < 2:
        return []
    ranks = np.arange(len(at)) - (len(at) - 1) / 2
    table = np.array([at[value] for value in sorted(at)])  # (values, toys)
    return [float(-(ranks @ table[:, toy]) / (ranks @ ranks)) for toy in range(table.shape[1])]


def page(root: Path, target: Path) -> None:
    """Write it from what the runs hold."""
    from thisness.files import read_json, write_text

    main = read(root / "main")
    assert main is not None, f"{root / 'main'} has no run yet"
    rows, swept = by_recipe(root / "main"), by_recipe(root / "sweep")
    figures = target.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    seeds = len(main.benchmark["seeds"])
    text = ["# EZIGen on the Playroom", "", INTRODUCTION, ""]
    text += [f"{len(main.references)} toys, {seeds} seed{'s' * (seeds > 1)}, {len(main.scored)} pictures.", ""]
    text += ["## Claims", "", RULE, "", *HEAD, *lines(parts(), rows), *lines(sweep_claims(), swept)]
    read_at = along(swept, "read", REFERENCE_STEPS, "dino-i")
    if read_at:
        says = "identity falls as the step at which the subject is read rises"
        text.append(
            line(says, "slope over the steps, turned round: higher", "figure 9", over_toys(falls(read_at), "higher"))
        )
    if rows.get("iterated-paper"):
        text += ["", f"With the paper's share of {PAPER} instead of {usual_share():g}, the embedded base's:", "", *HEAD]
        text += lines(parts("-paper"), rows)
    text += ["", "## Parts (the paper's table 4)", "", *table(rows, list(rows), METRICS), ""]
    pairs = [("single", "full"), ("iterated", "single"), ("iterated", "full"), ("fast", "iterated")]
    pairs += [("iterated", other) for other in BESIDE.split(",")]
    text += ["Differences:", "", *differences(rows, pairs, METRICS), ""]
    text += tradeoff(rows, list(rows), figures / "tradeoff.png", ("clip-t", "CLIP-T"), ("dino-i", "identity"))
    text += sheet_of(main, rows, list(rows), figures / "pictures.webp", "The reference, then by each recipe")
    if swept:
        run = read(root / "sweep")
        assert run is not None
        count = len(run.benchmark["seeds"])
        text += [f"## Curves: {len(run.references)} toys, {count} seed{'s' * (count > 1)}", ""]
        for kind, values, title, across in (
            ("read", REFERENCE_STEPS, "Where the subject is read (figure 9), full injection", "noise step"),
            ("share", SHARES, "Share of the steps with the subject, 3 loops", "share"),
            ("loops", LOOPS, "Number of loops", "loops"),
        ):
            panels = {said: {"toys": along(swept, kind, values, metric)} for said, metric in (
                ("identity", "dino-i"), ("CLIP-T", "clip-t"), ("contrast", "contrast")
            )}  # fmt: skip
            panels = {said: by for said, by in panels.items() if by["toys"]}
            labels = [label(kind, value) for value in values]
            if sum(bool(swept.get(each)) for each in labels) < 2:
                continue
            text += [f"### {title}", "", *table(swept, labels, METRICS), ""]
            if panels:
                curves(panels, figures / f"{kind}.png", title, across)
                text += [f"![{title}]({figures.name}/{kind}.png)", ""]
        shares = [each for each in (label("share", value) for value in SHARES) if swept.get(each)]
        if len(shares) > 1:
            axes = ("clip-t", "CLIP-T"), ("dino-i", "identity")
            text += tradeoff(swept, shares, figures / "shares.png", *axes, joined=True)
        three = label("loops", 3)
        if extras := [name for name in EXTRAS if swept.get(name)]:
            text += ["### Beyond the paper", "", *table(swept, [three, *extras], METRICS), "", "Minus three loops:", ""]
            text += [*differences(swept, [(name, three) for name in extras], METRICS), ""]
    text += ezigen_edits.section(root / "edits", figures / "edits.webp")
    if (root / "cost.json").is_file():
        text += cost_section(read_json(root / "cost.json"))
    text += ["Adapters of a trained reference encoder (rows a to c of figure 9) are not trained here; nothing is said "
             "of them. Two runs differ in nothing but their settings.", ""]  # fmt: skip
    write_text(target, "\n".join(text).rstrip() + "\n")


def cost_section(found: Mapping[str, Any]) -> list[str]:
    columns, where = list(found["rows"][0]), found["machine"]
    agree = all(row["calls"] == row["by the formula"] for row in found["rows"])
    text = [
        "## Cost",
        "",
        f"{found['title']}; {where['processor']}, {where['threads']} thread(s), load {where['load']}.",
        "",
    ]
    text += [f"Calls of the denoiser as by the formula: **{'seen' if agree else 'opposite'}**. Ours and the released "
             f"procedure give the same pixels: **{'seen' if found['same_pixels'] else 'opposite'}**.", ""]  # fmt: skip
    text += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in found["rows"]:
        cells = [f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        text.append(f"| {' | '.join(cells)} |")
    return [*text, ""]


def chosen(asked: dict[str, str], labels: str) -> dict[str, str]:
    """Those recipes, or all for "".

    Raises:
        UserError: there is none of that label.
    """
    from thisness.errors import UserError, nearest

    for label in labels.split(",") if labels else ():
        if label not in asked:
            raise UserError(f"no recipe is called {label!r}{nearest(label, list(asked))}: {', '.join(asked)}")
    return {label: asked[label] for label in labels.split(",")} if labels else asked


def make(given: argparse.Namespace) -> int:
    """All runs; the worst exit code of those that have something to read."""
    common = {"judge": JUDGE, "sampling": given.sampling, "workers": given.workers, "families": given.families}
    beside = [name for name in given.beside.split(",") if name]
    asked = main_recipes(given.weights, beside)
    asked = chosen(asked, given.parts)
    code = bench(given.runs / "main", "one", asked, subjects=given.subjects, seeds=given.seeds, **common)
    if code in (0, 1) and given.sweep_subjects != "none":
        few = {"subjects": given.sweep_subjects, "seeds": given.sweep_seeds}
        recipes = chosen(sweep_recipes(given.weights), given.sweep_parts)
        code = max(code, bench(given.runs / "sweep", "one", recipes, **few, **common))
    if code not in (0, 1):
        return code
    from thisness.cli.options import parse_seeds

    own = given.weights / "ezigen" if given.weights else None
    settings = {"weights": str(own.resolve())} if own is not None and own.is_dir() else {}
    steps = sampling_of(given.sampling).steps
    if given.edit_toys != "none":
        from thisness.bases import load_base

        toys, seeds = given.edit_toys.split(","), parse_seeds(given.edit_seeds)
        ezigen_edits.run(toys, seeds, given.runs / "edits", settings, steps, load_base("playroom-sd"))
    if given.cost_repeats and not (given.runs / "cost.json").is_file():
        ezigen_cost.run(given.weights, given.cost_steps, given.cost_repeats, given.runs / "cost.json")
    return code


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ezigen")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "ezigen.md")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="FOLDER/METHOD; embedded ones by default")
    parser.add_argument("--subjects", default="", help="of the main run; all 20 by default")
    parser.add_argument("--seeds", default="", help="of the main run; 0-2 by default")
    parser.add_argument("--families", default="", help="of all runs; all by default")
    parser.add_argument("--parts", default="", help="labels of the main run's recipes, others may follow later")
    parser.add_argument("--beside", default=BESIDE, help="methods to compare with, by commas")
    parser.add_argument("--sampling", default="", help="of all pictures but those of the recipe fast: steps=10")
    parser.add_argument("--sweep-subjects", default="rufus,mimi,bruno,hazel,bolt,earl,hiker,beetle", help="or none")
    parser.add_argument("--sweep-seeds", default="0")
    parser.add_argument("--sweep-parts", default="", help="as --parts, of the sweep's")
    parser.add_argument("--edit-toys", default="rufus,mimi,bruno,hazel,saffron,kiwi,bolt,earl", help="or none")
    parser.add_argument("--edit-seeds", default="0-1")
    parser.add_argument("--cost-steps", type=int, default=ezigen_cost.STEPS)
    parser.add_argument("--cost-repeats", type=int, default=5, help="rounds; 0: not timed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-page", action="store_true", help="write the page from what the runs hold")
    given = parser.parse_args(words)
    code = 0 if given.only_page else make(given)
    if code in (0, 1):
        page(given.runs, given.page)
        print(given.page)
    return code


if __name__ == "__main__":
    sys.exit(main())
