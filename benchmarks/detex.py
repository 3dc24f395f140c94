"""DETEX on the Playroom: what is kept of a reference, what follows the sentence, what each part of it is for.

    .venv/bin/python benchmarks/detex.py              goes on where it was stopped; writes docs/results/detex.md
    .venv/bin/python benchmarks/detex.py --only-page  from what the runs hold

Three kinds of runs of `thisness bench run playroom --size control`: DETEX beside Custom Diffusion on all toys; DETEX
without each of its parts on the first ones; DETEX from fewer pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from claims import HEAD, RULE, Claim, line, lines, over_toys
from pages import cell, compared, save_figure

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored
    from thisness.evaluation.results import Run

ROOT = Path(__file__).resolve().parent.parent
MAIN = "detex,custom-diffusion"
ABLATIONS = {
    "detex": "whole (preset small)",
    "paper-words=detex:centred=false,drop_pose=0": "words neither centred nor left out (as the paper)",
    "free=detex:mappers=free": "no mappers: free words",
    "no-attention-loss=detex:attention_weight=0": "no attention loss",
    "gamma-0=detex:gamma=0": "gamma 0: backgrounds stay",
    "gamma-1=detex:gamma=1": "gamma 1: all backgrounds removed",
    "unmasked=detex:masked=false": "the loss counts the fill of removed backgrounds, too (as the paper)",
    "unmasked-random=detex:masked=false,fill=random": "the same, with fills of several random colours",
}
JUDGE = 'oracle:columns="follow,pose,background"'
COLUMNS = (
    ("pose kept", "keep-pose", "oracle:pose"),
    ("place followed meanwhile", "keep-pose", "oracle:background"),
    ("background kept", "keep-background", "oracle:background"),
    ("pose followed meanwhile", "keep-background", "oracle:pose"),
    ("both kept", "keep-both", "oracle:follow"),
    ("alone: followed", "alone", "oracle:follow"),
    ("alone: identity", "alone", "dino-i"),
    ("alone: CLIP-T", "alone", "clip-t"),
)
"""Title, family of cases, metric."""
ALONE = ("alone",)
MAIN_CLAIMS = (
    Claim("follows the sentence better", "clip-t", "detex", "custom-diffusion", "higher", ".325, .314", ALONE),
    Claim("the same, as read", "oracle:follow", "detex", "custom-diffusion", families=ALONE),
    Claim("keeps the thing itself better", "dino-i-fg", "detex", "custom-diffusion", "higher", ".612, .597", ALONE),
    Claim("is less like whole references", "dino-i", "detex", "custom-diffusion", "lower", ".650, .660", ALONE),
    Claim("loses less without their backgrounds", "drop", "detex", "custom-diffusion", "lower", ".038, .063", ALONE),
)
ABLATION_CLAIMS = (
    Claim("mappers give identity", "dino-i-fg", "detex", "free", "higher", ".580, .579", ALONE),
    Claim(
        "the attention loss gives identity", "dino-i-fg", "detex", "no-attention-loss", "higher", ".580, .577", ALONE
    ),
    Claim("... and keeps poses", "oracle:pose", "detex", "no-attention-loss", families=("keep-pose",)),
    Claim("... and backgrounds", "oracle:background", "detex", "no-attention-loss", families=("keep-background",)),
    Claim("removed backgrounds give identity", "dino-i-fg", "detex", "gamma-0", "higher", ".580, .563", ALONE),
    Claim("... and cost text", "clip-t", "detex", "gamma-0", "lower", ".330, .333", ALONE),
    Claim(
        "all removed, none can be kept",
        "oracle:background",
        "detex",
        "gamma-1",
        "higher",
        "shown",
        ("keep-background",),
    ),
    Claim("a masked loss costs identity", "dino-i-fg", "detex", "unmasked", "lower", ".562, .580", ALONE),
    Claim("the same beside random fills", "dino-i-fg", "detex", "unmasked-random", "lower", families=ALONE),
    Claim("centred words follow better", "oracle:follow", "detex", "paper-words", "higher", "ours", ALONE),
)
FEWER_CLAIMS = tuple(
    Claim(f"one picture gives less identity than {count}", "dino-i-fg", f"of {count}", "of 1", "higher", "shown", ALONE)
    for count in (2, 4)
)
"""The paper's tables 1, 3 and 4 (SD 1.4, DreamBench); "shown" where it has pictures, "ours" where it says nothing."""
KEPT = (
    ("[P] of a picture brings back its pose", "keep-pose", "oracle:pose"),
    ("... while the place is followed", "keep-pose", "oracle:background"),
    ("[B] of a picture brings back its background", "keep-background", "oracle:background"),
    ("... while the pose is followed", "keep-background", "oracle:pose"),
    ("[V] alone: the asked pose", "alone", "oracle:pose"),
    ("[V] alone: the asked place", "alone", "oracle:background"),
)
INTRODUCTION = """\
Made by `.venv/bin/python benchmarks/detex.py`; do not edit. Held-out toys, four pictures each, read by the embedded
judge (docs/judges.md). Every number is a mean over toys of their means, with its 95 % interval over toys. "Pose
kept" is the share of pictures in which the reader reads the pose of the kept reference, while the sentence names a
new place; "alone" is the subject's word without any other, in a pose and a place that no reference shows; identity
is the cosine of `playroom-identity` to the references."""


