"""`thisness export`: a concept as files that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thisness.errors import UserError, nearest

FORMATS = ("diffusers", "kohya")


def export(
    concept: Annotated[Path, typer.Argument(metavar="CONCEPT", help="A concept's folder.")],
    to: Annotated[
        str, typer.Option(help="diffusers, or kohya: as AUTOMATIC1111 and ComfyUI read words and low-rank weights.")
    ] = "diffusers",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to; CONCEPT-FORMAT by default.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Where a whole model is written (dreambooth): the base, if not found by its name."),
    ] = None,
) -> None:
    """Write a concept for other programs, with a usage.txt that says how to load it.

    Learned words, low-rank weights and cross-attention become files to load beside the base; of `dreambooth` the whole
    model is written, as a diffusers folder.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to!r}{nearest(to, FORMATS)}: expected {' or '.join(FORMATS)}")

    from thisness.concept import Concept

    learned = Concept.load(concept)
    folder = out if out is not None else concept.with_name(f"{concept.name}-{to}")

    from thisness.bases import load_base

    files = learned.export(folder, to, load_base(base) if base is not None else None)
    typer.echo(f"{learned.name} for {to}: {folder}")
    for file in files:
        if file.suffix == ".safetensors" or file.name == "usage.txt":
            typer.echo(f"  {file.relative_to(folder)}  {_size(file.stat().st_size)}")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
