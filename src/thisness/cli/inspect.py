"""`thisness inspect`: what a file or folder is, and how to get it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thisness.cli.generate import DeviceOption
from thisness.cli.options import parse_concepts, program
from thisness.errors import ArtefactError, UserError

if TYPE_CHECKING:
    from thisness.generation import Generation

LOOKED_THROUGH = 64  # folders of a place that may hold a record's concept
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def inspect(
    path: Annotated[Path, typer.Argument(help="A picture, its record, a concept, a base, or a safetensors file.")],
    replay: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Make it again into this folder.")] = None,
    base: Annotated[str | None, typer.Option(metavar="NAME", help="For --replay: the base, if not registered.")] = None,
    concept: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="For --replay: the concept; NAME=FOLDER for several.")
    ] = None,
    subject: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For --replay: its pictures.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Say what a file or folder is: a picture with its record, a concept, a base; and how to make it again.

    With --replay the picture is made again, and what is not as it was is told; exits with 1 where pixels differ.
    """
    if not path.exists():
        raise UserError(f"{path} is not there: name a picture, a record, a concept's folder or a base's folder")
    if replay is not None:
        _replay(path, replay, base, parse_concepts(concept or []), subject, device)
    elif path.is_dir():
        _folder(path)
    elif path.suffix.lower() in PICTURES:
        _picture(path)
    elif path.suffix.lower() == ".json":
        _record(path)
    else:
        _weights(path)


def _show(heading: str, lines: Mapping[str, Any]) -> None:
    typer.echo(heading)
    for key, value in lines.items():
        if value not in (None, "", [], {}):
            typer.echo(f"  {key}: {_printable(str(value))}")


def _printable(text: str) -> str:
    """Text of a file from anywhere: no control sequence of it reaches the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _folder(path: Path) -> None:
    from thisness.concept import MANIFEST

    if (path / MANIFEST).is_file():
        _concept(path)
    elif (path / "model_index.json").is_file():
        _base(path)
    elif (path / "record.json").is_file():
        _record(path / "record.json")
    else:
        raise ArtefactError(
            f"{path} is none of: a concept ({MANIFEST}), a base (model_index.json), pictures (record.json)"
        )


def _concept(path: Path) -> None:
    from thisness.concept import Concept

    learned = Concept.load(path)
    manifest = learned.manifest
    _show(
        f"{path} is a concept, whole and undamaged",
        {
            "name": f"{learned.name}, a {learned.noun}",
            "learned by": learned.method,
            "on": f"{manifest['base']['name']} (signature {manifest['base']['signature']})",
            "from": f"{manifest['subject']['pictures']} pictures (hash {manifest['subject']['hash'][:12]})",
            "word in sentences": repr(manifest["word"]),
            "new tokens": ", ".join(manifest["tokens"]),
            "settings": _pairs(manifest["settings"]),
            "versions": _pairs(manifest["versions"]),
            "tensors": ", ".join(f"{len(group)} in {file}" for file, group in manifest["files"].items()),
        },
    )
    words = ["a photo of a {subject}", "--concept", str(path), "--base", manifest["base"]["name"]]
    typer.echo(f"use it: {program()} generate {_printable(shlex.join(words))}")


def _base(path: Path) -> None:
    from thisness.bases.loading import family_of
    from thisness.files import read_json

    index = read_json(path / "model_index.json")
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ArtefactError(f"{path}: model_index.json names no pipeline: not a diffusers folder")
    family = family_of(index["_class_name"])
    files = sorted(path.glob("*/*.safetensors"))
    parts = {part.name: index[part.name][1] for part in family.part_list if isinstance(index.get(part.name), list)}
    size = sum(file.stat().st_size for file in files)
    _show(
        f"{path} is a base of the family {family.family} ({index['_class_name']})",
        {**parts, "weights": f"{size / 2**20:.1f} MiB in {len(files)} safetensors files"},
    )
    typer.echo(f"use it: {program()} generate {shlex.join(['a photo of a dog', '--base', str(path)])}")


def _picture(path: Path) -> None:
    from thisness.images import load_image, read_record

    data = read_record(path)
    if data is None:
        picture = load_image(path)
        typer.echo(
            f"{path} is a picture of {picture.width}x{picture.height} pixels without a record: not made by thisness"
        )
        return
    _told(path, data)


def _record(path: Path) -> None:
    from thisness.files import read_json

    _told(path, read_json(path))


def _told(path: Path, data: Any) -> None:
    """Print a record that was found."""
    from thisness.bases import known
    from thisness.generation import check_record

    record = check_record(data, str(path))
    index = record.get("index")
    images = record["images"] if index is None else [record["images"][index]]
    recipe = record["recipe"]
    _show(
        f"{path} is {'a picture' if index is not None else f'the record of {len(images)} pictures'} made by thisness",
        {
            "prompt": record["prompt"],
            "sentence": record["sentence"],
            "negative": record["negative"],
            "seed" if len(images) == 1 else "seeds": ", ".join(str(image["seed"]) for image in images),
            "base": f"{record['base']['name']} (signature {record['base']['signature']})",
            "concept": ", ".join(
                f"{e['name']} by {e['method']} (hash {e['hash'][:12]})" for e in record["concepts"].values()
            ),
            "subject": ", ".join(f"{e['name']} (hash {e['hash'][:12]})" for e in record["subjects"].values()),
            "adjustments": ", ".join(part["name"] for part in recipe["adjustments"]),
            "attachments": ", ".join(part["name"] for part in recipe["attachments"]),
            "sampling": _pairs(recipe["sampling"]),
            "scheduler": record["scheduler"].get("class"),
            "versions": _pairs(record["versions"]),
            "machine": _pairs(record["machine"]),
        },
    )
    words = [str(path), "--replay", "again"]
    if record["base"]["name"] not in known():
        words += ["--base", "FOLDER"]
    for slot, entry in record["concepts"].items():
        folder = _concept_folder(path, entry)
        words += ["--concept", folder if len(record["concepts"]) == 1 else f"{slot}={folder}"]
    if record["subjects"].keys() - record["concepts"].keys():
        words += ["--subject", "photos"]
    typer.echo(f"make it again: {program()} inspect {_printable(shlex.join(words))}")


def _concept_folder(path: Path, entry: Mapping[str, str]) -> str:
    """Where a record's concept lies: in the first folder near by that holds the very one. Records name no folders."""
    from thisness.concept import Concept

    home = path.parent
    near = [home / "concept", Path("concepts") / entry["name"]]  # `generate --method` puts what it read into the first
    for place in (Path("concepts"), home, home.parent, home.parent / "concepts", Path()):
        near += sorted(place.glob("*"))[:LOOKED_THROUGH] if place.is_dir() else []
    for folder in dict.fromkeys(near):
        if (folder / "concept.json").is_file():
            with suppress(UserError):
                if Concept.load(folder).hash == entry["hash"]:
                    return str(folder)
    return f"FOLDER-OF-{entry['name'].upper()}"


