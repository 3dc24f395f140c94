"""AlignGen on the Playroom: does a reference win over what its noun usually looks like?

    .venv/bin/python benchmarks/aligngen.py              goes on where it was stopped; writes docs/results/aligngen.md
    .venv/bin/python benchmarks/aligngen.py --only-page  from what the runs hold
    .venv/bin/python benchmarks/aligngen.py --train NAME --seed 0   one of the ablations' weights; goes on, too
    .venv/bin/python benchmarks/aligngen.py --train all             all of them, which takes days on two cores

`playroom-flux` was trained on toys of which most of a class look alike; the held-out toys do not. The main run compares
a sentence alone, OminiControl and AlignGen with the embedded weights, one reference each, also with a black picture's
tokens in the reference's place. The ablations' weights are trained by the recipe of the embedded ones with fewer steps,
the full method among them; those that are there (RUNS/trained/NAME-SEED) stand in the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import aligngen_pairs
from claims import HEAD, RULE, Claim, lines
from runs import ROOT, bench, differences, read, sheet_of, table, tradeoff

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored

JUDGE = 'oracle:columns="follow,identity,usual-look"'
METRICS = (
    ("concept", "oracle:identity"), ("followed", "oracle:follow"), ("product", "product"),
    ("usual look", "oracle:usual-look"), ("identity", "dino-i"), ("CLIP-T", "clip-t"),
)  # fmt: skip
STEPS = 1000  # of an ablation's training
DROPS = (0.1, 0.3, 0.5, 0.7, 0.9)
FULL = "full"
VARIANTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "no-star": {"star": False},
    "no-module": {"dem": False},
    "no-mask": {"selective": False},
    "no-strategy": {"drop": 0.0, "names": (0,)},
    "leaf-names": {"names": (0,)},
    "parent-names": {"names": (1,)},
    "broad-names": {"names": (2,)},
    "replace-all": {"replace_all": True},
    "independent": {"mode": "independent"},
    "prodigy": {"optimizer": "prodigy"},
    "ominicontrol": {"star": False, "dem": False, "selective": False, "drop": 0.1, "drop_text": 0.1, "names": (0,)},
    **{f"drop-{int(10 * drop)}": {"drop": drop} for drop in DROPS if drop != 0.5},
}
"""What is trained otherwise than in the full method."""
INTRODUCTION = """\
Made by `.venv/bin/python benchmarks/aligngen.py`; do not edit. Held-out toys, **one** picture each, sentences of all
families, `playroom-flux`. "Concept" is the overlap of what the embedded judge reads of the toy in the picture and in
the reference (class, colour, pattern, second colour), "followed" what it reads of what the sentence asks for; "product"
multiplies the two of each toy. "Usual look" is the textual bias: of what the toy has otherwise than most of its class,
the share that is drawn as most of its class have it (docs/judges.md). Every number is a mean over toys of their means,
with its 95 % interval over toys."""


def main_recipes(weights: Mapping[str, str]) -> dict[str, str]:
    """A sentence alone, both methods, and both with a black picture's tokens."""
    omini, align = (_recipe(name, weights.get(name, "")) for name in ("ominicontrol", "aligngen"))
    return {
        "sentence-alone": "base",
        "ominicontrol": omini,
        "aligngen": align,
        "ominicontrol-black": _recipe("ominicontrol", weights.get("ominicontrol", ""), black="true"),
        "aligngen-black": _recipe("aligngen", weights.get("aligngen", ""), black="true"),
    }


def _recipe(method: str, weights: str = "", **settings: Any) -> str:
    said = {**({"weights": f'"{weights}"'} if weights else {}), **settings}
    return f"{method}:{','.join(f'{name}={value}' for name, value in said.items())}" if said else method


def claims() -> list[Claim]:
    """The paper's, and what must hold for them to be tested at all."""
    alone, omini, align = "sentence-alone", "ominicontrol", "aligngen"
    look, concept, followed = "oracle:usual-look", "oracle:identity", "oracle:follow"
    return [
        Claim("OminiControl shows the toy more than a sentence alone", concept, omini, alone),
        Claim("... but a black picture in its place changes little", concept, omini, f"{omini}-black", "kept"),
        Claim("AlignGen keeps the concept better than OminiControl", concept, align, omini, published=".598, .459"),
        Claim("AlignGen follows the text less", followed, align, omini, "lower", ".871, .947"),
        Claim("the product is higher", "product", align, omini, published=".521, .435"),
        Claim("AlignGen looks less as its noun usually does", look, align, omini, "lower", "figure 2"),
        Claim("with a black picture S* alone carries the toy", concept, f"{align}-black", alone, published="2.9"),
    ]


