"""`thisness attention`: where in the picture each word is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.options import parse_concepts, parse_seeds
from thisness.errors import UserError


def attention(
    prompt: Annotated[str, typer.Argument(help='The sentence; "{subject}" stands for the subject.')],
    words: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD",
            help='Word or phrase of the sentence, or "{subject}"; repeatable, or several with commas between. By '
            "default the subject's words and every other word that is no article.",
        ),
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="A learned concept; NAME=FOLDER where the sentence has several {NAME}."),
    ] = None,
    noun: Annotated[str, typer.Option(help="Stands for the subject where there is no concept: dog.")] = "",
    base: BaseOption = "playroom-sd",
    seeds: Annotated[str, typer.Option(help="Seeds and ranges, e.g. 0-3,7: one picture each.")] = "0-1",
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the subject is, white; by default its own map, thresholded."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Average the layers of this grid only; by default all of up to 32.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Average these layers only, numbers as they run: 2-5.")] = None,
    during: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="Average these steps only, from 0: 0-9; all by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, max=100.0, help="Classifier-free guidance.")] = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Use a concept on another model of its family, e.g. a finetune.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures made at once.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for the page, the numbers, the maps and the pictures.")] = Path(
        "attention"
    ),
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Draw cross-attention maps of words over the pictures, and say how much of each lies in the subject.

    Writes a page (attention.png), numbers (attention.json), maps (maps.safetensors) and the pictures, which are bit for
    bit those of `thisness generate`.
    """
    numbers = parse_seeds(seeds)
    folders = parse_concepts(concept or [])
    window = _window(during)
    chosen_layers = _numbers(layers)
    wanted = [word for text in words or [] for word in text.split(",")]
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")
    if noun and folders:
        raise UserError("--noun stands for the subject where there is no concept: leave out --noun or --concept")

    from thisness.cli.loading import open_base
    from thisness.concept import Concept
    from thisness.diagnostics.attention_maps import attention_maps
    from thisness.images import load_mask
    from thisness.prompt import Prompt
    from thisness.sampling import SamplingOptions

    if (slots := Prompt(prompt).slots) and not (noun or folders):
        raise UserError(f"nothing stands for {{{slots[0]}}}: give --concept FOLDER, or --noun dog for the plain base")
    loaded = open_base(base, device, dtype)
    options = SamplingOptions(steps=steps, guidance=guidance).resolved(loaded)
    concepts = {slot: Concept.load(folder, loaded, other_weights=other_base) for slot, folder in folders.items()}
    found = attention_maps(
        loaded,
        prompt,
        words=wanted,
        concept=concepts.get("", concepts or None),
        noun=noun,
        mask=load_mask(mask, (options.width or 0, options.height or 0)) if mask is not None else None,
        resolution=resolution,
        layers=chosen_layers,
        during=window,
        seeds=numbers,
        options=options,
        batch_size=batch_size,
        progress=True,
    )
    for path in found.save(out):
        typer.echo(f"{path}")


def _window(text: str | None) -> tuple[int, int] | None:
    """Steps from "0-9" or "4"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text.strip())
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise UserError(f"--during {text!r}: write the first and the last step, from 0, e.g. 0-9")
    return int(match[1]), int(match[2] or match[1])


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return parse_seeds(text)
    except UserError:
        raise UserError(f"--layers {text!r}: write numbers and ranges, e.g. 2-5") from None
