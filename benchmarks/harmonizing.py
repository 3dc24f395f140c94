"""Harmonizing on the Playroom: does orchestration undo pose bias, does the swap keep the subject, on four hosts.

    .venv/bin/python benchmarks/harmonizing.py              goes on where it was stopped; writes its page
    .venv/bin/python benchmarks/harmonizing.py --only-page  from what the runs hold
    .venv/bin/python benchmarks/harmonizing.py --hosts ip-adapter --subjects rufus,mimi --seeds 0 --families pose \\
        --few-subjects none --look-toys none --bias-host none --cost-repeats 0 --sampling steps=10    in minutes
    .venv/bin/python benchmarks/harmonizing.py --benchmark ds --folder ds.json --base runwayml/stable-diffusion-v1-5 \\
        --weights adapters --masker auto --runs runs/ds --page ds.md    on real weights, on a copy of one's own

Runs of `thisness bench run playroom --size pose` (one reference for each toy, every pose but its own asked for): each
host alone, with each part, with the controls, and the probes; the basis from a caption of the reference; sentences
without a pose; settings beyond the paper and methods that learn from the one picture on fewer toys. Then what is seen
from within: attention inside of the subject's mask, pose bias in the plane; and what it costs. Of another benchmark
there are the main run, settings beyond the paper, methods that learn, and the cost: the rest needs the truth.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harmonizing_cost
import harmonizing_looks as looks
from claims import HEAD, RULE, Claim, line, lines, over_toys
from runs import ROOT, bench, differences, read, sampling_of, sheet_of, spec, table, tradeoff

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored
    from thisness.playroom.finder import PlayroomMasker

HOSTS = ("ip-adapter", "ip-adapter-plus", "elite", "blip-diffusion")
LEARNED = ("textual-inversion", "dreambooth-lora")
WEAKER: dict[str, dict[str, Any]] = {
    "ip-adapter": {"scale": 0.5}, "ip-adapter-plus": {"scale": 0.5}, "elite": {"scale": 0.4},
}  # fmt: skip
"""Half of what is usual on the embedded base. BLIP-Diffusion has no such setting."""
PARTS = {
    "orchestrate": "+orchestrate", "swap": "+attention-swap", "both": "+orchestrate+attention-swap",
}  # fmt: skip
CONTROLS = {"random": "+orchestrate:control=random", "shrink": "+orchestrate:control=shrink"}
EXTRAS = {
    "strength-0-5": "+orchestrate:strength=0.5", "ridge": "+orchestrate:ridge=0.3", "mean": "+orchestrate:reduce=mean",
    "text-only-basis": "+orchestrate:basis=text_only", "clause": "+orchestrate:group=clause",
    "contrast": "+orchestrate:basis=contrast", "robust": "+harmonizing:preset=robust",
    "late-swap": "+attention-swap:start=0.3", "coarse-swap": "+attention-swap:layers=all",
}  # fmt: skip
IMAGE_TOKENS = ("ip-adapter", "ip-adapter-plus")
FREE = "background,accessory,object,style"
FEW = "rufus,mimi,bruno,hazel,saffron,kiwi"
JUDGE = 'oracle:columns="pose,follow,copied-pose"'
METRICS = (
    ("pose read", "oracle:pose"), ("pose copied", "oracle:copied-pose"), ("CLIP-T", "clip-t"),
    ("identity", "dino-i"), ("CLIP-I", "clip-i"), ("m-CLIP-I", "m-clip-i"), ("m-DINO-I", "m-dino-i"),
)  # fmt: skip
INTRODUCTION = """\
Made by `.venv/bin/python benchmarks/harmonizing.py`; do not edit. Held-out toys, **one** picture each; every sentence
asks for another pose than that picture's. Every number is a mean over toys of their means, with its 95 % interval over
toys; differences are on the same sentences and seeds, p of a sign-flip test over toys. "Pose read" is the share of
pictures in which the embedded judge reads the asked pose (docs/judges.md), "pose copied" that in which it reads the
reference's; CLIP-T and CLIP-I are of `playroom-clip`, identity the cosine of `playroom-identity` to that picture."""


