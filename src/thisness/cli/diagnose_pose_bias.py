"""`thisness diagnose pose-bias`: do pictures keep the pose of the references where the sentence asks for another?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.cli.options import parse_seeds
from thisness.errors import UserError

if TYPE_CHECKING:
    from thisness.bases import Base

EMBEDDED = "playroom-clip"


def pose_bias(
    prompt: Annotated[str, typer.Argument(help='A sentence that asks for a pose: "a {subject} sleeping".')],
    subject: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The reference pictures.")] = None,
    noun: Annotated[str, typer.Option(help="What kind of thing it is; the concept's by default.")] = "",
    concept: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A learned concept; without one the plain base is looked at.")
    ] = None,
    base: BaseOption = "playroom-sd",
    seeds: Annotated[str, typer.Option(help="Of the subject's pictures.")] = "0-31",
    controls: Annotated[int, typer.Option(min=4, max=1000, help="Pictures in each of the three sets to compare.")] = 16,
    neutral: Annotated[
        str, typer.Option(metavar="PROMPT", help='The sentence without the pose; "a {subject}" of the example.')
    ] = "",
    asked: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A reference that shows the asked pose already; repeatable."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Embedded name, folder or hub id; {EMBEDDED} for the embedded base."),
    ] = None,
    read_poses: Annotated[
        bool | None,
        typer.Option(
            "--read-poses/--no-read-poses",
            help="Read poses with the embedded judge; by default where base and subject are of the Playroom.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, max=100.0, help="Classifier-free guidance.")] = None,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Use a concept on another model of its family, e.g. a finetune.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures made at once.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for the page, the numbers and the pictures.")] = Path("pose-bias"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Show whether pictures of a subject cling to the pose of its references.

    Makes many pictures of the subject and of the plain base, with the pose in the sentence and without it, and compares
    their features with those of the references. Writes one page (pose-bias.png), the numbers (pose-bias.json) and all
    pictures.
    """
    numbers = parse_seeds(seeds)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")
    if subject is None:
        raise UserError("--subject is missing: the folder of the reference pictures to compare with")
    if concept is None and not noun:
        raise UserError("--noun is missing: what kind of thing --subject shows, e.g. --noun dog; or give --concept")

    from thisness.cli.loading import choose_device, open_base
    from thisness.concept import Concept
    from thisness.diagnostics.pose_experiment import check_question, diagnose_pose_bias
    from thisness.diagnostics.pose_reading import reference_poses
    from thisness.evaluation.encoders import open_encoder
    from thisness.sampling import SamplingOptions
    from thisness.subject import Subject

    check_question(prompt, neutral, numbers, controls)
    loaded = open_base(base, device, dtype)
    learned = Concept.load(concept, loaded, other_weights=other_base) if concept is not None else None
    pictures = Subject.from_folder(subject, noun=noun or (learned.word.noun if learned is not None else ""))
    poses = reference_poses(subject if subject.is_dir() else subject.parent, pictures.files)
    found = diagnose_pose_bias(
        loaded,
        prompt,
        pictures,
        open_encoder(encoder or _default_encoder(loaded), device=choose_device(device)),
        concept=learned,
        neutral=neutral,
        seeds=numbers,
        controls=controls,
        shows_asked=asked or (),
        reference_poses=poses,
        read=_of_playroom(loaded) if read_poses is None else read_poses,
        options=SamplingOptions(steps=steps, guidance=guidance),
        batch_size=batch_size,
        progress=True,
        say=lambda line: typer.echo(line, err=True),
    )
    for path in found.save(out):
        typer.echo(f"{path}")
    typer.echo(found.bias.sentence)


def _of_playroom(base: Base) -> bool:
    return base.name.startswith("playroom-")


def _default_encoder(base: Base) -> str:
    if not _of_playroom(base):
        raise UserError(
            f"--encoder is missing: {EMBEDDED} knows the Playroom only; for {base.name} name one that sees poses, e.g. "
            "--encoder clip-b32"
        )
    return EMBEDDED
