"""`thisness sweep`: one knob, drawn as a curve."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.options import parse_seeds, program
from thisness.errors import UserError

if TYPE_CHECKING:
    from thisness.evaluation.sweep import Measure


def sweep(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help='Sentences; "{subject}" in each.')],
    over: Annotated[
        str,
        typer.Option(
            metavar="KNOB=VALUES",
            help="guidance=1,2,3; steps, guidance_rescale, eta, lora_scale, or PART.SETTING as in tea.alpha=0,0.1.",
        ),
    ],
    subject: Annotated[Path, typer.Option(metavar="FOLDER", help="Pictures that identity is measured against.")],
    noun: Annotated[str, typer.Option(help="What kind of thing it is; by default the concept's.")] = "",
    concept: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A learned concept; the class noun without one.")
    ] = None,
    adjust: Annotated[
        list[str] | None, typer.Option(metavar="NAME:KEY=VALUE", help="An adjustment that stays; repeatable.")
    ] = None,
    attach: Annotated[
        list[str] | None, typer.Option(metavar="NAME:KEY=VALUE", help="An attachment that stays; repeatable.")
    ] = None,
    x: Annotated[str, typer.Option("--x", metavar="METRIC", help="Across.")] = "clip-t",
    y: Annotated[str, typer.Option("--y", metavar="METRIC", help="Upwards.")] = "dino-i",
    preset: Annotated[str, typer.Option(help="Whose protocol the names of --x and --y are taken from.")] = "thisness",
    base: BaseOption = "playroom-sd",
    seeds: Annotated[str, typer.Option(help="Seeds and ranges, e.g. 0-3,7, of each sentence and value.")] = "0-3",
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps; the base's own.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, max=100.0, help="Guidance; the base's own.")] = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Use the concept on another model of its family, e.g. a finetune.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures made at once.")] = 4,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For sweep.png, sweep.json, pictures/.")] = Path("sweep"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Turn one knob through its values and draw identity against prompt following, with pictures.

    The pictures stay in the folder: the same call makes none again, and more values add only theirs.
    """
    from thisness.evaluation.compare import checked_prompts
    from thisness.evaluation.sweep import described, parse_knob, settings_of
    from thisness.evaluation.sweep import sweep as turn
    from thisness.recipe import parse_spec

    knob, numbers = parse_knob(over), parse_seeds(seeds)
    checked_prompts(prompts)
    adjustments = [parse_spec(text, "adjustment") for text in adjust or []]
    attachments = [parse_spec(text, "attachment") for text in attach or []]
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")
    if concept is None and not noun:
        raise UserError("--noun is missing: what kind of thing --subject shows, e.g. --noun dog")

    from thisness.cli.loading import choose_device, open_base
    from thisness.concept import Concept
    from thisness.files import write_json
    from thisness.images import save_png
    from thisness.sampling import SamplingOptions
    from thisness.subject import Subject

    options = SamplingOptions(steps=steps, guidance=guidance)
    learned = Concept.load(concept) if concept is not None else None
    settings_of(knob, options=options, adjust=adjustments, attach=attachments, concept=learned)
    shown = Subject.from_folder(subject, noun=noun or (learned.noun if learned is not None else ""))
    across, up = measures((x, y), preset, choose_device(device))
    loaded = open_base(base, device, dtype)
    if learned is not None:
        learned.check_base(loaded, other_weights=other_base)
    result = turn(
        loaded,
        prompts,
        knob,
        across,
        up,
        subject=shown,
        folder=out,
        concept=learned,
        adjust=adjustments,
        attach=attachments,
        seeds=numbers,
        options=options,
        negative=negative,
        batch_size=batch_size,
        progress=True,
    )
    save_png(result.image, out / "sweep.png")
    command = shlex.join([program(), *sys.argv[1:]])
    write_json(out / "sweep.json", described(result, knob, across, up, command))
    for label, (first, second) in zip(knob.labels(), result.estimates, strict=True):
        said = [f"{name} {'n/a' if e.mean is None else f'{e.mean:.3f}'}" for name, e in ((x, first), (y, second))]
        typer.echo(f"{label:24} {'   '.join(said)}")
    typer.echo(f"{out / 'sweep.png'}")


def measures(names: tuple[str, str], preset: str, device: str) -> list[Measure]:
    """Metrics by their names in a preset, or by any name that `make_metrics` takes; called as they were asked for.

    Raises:
        ConfigurationError: no such preset or metric; the nearest is given.
        UserError: a metric's model cannot be had.
    """
    from thisness.errors import ConfigurationError, nearest
    from thisness.evaluation.metrics import PRESETS, make_metrics

    if preset not in PRESETS:
        raise ConfigurationError(f"--preset {preset!r}{nearest(preset, PRESETS)}: known are {', '.join(PRESETS)}")
    specs = {column.name: str(column.spec) for column in PRESETS[preset]}
    found: list[Measure] = []
    for name in names:
        (metric,) = make_metrics([specs.get(name, name)], device=device)
        metric.name = name
        found.append(metric)
    return found
