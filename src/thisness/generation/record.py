"""The record of a picture: everything that is needed to make it again, and nothing of the machine it was made on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..bases import Base
from ..concept import Concept, library_versions
from ..errors import ArtefactError, UserError, raise_all
from ..prompt import FilledPrompt, Prompt
from ..recipe import Recipe, Spec
from ..sampling import SamplingOptions
from ..subject import Subject

FORMAT = "thisness-generation"
VERSION = 1
MAX_BATCH = 1024
_KINDS: dict[str, type] = {
    "format": str, "version": int, "prompt": str, "sentence": str, "negative": str, "seeds": list, "batches": list,
    "recipe": dict, "unsaid": list, "base": dict, "concepts": dict, "subjects": dict, "scheduler": dict,
    "versions": dict, "machine": dict, "images": list,
}  # fmt: skip


def make_record(
    *,
    base: Base,
    prompt: FilledPrompt,
    negative: str,
    concepts: Mapping[str, Concept],
    subjects: Mapping[str, Subject],
    adjustments: tuple[Spec, ...],
    attachments: tuple[Spec, ...],
    unsaid: Sequence[str],
    options: SamplingOptions,
    scheduler: Any,
    batches: Sequence[Sequence[int]],
    images: Sequence[Image.Image],
    reports: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """JSON data.

    Args (the others are as in `generate`):
        options: with every number filled in.
        unsaid: names of adjustments and interventions that a recipe cannot say.
        batches: the seeds of the pictures that were made together: the last bits depend on it.
        reports: what adjustments tell of what they did.
    """
    places = [(number, row) for number, batch in enumerate(batches) for row in range(len(batch))]
    methods = {concept.method for concept in concepts.values()}
    recipe = Recipe(
        method=Spec.of(methods.pop()) if len(methods) == 1 else None,
        adjustments=adjustments,
        attachments=attachments,
        sampling=Spec.of("sampling", dataclasses.asdict(options)),
    )
    return {
        "format": FORMAT,
        "version": VERSION,
        "prompt": prompt.template,
        "sentence": prompt.text,
        "negative": negative,
        "seeds": [seed for batch in batches for seed in batch],
        "recipe": recipe.to_dict(),
        "unsaid": list(unsaid),
        **({"adjusted": [dict(report) for report in reports]} if reports else {}),
        "base": {"name": base.name, "family": base.family, "signature": base.signature},
        "concepts": {
            slot: {"name": concept.name, "method": concept.method, "hash": concept.hash}
            for slot, concept in concepts.items()
        },
        "subjects": {
            slot: {"name": subject.name, "noun": subject.noun, "hash": subject.hash}
            for slot, subject in subjects.items()
        },
        "scheduler": {"class": type(scheduler).__name__, **_plain(scheduler.config)},
        "versions": library_versions(),
        "machine": machine(base),
        "batches": [list(batch) for batch in batches],
        "images": [
            {"seed": batches[batch][row], "batch": batch, "row": row, "sha256": pixel_hash(image)}
            for (batch, row), image in zip(places, images, strict=True)
        ],
    }


def machine(base: Base) -> dict[str, Any]:
    """What beside versions decides the last bits."""
    return {
        "device": base.device.type,
        "dtype": str(base.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of size and RGB values, in hexadecimal; the same whatever file format keeps them exactly."""
    return hashlib.sha256(f"{image.width}x{image.height} RGB ".encode() + image.convert("RGB").tobytes()).hexdigest()


def check_record(data: Any, where: str) -> dict[str, Any]:
    """A record that is safe to read from.

    Raises:
        ArtefactError: not a record, of a later version, or damaged; all of it at once.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtefactError(f"{where} holds no record of a picture of thisness: only pictures made by it replay")
    if not isinstance(data.get("version"), int) or not 1 <= data["version"] <= VERSION:
        raise ArtefactError(f"{where} is of version {data.get('version')!r}, this program reads {VERSION}: update it")
    problems = [f"{key} must be {kind.__name__}" for key, kind in _KINDS.items() if type(data.get(key)) is not kind]
    raise_all(problems, ArtefactError, where)
    problems += _batch_problems(data["batches"], data["images"], data["seeds"])
    index = data.get("index")
    if index is not None and (type(index) is not int or not 0 <= index < len(data["images"])):
        problems.append("index is not that of a seed")
    problems += [
        f"base.{key} must be text" for key in ("name", "signature") if not isinstance(data["base"].get(key), str)
    ]
    for group in ("concepts", "subjects"):
        entries = data[group].values()
        if not all(
            isinstance(e, dict) and all(isinstance(e.get(key), str) for key in ("name", "hash")) for e in entries
        ):
            problems.append(f"{group} must have a name and a hash each")
    try:
        Prompt(data["prompt"])
        Recipe.from_dict(data["recipe"])
    except UserError as error:
        problems.append(str(error))
    raise_all(problems, ArtefactError, where)
    return data


def _batch_problems(batches: list[Any], images: list[Any], seeds: list[Any]) -> list[str]:
    """What is wrong with the lists of pictures."""
    if not all(
        isinstance(batch, list)
        and 1 <= len(batch) <= MAX_BATCH
        and all(type(seed) is int and 0 <= seed < 2**63 for seed in batch)
        for batch in batches
    ):
        return [f"batches must be lists of 1 to {MAX_BATCH} seeds"]
    for entry in images:
        batch, row = (entry.get("batch"), entry.get("row")) if isinstance(entry, dict) else (None, None)
        if (
            type(batch) is not int
            or type(row) is not int
            or not 0 <= batch < len(batches)
            or not 0 <= row < len(batches[batch])
            or entry.get("seed") != batches[batch][row]
            or not isinstance(entry.get("sha256"), str)
        ):
            return ["images must name their seed, their row in one of the batches, and their hash"]
    return [] if images and seeds == [entry["seed"] for entry in images] else ["seeds must be those of the images"]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The public settings of a scheduler as JSON data; what JSON has no word for, -inf among it, as text."""
    return {
        key: value
        if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
        else str(value)
        for key, value in config.items()
        if not key.startswith("_") and key != "class"
    }
