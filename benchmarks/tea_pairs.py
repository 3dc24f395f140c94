"""Two learned toys in one sentence: which of them is lost, without TEA and with it.

A picture shows the two beside each other. Each half is compared with the references of all toys by
`playroom-identity`; halves are given to the two toys in the way that fits better. A toy is found where its half is
nearer to it than to any other toy of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pages import save_figure
from PIL import Image

SENTENCES = ("a {one} next to a {two}", "a {one} and a {two} in the snow")
VARIANTS: dict[str, tuple[str, ...]] = {"without": (), "TEA": ("tea",)}


def halves(picture: Image.Image) -> list[Image.Image]:
    """Left and right half, padded to squares with grey."""
    width, height = picture.size
    found = []
    for left in (0, width // 2):
        square = Image.new("RGB", (height, height), (128, 128, 128))
        square.paste(picture.crop((left, 0, left + width // 2, height)), (height // 4, 0))
        found.append(square)
    return found


def read(picture: Image.Image, one: int, two: int, embed: Any, known: Any) -> tuple[bool, bool]:
    """Whether each of two toys is found. known: (toys, width), unit vectors."""
    near = embed(halves(picture)) @ known.T  # (2, toys)
    straight = float(near[0, one] + near[1, two])
    crossed = float(near[1, one] + near[0, two])
    first, second = (0, 1) if straight >= crossed else (1, 0)
    return int(near[first].argmax()) == one, int(near[second].argmax()) == two


def made(
    concepts: Mapping[str, Path], out: Path, seeds: Sequence[int], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[tuple[str, str], list[Path]]]:
    """Pictures by variant and pair; those that are there already are not made again."""
    from thisness.bases import load_base
    from thisness.concept import Concept
    from thisness.generation import generate
    from thisness.images import save_png

    base = load_base("playroom-sd")
    loaded = {name: Concept.load(folder, base) for name, folder in concepts.items()}
    found: dict[str, dict[tuple[str, str], list[Path]]] = {}
    for variant, adjust in VARIANTS.items():
        for one, two in pairs:
            for number, sentence in enumerate(SENTENCES):
                files = [out / f"{variant}-{one}-{two}-{number}-{seed}.png" for seed in seeds]
                if not all(file.is_file() for file in files):
                    both = {"one": loaded[one], "two": loaded[two]}
                    result = generate(base, sentence, concept=both, adjust=adjust, seeds=seeds, batch_size=len(seeds))
                    for file, image in zip(files, result.images, strict=True):
                        save_png(image, file)
                found.setdefault(variant, {}).setdefault((one, two), []).extend(files)
    return found


def section(
    method: str, concepts: Mapping[str, Path], references: Mapping[str, Sequence[Path]], out: Path, figure: Path,
    seeds: Sequence[int],
) -> list[str]:  # fmt: skip
    """Lines of Markdown; the figure is written.

    Args:
        concepts: folders by toy; neighbours in this order make the pairs.
        references: pictures by toy.
        out: where pictures are kept.
    """
    names = [name for name in references if name in concepts]
    pairs = neighbours(names)
    if len(pairs) < 3:
        return []
    out.mkdir(parents=True, exist_ok=True)
    return told(method, made(concepts, out, seeds, pairs), references, names, figure, len(seeds))


def neighbours(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each toy with the next one."""
    return list(zip(names, [*names[1:], *names[:1]], strict=True))


def told(
    method: str, pictures: Mapping[str, Mapping[tuple[str, str], Sequence[Path]]],
    references: Mapping[str, Sequence[Path]], names: Sequence[str], figure: Path, seeds: int,
) -> list[str]:  # fmt: skip
    """Lines of Markdown about pictures, by variant and pair, one for each of `SENTENCES` and seed; writes the figure.

    Args:
        references: pictures by toy.
        names: of all toys that a half may be taken for.
        seeds: of each sentence.
    """
    import torch

    from thisness.evaluation.encoders import open_encoder
    from thisness.evaluation.statistics import interval
    from thisness.images import Tile, sheet

    encoder = open_encoder("playroom-identity")

    def embed(pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.nn.functional.normalize(encoder.images(list(pictures)).float(), dim=-1)

    def opened(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")

    known = torch.stack([embed([opened(path) for path in references[name]]).mean(0) for name in names])
    known = torch.nn.functional.normalize(known, dim=-1)
    table = [
        f"| {method} | first found | second found | both | neither | pictures |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for variant, by_pair in pictures.items():
        each = {
            pair: [read(opened(file), names.index(pair[0]), names.index(pair[1]), embed, known) for file in files]
            for pair, files in by_pair.items()
        }
        count = sum(len(found) for found in each.values())
        cells = []
        for right in (
            lambda a, b: a, lambda a, b: b, lambda a, b: a and b, lambda a, b: not a and not b,
        ):  # fmt: skip
            shares = [fmean(right(a, b) for a, b in found) for found in each.values()]
            low, high = interval(shares)
            cells.append(f"{fmean(shares):.2f} ({low:.2f}-{high:.2f})")
        table.append(f"| {variant} | {' | '.join(cells)} | {count} |")
    rows = []
    for one, two in list(next(iter(pictures.values())))[:4]:
        first = [Tile(opened(references[name][0]), name) for name in (one, two)]
        shown = [Tile(opened(by[(one, two)][0]), variant) for variant, by in pictures.items()]
        more = [Tile(opened(by[(one, two)][seeds]), variant) for variant, by in pictures.items()]
        rows.append([*first, *shown, *more])
    save_figure(sheet(rows, title="Two toys in one sentence", tile=144), figure)
    said = '", "'.join(SENTENCES)
    return [
        f"## Two toys in one sentence: {method}", "",
        f'Each toy with the next one in the list, "{said}", {seeds} seeds. A toy is found where the half of the '
        f"picture that is its own is nearer to it than to any other of the {len(names)} toys (chance "
        f"{1 / len(names):.2f}, and more for halves that are given away well); intervals are over pairs.", "",
        *table, "", f"![two toys]({figure.parent.name}/{figure.name})", "",
    ]  # fmt: skip