def run(out: Path, size: str, recipes: str, subjects: str, seeds: str, workers: int) -> int:
    """One run; 0 or 1 (some pictures could not be made) if there is something to read."""
    from thisness.cli import run as thisness

    words = ["bench", "run", "playroom", "--extend", "--size", size, "--recipes", recipes, "--judge", JUDGE]
    words += ["--out", str(out), "--workers", str(workers)]
    words += ["--subjects", subjects] if subjects else []
    return thisness([*words, "--seeds", seeds] if seeds else words)


def chance(noun: str, metric: str) -> float:
    """How often a pose or a place would be right by chance."""
    from thisness.playroom.world import BACKGROUNDS, poses_of

    return 1 / len(poses_of(noun) if metric == "oracle:pose" else BACKGROUNDS)


def kept_lines(rows: Sequence[Scored], nouns: Mapping[str, str]) -> list[str]:
    """Rows of the table of claims: what each word of DETEX keeps, over chance."""
    from thisness.evaluation.statistics import subject_of, unit_means

    found = []
    for says, family, metric in KEPT:
        means = unit_means([row for row in rows if row.family == family], metric, subject_of)
        over = [mean - chance(nouns[toy], metric) for toy, mean in means.items()]
        if over:
            found.append(line(says, f"{metric}, {family}, less chance: higher", "shown", over_toys(over, "higher")))
    return found


def with_drop(rows: Sequence[Scored]) -> list[Scored]:
    """The rows, and how much identity is less to references without their backgrounds."""
    found = []
    for row in rows:
        whole, cut = row.values.get("dino-i"), row.values.get("dino-i-fg")
        drop = None if whole is None or cut is None else whole - cut
        found.append(replace(row, values={**row.values, "drop": drop}))
    return found


def claims_section(root: Path, main: Run) -> list[str]:
    """What the paper says, by the rule."""
    from thisness.evaluation.results import read_run
    from thisness.evaluation.statistics import by_recipe

    rows = by_recipe(with_drop(main.scored))
    nouns = {name: each["noun"] for name, each in main.benchmark["subjects"].items()}
    text = ["## Claims", "", RULE, "", *HEAD, *lines(MAIN_CLAIMS, rows), *kept_lines(rows.get("detex", ()), nouns)]
    if (root / "ablations" / "run.json").exists():
        text += lines(ABLATION_CLAIMS, by_recipe(read_run(root / "ablations").scored))
    fewer = {
        f"of {count}": list(read_run(root / f"of-{count}").scored)
        for count in (1, 2, 3) if (root / f"of-{count}" / "run.json").exists()
    }  # fmt: skip
    return [*text, *lines(FEWER_CLAIMS, {**fewer, "of 4": rows.get("detex", [])}), ""]


def table(runs: Sequence[tuple[str, Sequence[Scored]]]) -> list[str]:
    """Lines of Markdown, a row for each labelled set of pictures."""
    lines = ["| | " + " | ".join(title for title, _, _ in COLUMNS) + " | pictures |", "|---" * (len(COLUMNS) + 2) + "|"]
    for label, rows in runs:
        cells = [cell(rows, family, metric) for _, family, metric in COLUMNS]
        lines.append(f"| {label} | {' | '.join(cells)} | {len(rows)} |")
    return lines