def _weights(path: Path) -> None:
    from thisness.files import load_tensors

    tensors = load_tensors(path)
    values = sum(tensor.numel() for tensor in tensors.values())
    _show(f"{path} holds {len(tensors)} tensors, {values:,} values, all finite", {})
    for name, tensor in tensors.items():
        typer.echo(f"  {name}: {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")


def _replay(
    path: Path, out: Path, base: str | None, folders: Mapping[str, Path], subject: Path | None, device: str
) -> None:
    from thisness.cli.loading import choose_device, open_base
    from thisness.concept import Concept
    from thisness.files import read_json
    from thisness.generation import check_record
    from thisness.generation import replay as again
    from thisness.images import read_record
    from thisness.subject import Subject

    source = path / "record.json" if path.is_dir() else path
    data = read_json(source) if source.suffix.lower() == ".json" else read_record(source)
    record = check_record(data, str(source))
    loaded = open_base(base, device, record["machine"].get("dtype")) if base is not None else None
    concepts = {slot: Concept.load(folder) for slot, folder in folders.items()}
    pictures = None
    if subject is not None:
        named: Mapping[str, str] = next(iter(record["subjects"].values()), {})
        pictures = Subject.from_folder(subject, noun=named.get("noun", "thing"), name=named.get("name"))
    result = again(
        source,
        loaded,
        concepts.get("", concepts or None),
        subject=pictures,
        device=choose_device(device),
        progress=True,
    )
    _told_again(result, result.save(out))


def _told_again(result: Generation, paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"{path}")
    for difference in result.differences:
        typer.echo(difference, err=True)
    if not result.differences:
        typer.echo("the same, bit for bit")
    elif any("bit for bit" in difference for difference in result.differences):
        raise typer.Exit(1)


def _things(entries: Mapping[str, Mapping[str, str]]) -> str:
    """Concepts or subjects of a record."""
    return ", ".join(f"{entry['name']} (hash {entry['hash'][:12]})" for entry in entries.values())


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
