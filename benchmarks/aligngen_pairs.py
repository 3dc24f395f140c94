"""Two toys in one sentence by AlignGen, one picture each: does each name read its own picture?

As tea_pairs.py, whose way of finding toys it takes. "bound": a name's rows read the picture of their own toy alone;
"unbound": the pictures of both. More than two toys the embedded base has never seen in a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from tea_pairs import SENTENCES, neighbours, told

VARIANTS = {"bound": {"bind": True}, "unbound": {"bind": False}}


def section(references: Mapping[str, Sequence[Path]], nouns: Mapping[str, str], out: Path, figure: Path,
            seeds: Sequence[int]) -> list[str]:  # fmt: skip
    """Lines of Markdown; pictures that are there already are not made again, and the figure is written.

    Args:
        references: pictures by toy, of which the first is read.
        nouns: by toy.
        out: where pictures are kept.
    """
    names = list(references)
    pairs = neighbours(names)
    if len(pairs) < 3 or not seeds:
        return []
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, dict[tuple[str, str], list[Path]]] = {}
    for variant, settings in VARIANTS.items():
        for one, two in pairs:
            for number, sentence in enumerate(SENTENCES):
                files = [out / f"{variant}-{one}-{two}-{number}-{seed}.png" for seed in seeds]
                if not all(file.is_file() for file in files):
                    _make(references, nouns, (one, two), sentence, settings, seeds, files)
                pictures.setdefault(variant, {}).setdefault((one, two), []).extend(files)
    return told("aligngen", pictures, references, names, figure, len(seeds))


def _make(
    references: Mapping[str, Sequence[Path]], nouns: Mapping[str, str], pair: tuple[str, str], sentence: str,
    settings: Mapping[str, bool], seeds: Sequence[int], files: Sequence[Path],
) -> None:  # fmt: skip
    from thisness.bases import load_base
    from thisness.generation import generate
    from thisness.images import save_png
    from thisness.methods.zero_shot import read_subject
    from thisness.subject import Subject

    base = load_base("playroom-flux")
    both = {}
    for slot, name in zip(("one", "two"), pair, strict=True):
        picture = Image.open(references[name][0]).convert("RGB")
        both[slot] = read_subject("aligngen", Subject(name, nouns[name], (picture,)), base, settings=settings)
    made = generate(base, sentence, concept=both, seeds=seeds, batch_size=len(seeds))
    for file, image in zip(files, made.images, strict=True):
        save_png(image, file)