def ablation_claims() -> list[Claim]:
    concept, found = "oracle:identity", []
    for name, says in (
        ("no-star", "S* helps"), ("no-module", "the module helps"), ("no-mask", "the mask helps"),
        ("no-strategy", "dropout and wider names help"), ("replace-all", "replacing S* alone is better than all"),
    ):  # fmt: skip
        found.append(Claim(says, "product", FULL, name, published="Table 2" if name != "replace-all" else "figure 7"))
    found += [
        Claim("dropping half is better than a tenth", "product", FULL, "drop-1", published=".500, .481"),
        Claim("dropping half is better than nine tenths", "product", FULL, "drop-9", published=".500, .445"),
        Claim("wider names than the class keep the concept better", concept, FULL, "leaf-names"),
        Claim("independent references are as good", "product", "independent", FULL, "kept", "ours"),
    ]
    return found


def with_product(rows: Sequence[Scored]) -> list[Scored]:
    """Rows with what is kept times what is followed."""
    found = []
    for row in rows:
        both = [row.values.get(name) for name in ("oracle:identity", "oracle:follow")]
        if both[0] is not None and both[1] is not None:
            row = replace(row, values={**row.values, "product": both[0] * both[1]})
        found.append(row)
    return found


def by_recipe(folder: Path) -> dict[str, list[Scored]]:
    from thisness.evaluation.statistics import by_recipe as grouped

    run = read(folder)
    return grouped(with_product(run.scored)) if run else {}


def trained(root: Path) -> dict[str, list[Path]]:
    """By variant the folders of its weights, a seed each."""
    found: dict[str, list[Path]] = {}
    for name in VARIANTS:
        for folder in sorted((root / "trained").glob(f"{name}-[0-9]*")):
            if (folder / "weights" / "config.json").is_file() and folder.name.rpartition("-")[0] == name:
                found.setdefault(name, []).append(folder / "weights")
    return found


def train(root: Path, name: str, seed: int, steps: int, place: Any, stop_after: float | None = None) -> bool:
    """One variant's weights; whether they are finished."""
    from thisness.bases import Flux, load_base
    from thisness.methods.aligngen_training import TrainingConfig
    from thisness.methods.redux import open_redux
    from thisness.playroom.recipes.cache import encoded
    from thisness.playroom.recipes.references import REFERENCES, WHERE, ReferenceTask
    from thisness.training.loop import train as loop

    changes = dict(VARIANTS[name])
    names, optimizer = changes.pop("names", (0, 1, 2)), changes.pop("optimizer", REFERENCES.optimizer)
    base = load_base("playroom-flux")
    assert isinstance(base, Flux)
    latents = encoded("flux-latents", place, place.built("flux-vae"))
    task = ReferenceTask(
        "aligngen", base, open_redux(""), place.usual_data(), place.held_out_data(), latents,
        TrainingConfig(**WHERE | changes), seed=seed, names=names,
    )  # fmt: skip
    folder = root / "trained" / f"{name}-{seed}"
    config = replace(REFERENCES, steps=steps, seed=REFERENCES.seed + 1000 * seed, optimizer=optimizer)
    done = loop(task, config, folder / "run", stop_after=stop_after).finished
    if done:
        task.save(folder / "weights")
    return done


def seeds_apart(rows: Mapping[str, Sequence[Scored]], labels: Sequence[str]) -> list[str]:
    """A row for each variant: means over toys, of each training seed its mean; then mean and deviation over seeds."""
    from thisness.evaluation.statistics import estimate

    text = ["| | " + " | ".join(title for title, _ in METRICS) + " | trainings |", "|---" * (len(METRICS) + 2) + "|"]
    for label in labels:
        own = [name for name in rows if name == label or name.rpartition("-seed-")[0] == label]
        if not own:
            continue
        cells = []
        for _, metric in METRICS:
            means = [found.mean for name in own if (found := estimate(rows[name], metric)) and found.mean is not None]
            spread = f" ± {stdev(means):.3f}" if len(means) > 1 else ""
            cells.append(f"{fmean(means):.3f}{spread}" if means else "-")
        text.append(f"| {label} | {' | '.join(cells)} | {len(own)} |")
    return text


def pooled(rows: Mapping[str, Sequence[Scored]]) -> dict[str, list[Scored]]:
    """All trainings of a variant together."""
    found: dict[str, list[Scored]] = {}
    for name, of in rows.items():
        found.setdefault(name.rpartition("-seed-")[0] or name, []).extend(of)
    return found