FOREIGN = """\
Made by `.venv/bin/python benchmarks/harmonizing.py --benchmark {benchmark} --base {base}`; do not edit. Every number is
a mean over subjects of their means, with its 95 % interval over subjects; differences are on the same sentences and
seeds, p of a sign-flip test over subjects. What needs the truth about a rendered scene is left out: poses that are
read, sentences without a pose, captions of the reference, attention, pose bias in the plane."""


def recipes(host: str, weights: Path | None, with_probes: bool = True) -> dict[str, str]:
    """A host alone, with the parts, with the controls, and the probes: by label, what is run."""
    plain = spec(host, weights)
    found = {host: plain} | {f"{host}-{name}": plain + parts for name, parts in (PARTS | CONTROLS).items()}
    if host in WEAKER:
        found[f"{host}-weaker"] = spec(host, weights, **WEAKER[host])
    if with_probes:
        found[f"{host}-text"] = spec(host, weights, **({"scale": 0} if host == "elite" else {})) + "+probe:keep=text"
        found[f"{host}-visual"] = plain + "+probe:keep=visual"
    return found


def extras(host: str, weights: Path | None) -> dict[str, str]:
    """Settings beyond the paper's, with the plain method beside them."""
    plain = spec(host, weights)
    more = EXTRAS | ({"value": "+orchestrate:space=value"} if host in IMAGE_TOKENS else {})
    found = {host: plain} | {f"{host}-{name}": plain + part for name, part in PARTS.items()}
    return found | {f"{host}-{name}": plain + part for name, part in more.items()}


def captions(toy: str) -> dict[str, str]:
    """What is said of the toy's one reference: all of it, and its pose."""
    from thisness.playroom.captions import PLACES
    from thisness.playroom.subjects import held_out_identity, subject_index

    shown, noun = looks.truth(toy), held_out_identity(subject_index(toy)).noun
    posed = f"a {noun} {shown['pose']}"
    return {"caption": f"{posed} {PLACES[shown['background']][0]}", "described": posed}


def claims(host: str) -> list[Claim]:
    """The paper's, on one host; "ours" those that the controls must meet."""
    both, orchestrate, swap = f"{host}-both", f"{host}-orchestrate", f"{host}-swap"
    free, free_both = f"free:{host}", f"free:{host}-both"
    found = [
        Claim("the visual embedding costs text: without it, more", "clip-t", f"{host}-text", host, published="+.033"),
        Claim("the text costs identity: without it, more", "clip-i", f"{host}-visual", host, published="+.047"),
        Claim("orchestration follows the text better", "clip-t", orchestrate, host, published="+.007 to +.014"),
        Claim("orchestration gives the asked pose", "oracle:pose", orchestrate, host, published="shown"),
        Claim("orchestration copies the pose less", "oracle:copied-pose", orchestrate, host, "lower", "shown"),
        Claim("orchestration costs a little identity", "m-dino-i", orchestrate, host, "lower", "-.004 to -.012"),
        Claim("the same, whole pictures", "dino-i", orchestrate, host, "lower", "-.021 to +.007"),
        Claim("the swap gives identity", "m-dino-i", swap, host, published="+.007 to +.009"),
        Claim("the same, whole pictures", "dino-i", swap, host, published="+.003 to +.010"),
        Claim("both keep the gain in text", "clip-t", both, host, published="+.013 to +.015"),
        Claim("both give the asked pose", "oracle:pose", both, host, published="shown"),
        Claim("both keep identity", "m-dino-i", both, host, "kept", "+.001 to +.007"),
        Claim("the same, whole pictures", "dino-i", both, host, "kept", "-.008 to +.016"),
        Claim(
            "the basis must be the sentence, not a caption", "clip-t", orchestrate, f"{host}-caption", published="+.011"
        ),
        Claim("nor what is said of the pose", "clip-t", orchestrate, f"{host}-described", published="+.013"),
        Claim("the same, by the pose read", "oracle:pose", orchestrate, f"{host}-caption"),
        Claim("sentences without a pose: text kept", "clip-t", free_both, free, "kept", "+.000 to +.001"),
        Claim("sentences without a pose: identity kept", "dino-i", free_both, free, "kept", "+.005 to +.006"),
    ]
    for name, said in (("random", "random directions"), ("shrink", "a shorter embedding"), ("weaker", "a lower scale")):
        says = f"orchestration is more than {said}"
        found.append(Claim(f"{says}: pose", "oracle:pose", orchestrate, f"{host}-{name}", published="ours"))
        found.append(Claim(f"{says}: identity kept", "dino-i", orchestrate, f"{host}-{name}", "kept", "ours"))
    return found


