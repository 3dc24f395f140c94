"""`thisness playroom`: sheets, subjects and datasets of the rendered world; training and checking the embedded
models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
CHECK_FAILED = 1


@app.command()
def sheet(
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("playroom.png"),
    kind: Annotated[
        str,
        typer.Option(help="scenes: random ones; poses: every class in every pose; words: one toy, each thing changed."),
    ] = "scenes",
    count: Annotated[int, typer.Option(min=1, max=600, help="Pictures of a sheet of scenes.")] = 48,
    seed: Annotated[int, typer.Option(help="Number of the first scene.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of one picture in pixels.")] = 128,
) -> None:
    """Write a contact sheet of rendered scenes."""
    from thisness.playroom.sheets import contact_sheet

    contact_sheet(kind, out, count=count, seed=seed, size=size)
    typer.echo(f"{out}")


@app.command()
def subject(
    name: Annotated[
        str, typer.Argument(help="A held-out toy: rufus, mimi, bruno, ... or CLASS-NUMBER as in dog-10.")
    ] = "rufus",
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default the toy's name.")] = None,
    count: Annotated[int, typer.Option(min=1, max=10, help="How many reference pictures.")] = 4,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of a picture in pixels.")] = 128,
) -> None:
    """Render the reference folder of a toy that no model was trained on: pictures, masks, ground truth."""
    from thisness.playroom.subjects import held_out_identity, subject_index, write_subject

    index = subject_index(name)
    folder = write_subject(out or Path(name), index, count=count, size=size)
    typer.echo(f"{folder}: {count} pictures of a {held_out_identity(index).noun}, with masks and truth.json")


@app.command()
def dataset(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many scenes.")] = 256,
    seed: Annotated[int, typer.Option(help="Number of the first scene.")] = 0,
    split: Annotated[str, typer.Option(help="train or held-out.")] = "train",
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of a picture in pixels.")] = 128,
) -> None:
    """Render scenes to a folder: PNG pictures, masks, and metadata.jsonl with captions and ground truth."""
    from thisness.playroom.sheets import write_dataset

    write_dataset(out, count=count, seed=seed, split=split, size=size)
    typer.echo(f"{out}: {count} pictures, masks, and metadata.jsonl")


@app.command()
def train(
    what: Annotated[
        str,
        typer.Argument(
            help="all, reader, teacher, judge, vae, text, clip, identity, unet, vae-decoder; what reads a picture: "
            "elite, blip-diffusion, ezigen, ip-adapter, ip-adapter-plus; FLUX: flux-vae, flux-text, flux, "
            "flux-guidance, redux, ominicontrol, aligngen; or data, latents, features, flux-data, flux-latents, "
            "flux-features, assemble."
        ),
    ] = "all",
    folder: Annotated[Path, typer.Option(help="Where checkpoints, data and logs lie.")] = Path(".train"),
    target: Annotated[Path | None, typer.Option(help="Where assemble writes; by default into the package.")] = None,
    only: Annotated[str, typer.Option(help="What assemble writes, by commas: judge,clip; all that is trained.")] = "",
    pictures: Annotated[int, typer.Option(min=2048, help="Rendered training pictures.")] = 65536,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render and encode.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the training process itself.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's own number.")] = None,
    stop_after: Annotated[float | None, typer.Option(min=0, help="Seconds; then stop with a checkpoint.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the embedded models: one, or all in dependency order. Goes on where it stopped."""
    import torch

    from thisness.playroom.recipes.campaign import run
    from thisness.playroom.recipes.common import WEIGHTS, Workplace

    torch.set_num_threads(threads)
    place = Workplace(folder, pictures, workers, device)
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    finished = run(
        what, place, steps=steps, stop_after=stop_after, target=target or WEIGHTS, only=chosen, say=typer.echo
    )
    typer.echo(f"{what}: finished" if finished else f"{what}: stopped; the same command goes on")


@app.command()
def check(
    weights: Annotated[
        Path | None, typer.Option(help="Folder of playroom-sd and judge; by default those of the package.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Fresh renders, and prompts.")] = 256,
    only: Annotated[
        str | None,
        typer.Option(
            help="One part: vae, judge on renders, judge on reconstructions, base at guidance 3, "
            "clip, zero-shot, identity, toy masks."
        ),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write the first 48 drawn pictures here.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the table as JSON here.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write what the judge reads right beside its weights: the oracle says it.")
    ] = False,
) -> None:
    """Measure the embedded models on fresh held-out renders and prompts; exits with 1 when one is under its floor."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from thisness.errors import UserError, nearest
    from thisness.files import write_json
    from thisness.playroom.check import FLOORS, check
    from thisness.playroom.recipes.common import WEIGHTS

    if only is not None and only not in FLOORS:
        raise UserError(
            f"--only {only!r} is no part of the check{nearest(only, FLOORS)}: use one of {', '.join(FLOORS)}"
        )
    lines = check(
        weights or WEIGHTS,
        count=count,
        only=only,
        sheet=sheet,
        progress=lambda line: typer.echo(f"measuring {line} ...", err=True),
    )
    table = Table("part", "what", "measured", "floor", "pictures", "")
    for line in lines:
        floor = "" if line.floor is None else f"{line.floor:.0f}"
        table.add_row(
            line.part,
            line.what,
            f"{line.value:.1f}",
            floor,
            str(line.count),
            "" if line.floor is None else "ok" if line.passed else "UNDER",
        )
    Console().print(table)
    if json_out:
        write_json(json_out, [asdict(line) for line in lines])
    if record:
        right = {line.what: round(line.value, 1) for line in lines if line.part == "judge on renders"}
        if not right:
            raise UserError('--record writes what "judge on renders" measures: leave --only out, or name that part')
        measured = {"command": "thisness playroom check", "pictures": count, "per cent right on renders": right}
        write_json((weights or WEIGHTS) / "judge" / "accuracy.json", measured)
    failed = [line for line in lines if not line.passed]
    if failed:
        typer.echo(f"under the floor: {', '.join(f'{line.part}: {line.what}' for line in failed)}", err=True)
        raise typer.Exit(CHECK_FAILED)