def pictures(run: Run, path: Path, toys: int = 3) -> None:
    """References at the left; each pose kept elsewhere, each background kept, the subject alone."""
    from PIL import Image

    from thisness.images import Tile, sheet

    rows = []
    names = list(run.references)[:: max(1, len(run.references) // toys)][:toys]
    for name in names:
        own = [each for each in run.scored if each.recipe == "detex" and each.subject == name and each.image]
        first = {each.case: each for each in own if each.seed == min(row.seed for row in own)}
        line = [Tile(Image.open(file).convert("RGB"), f"picture {i}") for i, file in enumerate(run.references[name])]
        rows.append(line)
        for family in ("keep-pose", "keep-background", "alone"):
            chosen = [each for each in first.values() if each.family == family]
            rows.append([Tile(Image.open(each.image).convert("RGB"), each.sentence) for each in chosen if each.image])
    save_figure(sheet(rows, title="DETEX: what is kept, and what the sentence says", tile=144), path)


def page(root: Path, target: Path) -> None:
    from thisness.evaluation.results import read_run
    from thisness.evaluation.statistics import by_recipe
    from thisness.files import write_text

    main = read_run(root / "main")
    rows = by_recipe(main.scored)
    target.with_suffix("").mkdir(parents=True, exist_ok=True)
    pictures(main, target.with_suffix("") / "kept.webp")
    text = [
        "# DETEX on the Playroom", "",
        INTRODUCTION, "",
        *claims_section(root, main),
        f"## DETEX and Custom Diffusion: {len(main.references)} toys, {len(main.benchmark['seeds'])} seeds", "",
        f"Toys: {', '.join(main.references)}. Without options the command takes 12 toys, 3 seeds, all ablations.", "",
        *table(list(rows.items())), "",
    ]  # fmt: skip
    if len(rows) > 1:
        first, second = list(rows)[:2]
        text.append(f"{first} against {second} on the same cases and seeds, alone:")
        for title, family, metric in COLUMNS:
            if family == "alone":
                text.append(f"- {title}: {compared(rows[first], rows[second], family, metric)}")
        text.append("")
    seconds = {label: [s for (of, _), s in main.learning.items() if of == label] for label in rows}
    text += [f"Learning took {sum(s) / len(s):.0f} s a toy by {label}." for label, s in seconds.items() if s]
    text += ["", f"![kept poses, kept backgrounds, the subject alone]({target.stem}/kept.webp)", ""]
    if (root / "ablations" / "run.json").exists():
        ablations = read_run(root / "ablations")
        by = by_recipe(ablations.scored)
        names = {entry.partition("=")[0]: said for entry, said in ABLATIONS.items()}
        toys, seeds = len(ablations.references), len(ablations.benchmark["seeds"])
        text += [f"## Without each part: {toys} toys, {seeds} seed{'s' if seeds > 1 else ''}", ""]
        text += [*table([(names.get(label, label), found) for label, found in by.items()]), ""]
        if "detex" in by:
            shown = [column for column in COLUMNS if column[0] in ("pose kept", "background kept", "alone: identity")]
            text += ["Whole minus ablated, on the same cases and seeds:", ""]
            text += ["| | " + " | ".join(title for title, _, _ in shown) + " |", "|---" * (len(shown) + 1) + "|"]
            for label, found in by.items():
                if label != "detex":
                    cells = [compared(by["detex"], found, family, metric) for _, family, metric in shown]
                    text.append(f"| {names.get(label, label)} | {' | '.join(cells)} |")
            text.append("")
    fewer = [(count, root / f"of-{count}") for count in (1, 2, 3)]
    fewer = [(count, folder) for count, folder in fewer if (folder / "run.json").exists()]
    if fewer:
        text += ["## From fewer pictures", ""]
        text += [*table([(f"{count} of 4", read_run(folder).scored) for count, folder in fewer]), ""]
    write_text(target, "\n".join(text).rstrip() + "\n")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "detex")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "detex.md")
    parser.add_argument("--subjects", default="", help="of the main run; all 12 by default")
    parser.add_argument("--seeds", default="", help="of the main run; 0-2 by default")
    parser.add_argument("--ablation-subjects", default="rufus,mimi,kiwi,bolt,earl,beetle", help="or none")
    parser.add_argument("--ablation-seeds", default="0")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-page", action="store_true", help="write the page from what the runs hold")
    given = parser.parse_args(words)
    code = 0
    if not given.only_page:
        code = run(given.runs / "main", "control", MAIN, given.subjects, given.seeds, given.workers)
        if code in (0, 1) and given.ablation_subjects != "none":
            few = (given.ablation_subjects, given.ablation_seeds, given.workers)
            code = max(code, run(given.runs / "ablations", "control", ";".join(ABLATIONS), *few))
            for count in (1, 2, 3):
                code = max(code, run(given.runs / f"of-{count}", f"control-{count}", "detex", *few))
    if code in (0, 1):
        page(given.runs, given.page)
        print(given.page)
    return code


if __name__ == "__main__":
    sys.exit(main())