def learned_claims(host: str) -> list[Claim]:
    return [
        Claim(
            "also for what was learned from one picture: text", "clip-t", f"{host}-both", host, published="-.007, +.005"
        ),
        Claim("... : identity", "m-dino-i", f"{host}-both", host, published="+.006, +.007"),
        Claim("... : the asked pose", "oracle:pose", f"{host}-both", host),
    ]


def by_recipe(rows: Sequence[Scored]) -> dict[str, list[Scored]]:
    from thisness.evaluation.statistics import by_recipe as grouped

    return grouped(rows)


def gathered(root: Path, masker: PlayroomMasker | None) -> dict[str, list[Scored]]:
    """Rows of the main run and of those of single toys, by recipe; sentences without a pose as "free:RECIPE"."""
    found: list[Scored] = []
    for folder in (root / "main", *sorted((root / "caption").glob("*"))):
        if run := read(folder):
            found += looks.masked(run.scored, folder / "masked.json", masker)
    rows = by_recipe(found)
    if free := read(root / "free"):
        rows |= {f"free:{label}": each for label, each in by_recipe(free.scored).items()}
    return rows


def with_values(asked: Sequence[Claim], rows: Mapping[str, Sequence[Scored]]) -> list[Claim]:
    """Those whose metric was measured at all."""
    measured = {
        name for each in rows.values() for row in each for name, value in row.values.items() if value is not None
    }
    return [claim for claim in asked if claim.metric in measured]


def page(
    root: Path, target: Path, masker: PlayroomMasker | None = None, masks: bool = False, benchmark: str = "playroom",
    base: str = "playroom-sd",
) -> None:  # fmt: skip
    """Write it from what the runs hold."""
    from thisness.files import write_text

    main = read(root / "main")
    assert main is not None, f"{root / 'main'} has no run yet"
    rows = gathered(root, masker)
    figures = target.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    hosts = [host for host in HOSTS if rows.get(host)]
    toys, seeds = len(main.references), len(main.benchmark["seeds"])
    here = benchmark == "playroom"
    name = "the Playroom" if here else benchmark
    introduction = INTRODUCTION if here else FOREIGN.format(benchmark=benchmark, base=base)
    text = [f"# Harmonizing on {name}", "", introduction, ""]
    metrics = METRICS if here else [each for each in METRICS if not each[1].startswith("oracle:")]
    told = " Masked values need a mask of the made picture, and none was looked for." if here else ""
    if masks and here:
        told = (
            " m-CLIP-I and m-DINO-I see both pictures through masks; those of made pictures are found by a linear map "
            "of the denoiser's states (docs/metrics.md, Masks, says how well)."
        )
    what = "toys" if here else "subjects"
    text += [f"{toys} {what}, {seeds} seed{'s' * (seeds > 1)}, {len(main.scored)} pictures of the main run.{told}", ""]
    text += ["## Claims", "", RULE, ""]
    for host in hosts:
        found = [*lines(with_values(claims(host), rows), rows), *within(root, host)]
        text += [f"### {host}", "", *HEAD, *found, ""]
    text += [*learned_section(root, masker), *bias_section(root, figures)]
    text += ["## Numbers", ""]
    for host in hosts:
        labels = [label for label in rows if label == host or label.startswith(f"{host}-")]
        labels = [
            label
            for label in labels
            if not any(o != host and o.startswith(host) and label.startswith(o) for o in hosts)
        ]
        text += [f"### {host}", "", *table(rows, [*(["base"] if host == hosts[0] else []), *labels], metrics), ""]
        text += ["Minus the host alone:", ""]
        text += [*differences(rows, [(label, host) for label in labels if label != host], metrics), ""]
        across, up = ("oracle:pose", "asked pose read") if here else ("clip-t", "CLIP-T"), ("dino-i", "identity")
        text += tradeoff(rows, [*labels, "base"], figures / f"{host}.png", across, up)
        shown = [host, *(f"{host}-{name}" for name in (*PARTS, *CONTROLS, "weaker", "text", "visual"))]
        text += sheet_of(main, rows, shown, figures / f"{host}-pictures.webp", f"{host}: the reference, then by recipe")
    text += [*extras_section(root, hosts, masker), *cost_section(root)]
    text += ["Sentences are those of `--size pose` (docs/benchmarks.md)."] if here else []
    text += [
        "Orchestration on a picture that is read beside the text (ip-adapter) is ours: the paper does not say where it "
        "would act.", "",
    ]  # fmt: skip
    write_text(target, "\n".join(text).rstrip() + "\n")


