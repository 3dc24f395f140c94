"""Making a picture again from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bases import Base, known, load_base
from ..concept import Concept
from ..errors import ArtefactError, UserError
from ..files import read_json
from ..images import read_record
from ..recipe import Recipe, build_settings
from ..sampling import SamplingOptions
from ..subject import Subject
from .make import generate
from .record import check_record, pixel_hash
from .result import Generation


def replay(
    source: str | Path | Mapping[str, Any],
    base: Base | None = None,
    concept: Concept | Mapping[str, Concept] | None = None,
    *,
    subject: Subject | Mapping[str, Subject] | None = None,
    adjust: Sequence[Any] | None = None,
    interventions: Sequence[Any] | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Generation:
    """Make pictures again. On the same versions, device and number of threads their pixels are the same bits.

    Args:
        source: a PNG (that picture is made), a record.json, or the record itself (all of its pictures are made).
        base: what it was made with; a model registered by name is loaded where None.
        concept: what it was made with, if any; a concept is not in the record.
        subject: likewise; not needed where a concept stands in its place.
        adjust, interventions: where the pictures were made with objects that a record cannot say: these again.
        device: for a base that is loaded.
        progress: a bar on stderr.

    Returns:
        Pictures and record; `differences` says what is not as it was: versions, machine, pixels.

    Raises:
        ArtefactError: no record, a damaged one, or another base, concept or subject than it names.
        UserError: what is needed beside the record was not given.
    """
    record, where = _read(source)
    base = base if base is not None else _base(record, where, device)
    if base.signature != record["base"]["signature"]:
        raise ArtefactError(
            f"{where} was made with {record['base']['name']} of signature {record['base']['signature']}, but "
            f"{base.name} has {base.signature}: it would be another picture; give the base that it was made with"
        )
    slots = {"concepts": _given(record["concepts"], concept, "concepts", where), "subjects": None}
    if subject is not None or not record["subjects"].keys() <= record["concepts"].keys():
        slots["subjects"] = _given(record["subjects"], subject, "subjects", where)  # else the concept says all
    recipe = Recipe.from_dict(record["recipe"])
    if record["unsaid"] and adjust is None and interventions is None:
        raise UserError(
            f"{where} was made with {', '.join(map(str, record['unsaid']))}, passed as objects that a record cannot "
            "say: call replay in Python with the same adjust and interventions"
        )
    index = record.get("index")
    wanted = record["images"] if index is None else [record["images"][index]]
    numbers = sorted({entry["batch"] for entry in wanted})
    made: dict[int, Generation] = {}
    for number in numbers:
        made[number] = generate(
            base,
            record["prompt"],
            subject=slots["subjects"],
            concept=slots["concepts"],
            adjust=recipe.adjustments if adjust is None else adjust,
            interventions=recipe.attachments if interventions is None else interventions,
            seeds=record["batches"][number],
            negative=record["negative"],
            options=build_settings(recipe.sampling.values, SamplingOptions, "sampling"),
            batch_size=len(record["batches"][number]),
            progress=progress,
        )
    any_one = made[numbers[0]]
    if record["sentence"] != any_one.record["sentence"]:
        raise ArtefactError(f"{where} says {record['sentence']!r}, but it was filled to {any_one.record['sentence']!r}")
    images = [made[entry["batch"]].images[entry["row"]] for entry in wanted]
    again = {
        **any_one.record,
        "subjects": record["subjects"],
        "seeds": [entry["seed"] for entry in wanted],
        "batches": [record["batches"][number] for number in numbers],
        "images": [
            {**entry, "batch": numbers.index(entry["batch"]), "sha256": pixel_hash(image)}
            for entry, image in zip(wanted, images, strict=True)
        ],
    }
    differences = _differences({**record, "images": wanted}, again)
    return Generation(images, again, any_one.references, differences)


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return check_record(dict(source), "the record"), "the record"
    data = read_json(source) if Path(source).suffix.lower() == ".json" else read_record(source)
    return check_record(data, str(source)), str(source)


def _base(record: Mapping[str, Any], where: str, device: str) -> Base:
    """Only registered models are loaded by name: a picture from anywhere must not choose what is fetched."""
    name = record["base"]["name"]
    if name not in known():
        raise UserError(f"{where} was made with {name!r}, which is not a registered name: give the base (--base)")
    return load_base(name, device=device)


def _given(
    recorded: Mapping[str, Any], given: Any | Mapping[str, Any] | None, kind: str, where: str
) -> dict[str, Any] | None:
    """The concepts or subjects by placeholder, checked against the record."""
    if not recorded:
        if given is not None:
            raise UserError(f"{where} was made without {kind}, but one was given: leave it out")
        return None
    names = ", ".join(f"{entry['name']!r} (hash {entry['hash'][:12]})" for entry in recorded.values())
    if given is None and kind == "subjects":
        raise UserError(f"{where} was made with the pictures of {names}: give the subject")
    if given is None:
        raise UserError(f"{where} was made with the concept {names}: give it (--concept FOLDER)")
    things = dict(given) if isinstance(given, Mapping) else dict.fromkeys(recorded, given)
    if things.keys() != recorded.keys():
        raise UserError(f"{where} was made with {kind} for {', '.join(recorded)}: given are {', '.join(things)}")
    for slot, thing in things.items():
        if thing.hash != recorded[slot]["hash"]:
            raise ArtefactError(
                f"{where} was made with {recorded[slot]['name']!r} (hash {recorded[slot]['hash'][:12]}), but "
                f"{thing.name!r} has {thing.hash[:12]}: it would be another picture"
            )
    return things


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between two records of the same pictures, in clear sentences."""
    found = []
    for group, said in (("versions", ""), ("machine", ""), ("scheduler", "the scheduler's ")):
        before, now = old[group], new[group]
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                found.append(f"{said}{key} was {before.get(key)}, is {now.get(key)}")
    for before, now in zip(old["images"], new["images"], strict=True):
        if before["sha256"] != now["sha256"]:
            found.append(f"the picture of seed {now['seed']} is not bit for bit the one that was made")
    return tuple(found)
