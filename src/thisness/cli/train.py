"""`thisness train`: what reads a picture, trained on pairs of pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.options import fields, parse_pairs, program
from thisness.errors import UserError, raise_all
from thisness.recipe import described
from thisness.sources import FORMS, parse_data


def train(
    method: Annotated[str, typer.Argument(help="What: ezigen, ominicontrol, aligngen, ip-adapter, ip-adapter-plus.")],
    data: Annotated[
        list[str] | None, typer.Argument(help=f"Pairs: {'; '.join(FORMS.values())}. Several are mixed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the weights go; adapters/METHOD by default.")
    ] = None,
    base: BaseOption = "playroom-sd",
    noun: Annotated[
        str, typer.Option(help='What kind of thing all are, where folders do not say it in noun.txt: "dog".')
    ] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; the method's by default.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the method's by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs in a step; the method's by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random in the training.")] = None,
    preview_every: Annotated[int | None, typer.Option(min=0, help="Steps between previews; 0 none.")] = None,
    tracker: Annotated[
        str | None, typer.Option(help="Curves beside the log: auto (TensorBoard if installed), tensorboard, off.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the training; repeatable.")
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List the settings of the training, and exit.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, whatever the folder holds.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Train the adapter of a method that reads pictures, on pairs of your own, for a base of your own.

    Shows progress with the time left. A call that was cut short goes on where it was when it is typed again; one that
    was done is not done again. What it writes is read by `--method METHOD:weights=FOLDER`.
    """
    if settings:
        _list_settings(method)
        return
    if not data:
        raise UserError(f"the pairs to be trained on are missing: {program()} train {method} things/ --base sd1.5")
    found = [parse_data(each) for each in data]
    given = parse_pairs(set_ or [])
    common: dict[str, object] = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed, "tracker": tracker}
    typed = {key: value for key, value in (common | {"preview_every": preview_every}).items() if value is not None}
    raise_all(
        [f"--{key.replace('_', '-')} {typed[key]} and --set {key}={given[key]}: say it once" for key in given
         if key in typed], UserError
    )  # fmt: skip
    given |= typed

    from thisness.cli.loading import open_base
    from thisness.methods.pair_training import train_adapter, training_named
    from thisness.methods.pairs import FolderPairs, open_pairs
    from thisness.recipe import build_settings

    chosen = training_named(method)
    full = build_settings(given, chosen.Settings, method)
    loaded = open_base(base, device, dtype)
    chosen.check(method, loaded)
    pairs = [
        open_pairs(
            form, parts, noun, masks=chosen.masks, least=full.least, most=full.most, apart=full.apart
        ) for form, parts in found
    ]  # fmt: skip
    for each in pairs:
        typer.echo(f"{each.name}: {len(each)} {'things' if each.varied else 'pictures'}", err=True)
        if isinstance(each, FolderPairs) and each.left_out:
            typer.echo(f"note: a single picture, left out: {', '.join(each.left_out)}", err=True)
    folder = out if out is not None else Path("adapters") / method
    train_adapter(
        method, pairs, loaded, folder=folder, resume=not fresh, say=lambda line: typer.echo(f"note: {line}", err=True),
        **given,
    )  # fmt: skip
    typer.echo(f"{method} for {loaded.name}: {folder}")
    typer.echo(
        f'try: {program()} generate "a {{subject}} on the beach" --subject PICTURE --noun NOUN --method '
        f"{method}:weights={folder} --base {base}"
    )


def _list_settings(method: str) -> None:
    """Print each setting with its default, its type and what it means."""
    from thisness.methods.pair_training import training_named

    typer.echo(f"Settings of training {method} (--set KEY=VALUE):")
    for key, (kind, default, meaning) in fields(training_named(method).Settings).items():
        shown = "(must be given)" if default is dataclasses.MISSING else f"= {default!r}"
        typer.echo(f"  {key} {shown}  {meaning} ({described(kind)})")