def within(root: Path, host: str) -> list[str]:
    """Rows of the table of claims: attention inside of the subject's mask."""
    from thisness.files import read_json

    file = root / "looks" / f"concentration-{host}.json"
    if not file.is_file():
        return []
    found, made = read_json(file), []
    for word, published in (("subject", "x6.2"), ("pose", "x3.95")):
        logs = looks.factors(found, word)
        if logs:
            mean = math.exp(sum(logs) / len(logs))
            says = f"orchestration gathers the {word} word's attention on the subject (x{mean:.2f}, {len(logs)} toys)"
            asked = "log share of the map inside of the mask, with - without: higher"
            made.append(line(says, asked, published, over_toys(logs, "higher")))
    return made


def learned_section(root: Path, masker: PlayroomMasker | None) -> list[str]:
    run = read(root / "learned")
    if run is None:
        return []
    rows = by_recipe(looks.masked(run.scored, root / "learned" / "masked.json", masker))
    there = [host for host in LEARNED if rows.get(host)]
    found = [each for host in there for each in lines(learned_claims(host), rows)]
    return [
        f"### Learned from the one picture: {len(run.references)} toys", "", *HEAD, *found, "",
        *table(rows, list(rows), METRICS), "",
    ]  # fmt: skip


def extras_section(root: Path, hosts: Sequence[str], masker: PlayroomMasker | None) -> list[str]:
    run = read(root / "extras")
    if run is None:
        return []
    rows = by_recipe(looks.masked(run.scored, root / "extras" / "masked.json", masker))
    seeds = len(run.benchmark["seeds"])
    text = [f"## Beyond the paper: {len(run.references)} toys, {seeds} seed{'s' * (seeds > 1)}", ""]
    for host in hosts:
        plain = [
            (f"{host}-{name}", f"{host}-{'swap' if 'swap' in name else 'both' if name == 'robust' else 'orchestrate'}")
            for name in (*EXTRAS, "value")
        ]
        if rows.get(host):
            text += [
                f"### {host}",
                "",
                *table(rows, [host, *(f"{host}-{n}" for n in (*PARTS, *EXTRAS, "value"))], METRICS),
            ]
            text += ["", "Minus the plain method:", "", *differences(rows, plain, METRICS), ""]
    return text


