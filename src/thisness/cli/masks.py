"""`thisness masks`: which pictures have masks, and missing ones made by a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thisness.cli.generate import DeviceOption
from thisness.errors import UserError


def masks(
    pictures: Annotated[Path, typer.Argument(help="A folder of pictures, or one picture.")],
    noun: Annotated[str, typer.Option(help='What kind of thing it is: "dog"; CLIPSeg finds it by this.')] = "",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="SAM or CLIPSeg: a folder or a hub id; makes what is missing.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where NAME_mask.png go; beside the pictures by default.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="The sheet to look at; FOLDER.masks.png by default.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Probability from which CLIPSeg's answer is the thing.")] = 0.4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make masks anew that are there as files.")] = False,
    resize_mask: Annotated[bool, typer.Option("--resize-mask", help="Fit masks of another size.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """List which pictures have a mask and from where, make the missing ones, and draw a sheet to look at.

    Exits with 2 where a picture is left without a mask that can be used.
    """
    from thisness.images import save_png
    from thisness.masks import find_masks, make_missing, mask_sheet, missing_line
    from thisness.subject import checked_noun

    noun = checked_noun(noun) if noun else ""
    folder = pictures if pictures.is_dir() else pictures.parent
    target = sheet or folder.resolve().with_name(f"{folder.resolve().name}.masks.png")
    if target.resolve().parent == folder.resolve() and not target.name.startswith("."):
        raise UserError(f"--sheet {target}: it would count as one of the pictures: put it elsewhere")
    reports = find_masks(pictures, resize_mask=resize_mask)
    if model is not None:
        from thisness.cli.loading import choose_device

        reports = make_missing(
            reports, noun, model, out or folder, overwrite=overwrite, device=choose_device(device), threshold=threshold
        )
    width = max(len(report.file.name) for report in reports)
    for report in reports:
        where = report.mask_file.name if report.mask_file is not None else report.source or "no mask"
        area = f"{report.area:5.1f} %" if report.mask is not None else "      -"
        made = " (made)" if report.source == "made" else ""
        said = "cannot be used" if report.problem else report.warning
        typer.echo(f"{report.file.name:{width}}  {area}  {where}{made}" + (f": {said}" if said else ""))
    save_png(mask_sheet(reports), target)
    typer.echo(f"look at {target}")
    if left := missing_line(reports):
        raise UserError(left)
