"""Harmonizing, looked at from within: masked values, attention inside of the subject, pose bias in the plane.

Everything is kept in files, so that it goes on where it was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs import opened

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored
    from thisness.playroom.finder import PlayroomMasker
    from thisness.subject import Subject

MASKED = {
    "m-clip-i": "clip-i:encoder=playroom-clip,references=first,mask=both,fill=black",
    "m-dino-i": "dino-i:encoder=playroom-identity,references=first,mask=both,fill=black",
}
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "host": ((), ()),
    "orchestrate": (("orchestrate",), ()),
    "both": (("orchestrate",), ("attention-swap",)),
}
"""Adjustments and attachments."""


def reference(name: str) -> Subject:
    """A toy's first reference alone, with its exact mask."""
    from thisness.evaluation.benchmarks import playroom
    from thisness.playroom.subjects import subject_index

    whole = playroom.toy(subject_index(name)).load()
    return replace(whole, images=whole.images[:1], masks=whole.masks[:1], files=whole.files[:1])


def truth(name: str) -> Mapping[str, str]:
    """What that reference shows."""
    from thisness.evaluation.benchmarks import playroom
    from thisness.playroom.subjects import reference_scenes, subject_index

    return playroom.truth(reference_scenes(subject_index(name))[0])


def _read(file: Path) -> dict[str, Any]:
    from thisness.files import read_json

    return read_json(file) if file.is_file() else {}


def masked(rows: Sequence[Scored], file: Path, masker: PlayroomMasker | None) -> list[Scored]:
    """The rows with masked values beside the others; None computes none, and takes what the file has."""
    from thisness.evaluation.items import Item, Picture
    from thisness.evaluation.metrics import make_metrics
    from thisness.files import write_json

    known = _read(file)
    missing = [row for row in rows if row.image is not None and row.id not in known]
    if missing and masker is not None:
        from tqdm import tqdm

        metrics = make_metrics(list(MASKED.values()), masker=masker)
        subjects = {name: reference(name) for name in dict.fromkeys(row.subject for row in missing)}
        for start in tqdm(range(0, len(missing), 64), desc=f"masked {file.parent.name}", dynamic_ncols=True):
            some = missing[start : start + 64]
            images = [opened(_image(row)) for row in some]
            items = []
            for row, image, mask in zip(some, images, masker.masks(images), strict=True):
                subject = subjects[row.subject]
                references = (Picture(subject.images[0], subject.masks[0]),)
                about = (row.id, row.recipe, row.subject, row.case, row.seed)
                items.append(Item(*about, Picture(image, mask), references, subject.noun, row.sentence))
            found = [metric.score(items) for metric in metrics]
            for n, row in enumerate(some):
                known[row.id] = {name: values[n] for name, values in zip(MASKED, found, strict=True)}
            write_json(file, known)
    return [replace(row, values={**row.values, **known.get(row.id, {})}) for row in rows]


def _image(row: Scored) -> Path:
    assert row.image is not None
    return row.image


def concentrations(
    host: str,
    settings: Mapping[str, Any],
    toys: Sequence[str],
    file: Path,
    masker: PlayroomMasker,
    base: Any,
    options: Any,
) -> dict[str, dict[str, dict[str, float]]]:
    """By toy and variant: the share of each word's map inside of the subject's mask in the picture that was made.

    Words: "subject" (the word with its noun; for a picture that is read beside the text the noun alone) and "pose".
    """
    from thisness.diagnostics.attention_maps import attention_maps
    from thisness.diagnostics.concentration import concentration, shrink
    from thisness.evaluation.benchmarks.playroom_prompts import pose_asks
    from thisness.files import write_json
    from thisness.methods.zero_shot import read_subject
    from thisness.playroom.subjects import subject_index

    known = _read(file)
    for name in toys:
        ask = pose_asks(subject_index(name))["pose"][0]
        concept = None
        for variant in ("host", "orchestrate"):
            if variant in known.get(name, {}):
                continue
            concept = concept or read_subject(host, reference(name), base, settings=settings)
            adjust, attach = VARIANTS[variant]
            found = attention_maps(
                base, ask.text, words=["{subject}", ask.words], concept=concept, adjust=adjust, interventions=attach,
                options=options,
            )  # fmt: skip
            mask = masker(found.generation.images[0])
            maps = found.pictures[0].maps
            if mask is not None:
                numbers = [concentration(each, shrink(mask, each.shape[0])) for each in maps]
                both = zip(("subject", "pose"), numbers, strict=True)
                known.setdefault(name, {})[variant] = {word: each.inside for word, each in both}
            else:
                known.setdefault(name, {})[variant] = {}
            write_json(file, known)
    return known


def factors(found: Mapping[str, Mapping[str, Mapping[str, float]]], word: str) -> list[float]:
    """For each toy the logarithm of how much more of a word's map is inside with orchestration."""
    logs = []
    for by in found.values():
        before, after = (by.get(variant, {}).get(word) for variant in ("host", "orchestrate"))
        if before and after:
            logs.append(math.log(after / before))
    return logs


def pose_bias(
    host: str, settings: Mapping[str, Any], toy: str, out: Path, seeds: Sequence[int], base: Any, options: Any
) -> dict[str, dict[str, Any]]:
    """By variant what the diagnosis says of one toy; its figures are in OUT/VARIANT/pose-bias.png."""
    from thisness.diagnostics.pose_experiment import diagnose_pose_bias
    from thisness.evaluation.benchmarks.playroom_prompts import pose_asks
    from thisness.evaluation.encoders import open_encoder
    from thisness.methods.zero_shot import read_subject
    from thisness.playroom.subjects import subject_index

    found = {}
    for variant, (adjust, attach) in VARIANTS.items():
        file = out / variant / "pose-bias.json"
        if not file.is_file() and len(seeds):
            subject = reference(toy)
            concept = read_subject(host, subject, base, settings=settings)
            ask = pose_asks(subject_index(toy))["pose"][0]
            diagnose_pose_bias(
                base, ask.text, subject, open_encoder("playroom-clip"), concept=concept, adjust=adjust,
                interventions=attach, seeds=seeds, controls=max(4, len(seeds) // 2), read=True,
                reference_poses=[truth(toy)["pose"]], options=options, batch_size=8, progress=True,
            ).save(out / variant)  # fmt: skip
        if file.is_file():
            found[variant] = _read(file)
    return found