def bias_section(root: Path, figures: Path) -> list[str]:
    """The plane's figures, and what the diagnosis says of each."""
    from thisness.files import read_json

    text: list[str] = []
    for folder in sorted((root / "looks").glob("bias-*")):
        host = folder.name.removeprefix("bias-")
        found = {
            name: read_json(folder / name / "pose-bias.json") for name in looks.VARIANTS if (folder / name).is_dir()
        }
        if not found:
            continue
        count = len(next(iter(found.values()))["seeds"]["generated"])
        toy = next(iter(found.values()))["subject"]["name"]
        text += [f"### Pose bias in the plane: {host}, {toy}, {count} pictures", ""]
        text += ["| | verdict of the diagnosis | peaks: share, distance to the reference in spreads |", "|---|---|---|"]
        for name, each in found.items():
            peaks = "; ".join(f"{p['share']:.0%}, {p['distance_in_spreads']:.1f}" for p in each["peaks"][:3])
            text.append(f"| {name} | {each['sentence']} | {peaks} |")
        text += ["", *HEAD]
        for name, wanted, says in (
            ("host", "pose bias", "the host keeps the reference's pose"),
            ("both", "follows", "with both parts the pictures follow the words"),
        ):
            if name in found:
                said = found[name]["verdict"]
                other = {"pose bias": "follows", "follows": "pose bias"}[wanted]
                word = "seen" if said == wanted else "opposite" if said == other else "not seen"
                text.append(f"| {says} | verdict of the diagnosis is {wanted!r} | figure 2 | {said} | - | **{word}** |")
        for name in found:
            shutil.copyfile(folder / name / "pose-bias.png", figures / f"{folder.name}-{name}.png")
            text += ["", f"![{name}]({figures.name}/{folder.name}-{name}.png)"]
        text.append("")
    return text


