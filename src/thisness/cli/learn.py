"""`thisness learn`: a concept from pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.options import fields, parse_settings
from thisness.errors import UserError
from thisness.recipe import described


def learn(
    method: Annotated[str, typer.Argument(help="How: textual-inversion, dreambooth-lora ...")],
    pictures: Annotated[Path | None, typer.Argument(help="A folder of 1 to 20 pictures, or one picture.")] = None,
    noun: Annotated[str, typer.Option(help='What it is, in a word of the base: "dog".')] = "",
    name: Annotated[str | None, typer.Option(help="Name of the concept; the folder's by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the concept goes; concepts/NAME by default.")
    ] = None,
    base: BaseOption = "playroom-sd",
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the method's own by default.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the method's own by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random in the training.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the method; repeatable.")
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List the method's settings and exit.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where a training was cut short.")] = False,
    resize_mask: Annotated[bool, typer.Option("--resize-mask", help="Fit masks of another size.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Learn a concept from pictures of one thing, and write it to a folder.

    Shows progress with the time left. A call that was cut short goes on where it was when it is typed again.
    """
    from thisness.methods import method_named

    chosen = method_named(method)
    if settings:
        _list_settings(method, chosen.Settings)
        return
    if pictures is None or not noun:
        missing = "the pictures' folder" if pictures is None else "--noun (what it is, in a word: dog)"
        raise UserError(f"learn {method}: {missing} is missing, e.g. thisness learn {method} photos/ --noun dog")
    given: dict[str, Any] = parse_settings(set_ or [], chosen.Settings, method)
    for key, value in (("steps", steps), ("lr", lr), ("seed", seed)):
        if value is not None:
            given |= parse_settings([f"{key}={value}"], chosen.Settings, method)

    from thisness.subject import Subject

    subject = Subject.from_folder(pictures, noun=noun, name=name, resize_mask=resize_mask)
    folder = out if out is not None else Path("concepts") / subject.name

    from thisness.cli.loading import open_base
    from thisness.methods import learn as run

    loaded = open_base(base, device, dtype)
    concept = run(method, subject, loaded, folder=folder, resume=not fresh, progress=True, **given)
    typer.echo(f"learned {concept.manifest['name']} ({concept.manifest['noun']}) by {method}: {folder}")
    typer.echo(f'try: thisness generate "a {{subject}} on the beach" --concept {folder} --base {base}')


def _list_settings(method: str, settings: type) -> None:
    """Print each setting with its default, its type and what it means."""
    typer.echo(f"Settings of {method} (give them with --set KEY=VALUE):")
    for key, (kind, default, meaning) in fields(settings).items():
        shown = "must be given" if default is dataclasses.MISSING else f"= {default}"
        typer.echo(f"  {key} {shown}  ({described(kind)}){'  ' + meaning if meaning else ''}")
