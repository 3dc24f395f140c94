"""`thisness compare`: concepts, recipes and the plain base side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.options import parse_seeds
from thisness.errors import UserError, raise_all

if TYPE_CHECKING:
    from thisness.subject import Subject


def compare(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help='Sentences; "{subject}" in each.')],
    concept: Annotated[
        list[str] | None, typer.Option(metavar="[LABEL=]FOLDER", help="A column of a learned concept; repeatable.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]METHOD:KEY=VALUE+...", help="A column of a recipe, learned from --subject."),
    ] = None,
    base_too: Annotated[bool, typer.Option("--base-too", help="A column of the plain base with the noun.")] = False,
    subject: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Pictures of the subject: shown at the left, and learned.")
    ] = None,
    noun: Annotated[str, typer.Option(help="What kind of thing it is; by default the first concept's.")] = "",
    base: BaseOption = "playroom-sd",
    seeds: Annotated[str, typer.Option(help="Seeds and ranges, e.g. 0-3,7: one row each.")] = "0-1",
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps; the base's own.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, max=100.0, help="Guidance; the base's own.")] = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Use concepts on another model of their family, e.g. a finetune.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures made at once.")] = 4,
    tile: Annotated[int, typer.Option(min=32, max=1024, help="Side of a picture on the sheet, in pixels.")] = 192,
    out: Annotated[
        Path, typer.Option(metavar="FILE.png", help="The sheet; beside it FILE.json replays every picture.")
    ] = Path("compare.png"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Make the same sentences and seeds by several columns, as one labelled picture.

    What a recipe learns is kept beside the sheet, in the folder FILE.concepts: the next call does not learn it again.
    """
    from thisness.evaluation.compare import Column, checked_prompts, recipe_column
    from thisness.evaluation.compare import compare as draw

    numbers = parse_seeds(seeds)
    folders = labelled(concept or [])
    checked_prompts(prompts)
    problems = []
    if not (folders or recipe or base_too):
        problems.append("no column: give --concept, --recipe or --base-too")
    if recipe and subject is None:
        problems.append("--subject is missing: the pictures that --recipe learns from")
    if subject is not None and not noun:
        problems.append("--noun is missing: what kind of thing --subject shows, e.g. --noun dog")
    if base_too and not (folders or noun):
        problems.append("--noun is missing: what --base-too shows in the subject's place, e.g. --noun dog")
    if out.suffix.lower() != ".png" or out.is_dir():
        problems.append(f"--out {out}: name a file that ends in .png")
    raise_all(problems, UserError)

    from thisness.cli.loading import open_base
    from thisness.concept import Concept
    from thisness.evaluation.recipes import parse_recipes, resolved
    from thisness.files import write_json
    from thisness.images import save_png
    from thisness.sampling import SamplingOptions
    from thisness.subject import Subject

    recipes = [resolved(each) for each in parse_recipes(recipe)] if recipe else []
    shown: Subject | None = Subject.from_folder(subject, noun=noun) if subject is not None else None
    options = SamplingOptions(steps=steps, guidance=guidance)
    loaded = open_base(base, device, dtype)
    concepts = {label: Concept.load(folder, loaded, other_weights=other_base) for label, folder in folders.items()}
    noun = noun or next((each.noun for each in concepts.values()), "")
    columns = [Column("base", None, noun)] if base_too else []
    columns += [Column(label, each) for label, each in concepts.items()]
    kept = out.with_suffix(".concepts")
    for named in recipes:
        assert shown is not None
        columns.append(recipe_column(named, loaded, shown, kept / named.label, options))
    result = draw(
        loaded,
        columns,
        prompts,
        seeds=numbers,
        options=options,
        negative=negative,
        batch_size=batch_size,
        references=shown.images if shown is not None else (),
        tile=tile,
        progress=True,
    )
    save_png(result.image, out)
    write_json(out.with_suffix(".json"), result.record)
    typer.echo(f"{out}")


def labelled(texts: list[str]) -> dict[str, Path]:
    """Folders by their labels, from "FOLDER" (labelled by its name) or "LABEL=FOLDER".

    Raises:
        UserError: one label twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        label, equals, folder = text.partition("=")
        if not equals or not label or Path(text).exists():
            folder, label = text, Path(text).resolve().name
        if label in found:
            raise UserError(f"--concept {text}: two columns are called {label!r}: write LABEL={folder} for one of them")
        found[label] = Path(folder)
    return found