def cost_section(root: Path) -> list[str]:
    from thisness.files import read_json

    file = root / "cost.json"
    if not file.is_file():
        return []
    found = read_json(file)
    columns = list(found["rows"][0])
    text = ["## Cost", "", f"{found['title']}. Ratios are to the host alone, of as many sentences, within each round; "]
    where = found["machine"]
    text[-1] += f"{where['processor']}, {where['threads']} thread(s), load {where['load']}."
    text += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in found["rows"]:
        cells = [f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        text.append(f"| {' | '.join(cells)} |")
    return [*text, ""]


def make(given: argparse.Namespace) -> int:
    """All runs and looks; the worst exit code of those that have something to read."""
    hosts = given.hosts.split(",")
    here = given.benchmark == "playroom"
    common = {
        "judge": JUDGE if here else given.judge, "sampling": given.sampling, "workers": given.workers,
        "base": given.base, "benchmark": given.benchmark, "folder": given.folder, "metrics": given.metrics,
        "masker": given.masker,
    }  # fmt: skip
    asked = {"base": "base"}
    for host in hosts:
        asked |= recipes(host, given.weights)
    pose = {"subjects": given.subjects, "seeds": given.seeds, "families": given.families}
    code = bench(given.runs / "main", "pose", asked, **pose, **common)
    if code not in (0, 1):
        return code
    run = read(given.runs / "main")
    assert run is not None
    toys = list(run.references)
    for toy in toys if given.captions and here else ():
        said = {
            f"{host}-{name}": f'{spec(host, given.weights)}+orchestrate:basis_text="{text}"'
            for host in hosts for name, text in captions(toy).items()
        }  # fmt: skip
        code = max(code, bench(given.runs / "caption" / toy, "pose", said, **{**pose, "subjects": toy}, **common))
    if given.free_subjects != "none" and here:
        both = {
            f"{host}{end}": spec(host, given.weights) + part
            for host in hosts
            for end, part in (("", ""), ("-both", PARTS["both"]))
        }
        free = {"subjects": given.free_subjects, "seeds": given.few_seeds, "families": FREE}
        code = max(code, bench(given.runs / "free", "one", both, **free, **common))
    if given.few_subjects != "none":
        few = {"subjects": given.few_subjects, "seeds": given.few_seeds, "families": given.families}
        more: dict[str, str] = {}
        for host in hosts:
            more |= extras(host, given.weights)
        code = max(code, bench(given.runs / "extras", "pose", more, **few, **common))
        if given.learned != "none":
            learned = {
                f"{host}{end}": host + part
                for host in given.learned.split(",")
                for end, part in (("", ""), *((f"-{name}", part) for name, part in PARTS.items()))
            }
            code = max(code, bench(given.runs / "learned", "pose", learned, **few, **common))
    return code


def look(given: argparse.Namespace, masker: PlayroomMasker | None, base: Any) -> None:
    """From within, and the cost."""
    options = sampling_of(given.sampling)

    def settings(host: str) -> dict[str, Any]:
        own = given.weights / host if given.weights else None
        return {"weights": str(own.resolve())} if own is not None and own.is_dir() else {}

    folder = given.runs / "looks"
    folder.mkdir(parents=True, exist_ok=True)
    here = given.benchmark == "playroom"
    if given.look_toys != "none" and masker is not None:
        for host in given.hosts.split(","):
            file = folder / f"concentration-{host}.json"
            looks.concentrations(host, settings(host), given.look_toys.split(","), file, masker, base, options)
    if given.bias_host != "none" and here:
        from thisness.cli.options import parse_seeds

        host, seeds = given.bias_host, parse_seeds(given.bias_seeds)
        looks.pose_bias(host, settings(host), given.bias_toy, folder / f"bias-{host}", seeds, base, options)
    if given.cost_repeats and not (given.runs / "cost.json").is_file():
        steps = options.steps
        harmonizing_cost.run(
            given.hosts.split(",")[0], given.weights, steps, given.cost_repeats, given.runs / "cost.json", given.base
        )


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "harmonizing")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "harmonizing.md")
    parser.add_argument("--hosts", default=",".join(HOSTS), help="by commas")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="FOLDER/METHOD; embedded ones by default")
    parser.add_argument("--subjects", default="", help="of the main run; all 21 creatures by default")
    parser.add_argument("--seeds", default="", help="of the main run; 0-2 by default")
    parser.add_argument("--families", default="", help="pose, pose-object, pose-place; all (11 sentences) by default")
    parser.add_argument("--sampling", default="", help="of all pictures: steps=10,guidance=3")
    parser.add_argument("--captions", action=argparse.BooleanOptionalAction, default=True, help="the basis's ablation")
    parser.add_argument("--free-subjects", default="rufus,mimi,bruno,hazel,saffron,kiwi,bolt,dog-10", help="or none")
    parser.add_argument("--few-subjects", default=FEW, help="of the rest; or none (so for another benchmark)")
    parser.add_argument("--few-seeds", default="0")
    parser.add_argument("--learned", default=",".join(LEARNED), help="methods that learn from the one picture; or none")
    parser.add_argument("--look-toys", default="rufus,mimi,bruno,hazel,saffron,kiwi,bolt,dog-10", help="or none")
    parser.add_argument("--bias-host", default="blip-diffusion", help="or none")
    parser.add_argument("--bias-toy", default="rufus")
    parser.add_argument("--bias-seeds", default="0-63")
    parser.add_argument("--masks", action=argparse.BooleanOptionalAction, default=True, help="masked values")
    parser.add_argument("--cost-repeats", type=int, default=5, help="rounds; 0: not timed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-page", action="store_true", help="write the page from what the runs hold")
    parser.add_argument("--benchmark", default="playroom", help="ds, or another one of `thisness bench run`")
    parser.add_argument("--folder", default="", help="where your copy of it lies")
    parser.add_argument("--base", default="playroom-sd", help="embedded name, local folder or hub id")
    parser.add_argument("--metrics", default="", help="the benchmark's own by default")
    parser.add_argument("--judge", default="", help="of another benchmark")
    parser.add_argument("--masker", default="", help="of another benchmark: finds the subject in made pictures")
    given = parser.parse_args(words)
    here = given.benchmark == "playroom"
    if not here and given.few_subjects == FEW:
        given.few_subjects = "none"  # those are the Playroom's
    code = 0 if given.only_page else make(given)
    if code not in (0, 1):
        return code
    masker = None
    if here and (given.masks or given.look_toys != "none"):
        from thisness.playroom.finder import playroom_masker

        masker = playroom_masker()
        if not given.only_page:
            look(given, masker, masker.base)
    elif not (here or given.only_page):
        look(given, None, None)
    page(
        given.runs, given.page, masker if given.masks else None, given.masks and here, given.benchmark, given.base
    )  # fmt: skip
    print(given.page)
    return code


if __name__ == "__main__":
    sys.exit(main())
