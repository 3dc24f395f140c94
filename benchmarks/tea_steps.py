"""What a word gives at steps of its learning: does the context go as the identity comes?

The words that `learn --track-collapse` recorded at some steps take the place of the finished one; the same sentences
and seed for all. CLIP-T of the context by `playroom-clip`, identity by `playroom-identity`, as in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

STEPS = (0, 20, 60, 120, 200, 400)
SENTENCES = 5  # of each toy
SEED = 0
FILE = "embeddings.safetensors"


def pictures_of(concept: Any, base: Any, folder: Path, texts: Sequence[str], out: Path) -> dict[int, list[Path]]:
    """Pictures by step; those that are there already are not made again."""
    from thisness.files import load_tensors
    from thisness.generation import generate
    from thisness.images import save_png

    found: dict[int, list[Path]] = {}
    for step in STEPS:
        record = folder / "collapse" / f"step-{step:06d}.safetensors"
        if not record.is_file():
            continue
        files = [out / f"{folder.name}-{step}-{number}.png" for number in range(len(texts))]
        found[step] = files
        if all(file.is_file() for file in files):
            continue
        rows = {
            key.removeprefix("rows/"): each for key, each in load_tensors(record).items() if key.startswith("rows/")
        }
        then = concept.with_tensors({FILE: rows})
        for file, text in zip(files, texts, strict=True):
            save_png(generate(base, text, concept=then, seeds=[SEED]).images[0], file)
    return found


def section(concepts: Path, run: Any, out: Path, figure: Path) -> list[str]:
    """Lines of Markdown; the figure is written.

    Args:
        concepts: folders by toy, with what was recorded.
        run: of which references and sentences are taken.
        out: where pictures are kept.
    """
    import torch
    from pages import curves

    from thisness.bases import load_base
    from thisness.concept import Concept
    from thisness.evaluation.encoders import open_encoder

    folders = [
        path for path in sorted(concepts.glob("*")) if (path / "collapse").is_dir() and path.name in run.references
    ]
    if not folders:
        return []
    out.mkdir(parents=True, exist_ok=True)
    base, clip, identity = load_base("playroom-sd"), open_encoder("playroom-clip"), open_encoder("playroom-identity")

    def unit(states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(states.float(), dim=-1)

    def opened(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")

    values: dict[str, dict[int, dict[str, float]]] = {"context, CLIP-T": {}, "identity": {}}
    for folder in folders:
        cases = [each for each in run.benchmark["cases"].values() if each["subjects"][0][1] == folder.name][:SENTENCES]
        by_step = pictures_of(Concept.load(folder, base), base, folder, [each["text"] for each in cases], out)
        told = unit(clip.text([each["context"] for each in cases]))
        known = unit(identity.images([opened(path) for path in run.references[folder.name]]))
        for step, files in by_step.items():
            images = [opened(file) for file in files]
            follows = float((unit(clip.images(images)) * told).sum(-1).mean())
            same = float((unit(identity.images(images)) @ known.T).mean())
            values["context, CLIP-T"].setdefault(step, {})[folder.name] = follows
            values["identity"].setdefault(step, {})[folder.name] = same
    lines: dict[str, dict[str, dict[float, list[float]]]] = {
        title: {"words": {step: list(by.values()) for step, by in of.items()}} for title, of in values.items()
    }
    curves(lines, figure, "The word at steps of its learning: thin lines are toys, thick ones their means", "step")
    return [
        "### The word at steps of its learning", "",
        f"{len(folders)} toys, {SENTENCES} sentences each, seed {SEED}. Difference to the step before, on the same "
        "sentences:", "", *_table(values), "", *_ends(values), "",
        f"![context and identity]({figure.parent.name}/{figure.name})", "",
    ]  # fmt: skip


def _ends(values: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[str]:
    """The paper's claim over the whole of the learning, by the rule of claims.py."""
    from claims import HEAD, Expects, line, over_toys

    found = list(HEAD)
    expected: dict[str, Expects] = {"context, CLIP-T": "lower", "identity": "higher"}
    for title, expects in expected.items():
        of = values[title]
        first, last = min(of), max(of)
        changes = [of[last][toy] - of[first][toy] for toy in of[last]]
        says = f"{title} {'falls' if expects == 'lower' else 'rises'} while the word is learned"
        found.append(line(says, f"step {last} - step {first}: {expects}", "-", over_toys(changes, expects)))
    return found


def _table(values: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[str]:
    from statistics import fmean

    from claims import over_toys

    titles = list(values)
    text = ["| step | " + " | ".join(f"{title} | change | p" for title in titles) + " |"]
    text.append("|---" * (1 + 3 * len(titles)) + "|")
    steps = sorted(values[titles[0]])
    for before, step in zip([None, *steps], steps, strict=False):
        cells = []
        for title in titles:
            now = values[title][step]
            cells.append(f"{fmean(now.values()):.3f}")
            if before is None:
                cells += ["-", "-"]
                continue
            _, change, p = over_toys([now[toy] - values[title][before][toy] for toy in now], "higher")
            cells += [change, p]
        text.append(f"| {step} | {' | '.join(cells)} |")
    return text
