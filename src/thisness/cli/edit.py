"""`thisness edit`: a subject drawn into a region of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.options import parse_seeds
from thisness.errors import UserError


def edit(
    scene: Annotated[Path, typer.Argument(help="The picture, of any size.")],
    mask: Annotated[
        Path | None, typer.Option(metavar="PNG", help="White is what may change; of the picture's size.")
    ] = None,
    find: Annotated[
        str | None, typer.Option(metavar="NOUN", help="Instead of --mask: what to replace, found by --mask-model.")
    ] = None,
    mask_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="For --find: CLIPSeg or SAM, a folder or a hub id.")
    ] = None,
    subject: Annotated[Path | None, typer.Option(metavar="PATH", help="Pictures of the subject.")] = None,
    noun: Annotated[str, typer.Option(help="What kind of thing the subject is.")] = "",
    concept: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Instead of --subject: what ezigen read before.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME:KEY=VALUE", help="ezigen, with its settings.")] = "ezigen",
    prompt: Annotated[str, typer.Option(help="What is to be seen about the mask.")] = "a photo of a {subject}",
    base: BaseOption = "playroom-sd",
    seeds: Annotated[str, typer.Option(help="Seeds and ranges, e.g. 0-3,7: one picture each.")] = "0",
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Sampling steps; the base's own by default.")
    ] = None,
    guidance: Annotated[float, typer.Option(min=0.0, max=100.0, help="Classifier-free guidance.")] = 2.0,
    scheduler: Annotated[str, typer.Option(help="ddpm, ddim or dpm++.")] = "ddpm",
    reinvert: Annotated[
        bool, typer.Option("--reinvert/--renoise", help="In each loop invert the picture again, or add noise to it.")
    ] = True,
    context: Annotated[float, typer.Option(min=1.0, help="Side of the square that is redrawn, by the mask's.")] = 3.0,
    feather: Annotated[float, typer.Option(min=0.0, max=0.25, help="Width of the soft edge, by that side.")] = 0.02,
    resize_mask: Annotated[bool, typer.Option("--resize-mask", help="Fit a mask of another size.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and a sheet.")] = Path("out"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Draw a subject into a region of a picture. Outside the mask and its soft edge no pixel changes."""
    from thisness.recipe import parse_spec

    numbers = parse_seeds(seeds)
    reading = parse_spec(method, "method")
    if reading.name != "ezigen":
        raise UserError(f"--method {reading.name}: editing is done by ezigen")
    if (mask is None) == (find is None):
        raise UserError("say where: --mask mask.png (white is what may change), or --find NOUN with --mask-model")
    if find is not None and mask_model is None:
        raise UserError("--find needs a model that finds things: --mask-model CIDAS/clipseg-rd64-refined, or a folder")
    if (subject is None) == (concept is None):
        raise UserError("say what: --subject PICTURES --noun dog, or --concept FOLDER")
    if subject is not None and not noun:
        raise UserError("--noun is missing: what kind of thing --subject shows, e.g. --noun dog")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")

    import numpy as np

    from thisness.cli.loading import choose_device, open_base
    from thisness.concept import Concept
    from thisness.images import Tile, load_image, load_mask, save_png, sheet
    from thisness.methods.ezigen_editing import check_region
    from thisness.methods.ezigen_editing import edit as make
    from thisness.methods.zero_shot import read_subject
    from thisness.sampling import SamplingOptions
    from thisness.subject import Subject

    picture = load_image(scene)
    if mask is not None:
        region = load_mask(mask, picture.size, resize=resize_mask)
    else:
        from thisness.masks import load_masker

        (region,) = load_masker(str(mask_model), str(find), choose_device(device), 0.4)([picture], str(find))
    check_region(region, str(mask or f"--find {find}"))
    pictures = Subject.from_folder(subject, noun=noun) if subject is not None else None
    loaded = open_base(base, device, dtype)
    if pictures is not None:
        values = reading.values
        preset = str(values.pop("preset")) if "preset" in values else None
        read = read_subject("ezigen", pictures, loaded, preset=preset, settings=values)
        read.save(out / "concept")
    else:
        read = Concept.load(str(concept), loaded)
    options = SamplingOptions(steps=steps, guidance=guidance, scheduler=scheduler)
    made = make(
        loaded, picture, region, read, prompt=prompt, seeds=numbers, options=options, reinvert=reinvert,
        context=context, feather=feather,
    )  # fmt: skip
    shown = np.asarray(picture, np.float32) * (0.35 + 0.65 * region[..., None])
    from PIL import Image

    tiles = [Tile(picture, "scene"), Tile(Image.fromarray(shown.astype(np.uint8)), "mask")]
    for index, (seed, image) in enumerate(zip(numbers, made.images, strict=True)):
        path = out / f"{index:03d}-seed-{seed}.png"
        save_png(image, path)
        tiles.append(Tile(image, f"seed {seed}"))
        typer.echo(f"{path}")
    references = pictures.images if pictures is not None else ()
    save_png(sheet([tiles], references=references, title=prompt), out / "sheet.png")
    typer.echo(f"{out / 'sheet.png'}")
