"""`thisness learn`: a concept from pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.learn_several import learn_several, nouns_for
from thisness.cli.options import fields, parse_pairs, program
from thisness.errors import UserError, raise_all
from thisness.recipe import described


def learn(
    method: Annotated[
        str, typer.Argument(help="How: dreambooth-lora, dreambooth, textual-inversion, custom-diffusion, detex.")
    ],
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="A folder of pictures, or one picture; several: a concept for each.")
    ] = None,
    noun: Annotated[
        list[str] | None,
        typer.Option(
            help='What kind of thing it is, in a word of the base: "dog"; one for all folders, or one for each.'
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the concept; the folder's by default.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the concept goes; concepts/NAME by default. Of several: FOLDER/NAME."
        ),
    ] = None,
    base: BaseOption = "playroom-sd",
    preset: Annotated[str | None, typer.Option(help="A named set of settings; by the base's size by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; the preset's by default.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the preset's by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures in a step; the preset's by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random in the learning.")] = None,
    preview_every: Annotated[int | None, typer.Option(min=0, help="Steps between preview pictures; 0 none.")] = None,
    tracker: Annotated[
        str | None, typer.Option(help="Curves beside the log: auto (TensorBoard if installed), tensorboard, off.")
    ] = None,
    keep_meaning: Annotated[
        float | None, typer.Option(help="Hold the word's norm and angle to its noun's: 0.1 is usual, 0 not at all.")
    ] = None,
    track_collapse: Annotated[
        bool,
        typer.Option(
            "--track-collapse",
            help="Record 20 times how the meaning drifts, for `diagnose concept`; --set track_collapse=N: every N "
            "steps.",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the method; repeatable.")
    ] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="List the method's settings and presets, and exit.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, whatever the folder holds.")] = False,
    resize_mask: Annotated[bool, typer.Option("--resize-mask", help="Fit masks of another size.")] = False,
    joint: Annotated[
        bool, typer.Option("--joint", help="Several folders: concepts to be used together (custom-diffusion).")
    ] = False,
    pack: Annotated[int, typer.Option(min=1, help="Of several folders, at most so many in one batch.")] = 8,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Learn a concept from pictures of one thing, and write it to a folder; of several folders one concept each.

    Shows progress with the time left. A call that was cut short goes on where it was when it is typed again; one that
    was done is not done again.
    """
    if settings:
        _list_settings(method)
        return
    if not pictures:
        raise UserError(f"the folder of pictures is missing: {program()} learn {method} photos/ --noun dog")
    nouns = nouns_for(pictures, noun or [], method)
    given = parse_pairs(set_ or [])
    common: dict[str, object] = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed, "tracker": tracker}
    common |= {"preview_every": preview_every, "keep_meaning": keep_meaning}
    typed = {key: value for key, value in common.items() if value is not None}
    raise_all(
        [f"--{key.replace('_', '-')} {typed[key]} and --set {key}={given[key]}: say it once" for key in given
         if key in typed], UserError
    )  # fmt: skip
    given |= typed
    if track_collapse:
        given.setdefault("track_collapse", -1)
    if joint or len(pictures) > 1:
        if name is not None:
            raise UserError(f"--name {name}: of several folders each gives its concept's name: rename the folders")
        learn_several(
            method, pictures, nouns, given, joint=joint, pack=pack, out=out, base=base, preset=preset,
            resume=not fresh, resize_mask=resize_mask, device=device, dtype=dtype,
        )  # fmt: skip
        return

    from thisness.subject import Subject

    subject = Subject.from_folder(pictures[0], noun=nouns[0], name=name, resize_mask=resize_mask)
    folder = out if out is not None else Path("concepts") / subject.name

    from thisness.cli.loading import open_base
    from thisness.methods import learn as run
    from thisness.methods import method_named
    from thisness.methods.notes import notes, replaced
    from thisness.methods.registry import settings_for

    chosen = method_named(method)
    loaded = open_base(base, device, dtype)
    full = settings_for(chosen, loaded, given, preset)
    found = notes(method, subject, loaded, full)
    for note in found if fresh else found + replaced(folder, chosen, subject, loaded, full):
        typer.echo(f"note: {note}", err=True)
    concept = run(method, subject, loaded, folder=folder, resume=not fresh, progress=True, preset=preset, **given)
    typer.echo(f"{concept.name}, a {concept.noun}, learned by {method}: {folder}")
    if given.get("track_collapse") and not (folder / "collapse").is_dir():
        typer.echo("it was learned before, without --track-collapse: --fresh learns it anew", err=True)
    typer.echo(f'try: {program()} generate "a photo of a {{subject}}" --concept {folder} --base {base}')


def _list_settings(method: str) -> None:
    """Print each setting with its default, its type and what it means; then the presets."""
    from thisness.methods import method_named

    chosen = method_named(method)
    typer.echo(f"Settings of {method} (--set KEY=VALUE), with their defaults for full-size models:")
    for key, (kind, default, meaning) in fields(chosen.Settings).items():
        shown = "(must be given)" if default is dataclasses.MISSING else f"= {default!r}"
        typer.echo(f"  {key} {shown}  {meaning} ({described(kind)})")
    typer.echo('Presets (--preset NAME; "small" is taken for small bases, "default" names the values above):')
    for name, changes in chosen.presets.items():
        typer.echo(f"  {name}: {', '.join(f'{key}={value}' for key, value in changes.items())}")