def page(root: Path, target: Path, pair_seeds: Sequence[int]) -> None:
    """Write it from what the runs hold; pictures of pairs are made where they are not there."""
    from thisness.files import write_text

    main = read(root / "main")
    assert main is not None, f"{root / 'main'} has no run yet"
    rows, ablated = by_recipe(root / "main"), by_recipe(root / "ablations")
    figures = target.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    seeds = len(main.benchmark["seeds"])
    text = ["# AlignGen on the Playroom", "", INTRODUCTION, ""]
    text += [f"{len(main.references)} toys, {seeds} seed{'s' * (seeds > 1)}, {len(main.scored)} pictures.", ""]
    text += ["## Claims", "", RULE, "", *HEAD, *lines(claims(), rows), ""]
    text += ["## Methods", "", *table(rows, list(rows), METRICS), "", "Differences:", ""]
    pairs = [("ominicontrol", "sentence-alone"), ("aligngen", "ominicontrol"), ("aligngen", "aligngen-black")]
    text += [*differences(rows, pairs, METRICS), ""]
    across, up = ("oracle:follow", "followed"), ("oracle:identity", "concept")
    text += tradeoff(rows, list(rows), figures / "tradeoff.png", across, up)
    text += sheet_of(main, rows, list(rows), figures / "pictures.webp", "The reference, then by each recipe")
    if ablated:
        run = read(root / "ablations")
        assert run is not None
        together = pooled(ablated)
        text += [f"## Ablations: {len(run.references)} toys", "", *HEAD, *lines(ablation_claims(), together), ""]
        text += ["Means over toys; over trainings, mean ± deviation:", "", *seeds_apart(ablated, list(VARIANTS)), ""]
        drops = ["drop-1", "drop-3", FULL, "drop-7", "drop-9"]
        if sum(name in together for name in drops) > 2:
            text += ["Share of black references in training, .1 to .9 (the paper's Table 3):", ""]
            text += tradeoff(together, drops, figures / "drops.png", across, up, joined=True)
    nouns = {name: each["noun"] for name, each in main.benchmark["subjects"].items()}
    text += aligngen_pairs.section(main.references, nouns, root / "pairs", figures / "pairs.webp", pair_seeds)
    write_text(target, "\n".join(text).rstrip() + "\n")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "aligngen")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "aligngen.md")
    parser.add_argument("--subjects", default="", help="of the main run; all 20 by default")
    parser.add_argument("--seeds", default="", help="of the main run; 0-2 by default")
    parser.add_argument("--families", default="", help="of all runs; all by default")
    parser.add_argument("--ablation-subjects", default="", help="all 20 by default")
    parser.add_argument("--ablation-seeds", default="0")
    parser.add_argument("--pair-seeds", default="0-2", help="of two toys in one sentence; none: without them")
    parser.add_argument("--sampling", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--train", metavar="NAME", help=f"all, or one of {', '.join(VARIANTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training")
    parser.add_argument("--stop-after", type=float, help="seconds; the training goes on in the next call")
    parser.add_argument("--campaign", type=Path, default=ROOT / ".train", help="of `thisness playroom train`")
    parser.add_argument("--pictures", type=int, default=32768, help="as there")
    parser.add_argument("--only-page", action="store_true", help="write the page from what the runs hold")
    given = parser.parse_args(words)
    if given.train:
        from thisness.playroom.recipes.common import Workplace

        if given.train not in ("all", *VARIANTS):
            parser.error(f"--train {given.train}: use all, or one of {', '.join(VARIANTS)}")
        place = Workplace(given.campaign, given.pictures, 1)
        names, seeds = (list(VARIANTS), (0, 1, 2)) if given.train == "all" else ([given.train], (given.seed,))
        done = [train(given.runs, name, seed, given.steps, place, given.stop_after) for seed in seeds for name in names]
        return int(not all(done))
    code = 0
    if not given.only_page:
        common: dict[str, Any] = {
            "judge": JUDGE, "sampling": given.sampling, "workers": given.workers, "families": given.families,
            "base": "playroom-flux",
        }  # fmt: skip
        asked = main_recipes({})
        code = bench(given.runs / "main", "one", asked, subjects=given.subjects, seeds=given.seeds, **common)
        found = {
            f"{name}-seed-{folder.parent.name.rpartition('-')[2]}": _recipe("aligngen", str(folder.resolve()))
            for name, folders in trained(given.runs).items()
            for folder in folders
        }
        if code in (0, 1) and found:
            few = {"subjects": given.ablation_subjects, "seeds": given.ablation_seeds}
            code = max(code, bench(given.runs / "ablations", "one", found, **few, **common))
    if code in (0, 1):
        from thisness.cli.options import parse_seeds

        page(given.runs, given.page, parse_seeds(given.pair_seeds) if given.pair_seeds != "none" else [])
        print(given.page)
    return code


if __name__ == "__main__":
    sys.exit(main())
