"""`thisness generate`: pictures from a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thisness.cli.options import parse_concepts, parse_seeds
from thisness.errors import UserError

BaseOption = Annotated[str, typer.Option("--base", metavar="NAME", help="Embedded name, local folder, or hub id.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N ...")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the base's own by default.")]


def generate(
    prompt: Annotated[str, typer.Argument(help='The sentence; "{subject}" stands for the subject.')],
    base: BaseOption = "playroom-sd",
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="A learned concept; NAME=FOLDER where the sentence has several {NAME}."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT:N", help="Keep the pose or background of picture N: pose:2, background:0 (detex)."),
    ] = None,
    subject: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Pictures of the subject, for --method; shown at the left of the sheet."),
    ] = None,
    noun: Annotated[str, typer.Option(help="With --subject: what kind of thing it is.")] = "",
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:KEY=VALUE",
            help="Read --subject without learning: ip-adapter, elite, ezigen, ominicontrol, aligngen (flux) ...",
        ),
    ] = None,
    adjust: Annotated[
        list[str] | None, typer.Option(metavar="NAME:KEY=VALUE", help="Adjust the conditioning; repeatable.")
    ] = None,
    attach: Annotated[
        list[str] | None, typer.Option(metavar="NAME:KEY=VALUE", help="Attach to the model's attention; repeatable.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:KEY=VALUE", help="Adjustments and attachments that go together: harmonizing."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds and ranges, e.g. 0-3,7: one picture each.")] = "0-3",
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Sampling steps; the base's own by default.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="Classifier-free guidance; the base's own by default.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm++ ...; the base's own by default.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="In pixels; the base's own by default.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="In pixels; the base's own by default.")] = None,
    eta: Annotated[float, typer.Option(min=0.0, max=1.0, help="Noise added by DDIM: 0 none, 1 as DDPM.")] = 0.0,
    guidance_rescale: Annotated[float, typer.Option(min=0.0, max=1.0, help="Against over-exposure; 0 none.")] = 0.0,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Use a concept on another model of its family, e.g. a finetune.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures made at once.")] = 4,
    show_loops: Annotated[
        bool, typer.Option("--show-loops", help="Also a sheet loops.png of the pictures on the way (ezigen).")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the sheet and the record.")] = Path("out"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep parts on the CPU and bring each to the device while it runs (flux).")
    ] = False,
) -> None:
    """Make pictures from a sentence, with or without a learned concept.

    Writes one PNG for each seed, a sheet of all, and the record that makes them again (`thisness inspect PNG --replay
    FOLDER`). With --method also what was read of the subject, in OUT/concept.
    """
    from thisness.keeping import parse_keep
    from thisness.recipe import parse_spec

    numbers = parse_seeds(seeds)
    adjustments = [parse_spec(text, "adjustment") for text in adjust or []]
    attachments = [parse_spec(text, "attachment") for text in attach or []]
    recipes = [parse_spec(text, "recipe") for text in recipe or []]
    folders = parse_concepts(concept or [])
    keeps = [parse_keep(text) for text in keep or []]
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")
    if subject is not None and not noun:
        raise UserError("--noun is missing: what kind of thing --subject shows, e.g. --noun dog")
    reading = parse_spec(method, "method") if method is not None else None
    if reading is not None and subject is None:
        raise UserError(f"--method {reading.name} reads pictures: say which, --subject PATH --noun dog")
    if reading is not None and "" in folders:
        raise UserError("--method and --concept both say what {subject} is: leave one of them out")

    from thisness.cli.loading import open_base
    from thisness.concept import Concept
    from thisness.generation import generate as make
    from thisness.generation.parts import combined
    from thisness.sampling import SamplingOptions
    from thisness.subject import Subject

    for spec in recipes:
        adjusting, attaching = combined(spec)
        adjustments += adjusting
        attachments += attaching
    options = SamplingOptions(
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        height=height,
        width=width,
        eta=eta,
        guidance_rescale=guidance_rescale,
    )
    pictures = Subject.from_folder(subject, noun=noun) if subject is not None else None
    loaded = open_base(base, device, dtype, offload)
    concepts = {slot: Concept.load(folder, loaded, other_weights=other_base) for slot, folder in folders.items()}
    if reading is not None and pictures is not None:
        from thisness.methods.zero_shot import read_subject

        values = reading.values
        preset = str(values.pop("preset")) if "preset" in values else None
        read = read_subject(reading.name, pictures, loaded, preset=preset, settings=values)
        read.save(out / "concept")  # what `inspect --replay` needs to make the pictures again
        concepts["" if not concepts else "subject"] = read
    result = make(
        loaded,
        prompt,
        subject=pictures,
        concept=concepts.get("", concepts or None),
        keep=keeps,
        adjust=adjustments,
        interventions=attachments,
        seeds=numbers,
        negative=negative,
        options=options,
        batch_size=batch_size,
        progress=True,
    )
    for report in result.record.get("adjusted", ()):
        typer.echo(report["says"], err=True)
    for path in result.save(out):
        typer.echo(f"{path}")
    typer.echo(f"{out / 'sheet.png'}")
    if show_loops and result.stages:
        from thisness.images import save_png

        save_png(result.stages_sheet(), out / "loops.png")
        typer.echo(f"{out / 'loops.png'}")
    elif show_loops:
        typer.echo("--show-loops: this method has no loops", err=True)
